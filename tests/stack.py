"""A running `stockade up` for tests, and what a stopped one might have left."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from stockade.client import Client

STOCKADE = Path(sys.executable).with_name("stockade")
PATIENCE = 60 * float(os.environ.get("STOCKADE_TEST_SLOWDOWN", "1"))


def until(condition: Callable[[], Any], what: str) -> Any:
    """Wait for a condition; its value."""
    deadline = time.monotonic() + PATIENCE
    while not (value := condition()):
        assert time.monotonic() < deadline, f"never: {what}"
        time.sleep(0.05)
    return value


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Up:
    """A running `stockade up`."""

    state: Path
    listen: str = field(default_factory=lambda: f"127.0.0.1:{free_port()}")
    greeting: str = ""
    started: bool = False

    def start(self, *options: str) -> None:
        """Start it; returns when it has said that it is ready."""
        command = [STOCKADE, "up", "--state", self.state, "--listen", self.listen, *options]
        self.said = self.state.with_suffix(".out")
        with self.said.open("wb") as out:
            self.process = subprocess.Popen(command, stdout=out, stderr=out, start_new_session=True)
        self.started = True

        def ready() -> bool:
            assert self.process.poll() is None, self.output()
            return "Ctrl-C" in self.output()

        until(ready, "ready")
        self.greeting = self.output()

    def output(self) -> str:
        """What it has said so far."""
        return self.said.read_text()

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Stop it; the exit status."""
        self.process.send_signal(number)
        return self.process.wait(PATIENCE)

    def client(self) -> httpx.Client:
        """A plain HTTP client with the development key, for what is about HTTP itself."""
        key = (self.state / "dev-key").read_text().strip()
        headers = {"Authorization": f"Bearer {key}"}
        return httpx.Client(base_url=f"http://{self.listen}", headers=headers, trust_env=False, timeout=90)

    def api(self) -> Client:
        """The Python client with the development key."""
        key = (self.state / "dev-key").read_text().strip()
        return Client(f"http://{self.listen}", key, patience=PATIENCE)

    def run(self, *argv: str) -> dict[str, Any]:
        """Send one command; the job when it is finished, as JSON."""
        with self.api() as api:
            return api.run(argv, timeout=PATIENCE).model_dump(mode="json")

    def finished(self, job_id: str) -> dict[str, Any]:
        """The job when it is finished, as JSON."""
        with self.api() as api:
            return api.wait(job_id, timeout=PATIENCE).model_dump(mode="json")

    def pids(self) -> dict[str, int]:
        """Its children by name."""
        names = {"valkey": "valkey-server", "launcher": ".launcher", "worker": "-m worker ", "api": "-m api "}
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        lines = {int(pid): command_line(pid) for pid in children}
        return {name: pid for name, mark in names.items() for pid, line in lines.items() if mark in line}


def command_line(pid: str) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def left_of(state: Path) -> list[str]:
    """Processes and sockets that have to do with this state directory."""
    environments = (f"{state}/".encode(), f"--state {state}".encode())
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                line = command_line(entry.name)
                environment = (entry / "environ").read_bytes()
            except OSError:
                continue
            if str(state) in line or any(mark in environment for mark in environments):
                found.append(line)
    return found + [str(path) for path in state.rglob("*") if path.is_socket()]


def cgroups_of(state: Path) -> set[tuple[str, int]]:
    """Path and inode of the cgroups of this state's running launcher; no new cgroup ever has an old inode."""
    ready = re.findall(r'"number": (\d+)', (state / "logs" / "launcher.log").read_text())
    (pid,) = (entry.name for entry in Path("/proc").iterdir() if is_launcher_of(state, entry.name))
    own = {line.split(":", 2)[2].strip("/") for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines()}
    mounts = re.findall(r"^\S+ (\S+) cgroup", Path("/proc/mounts").read_text(), re.MULTILINE)
    # On v2 the top, where the launcher's own cgroup has processes of others (a login session's).
    found = {Path(mount, path, f"stockade-{ready[-1]}") for mount in mounts for path in own | {""}}
    return {(str(path), path.stat().st_ino) for path in found if path.is_dir()}


def is_launcher_of(state: Path, pid: str) -> bool:
    """Whether a process is the launcher, not a child of it, of this state directory."""
    try:
        parent = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]
    except OSError:
        return False
    line = command_line(pid)
    return f"--socket {state}/run/" in line and " up " in command_line(parent)


def still_there(cgroups: set[tuple[str, int]]) -> list[str]:
    return [path for path, inode in cgroups if Path(path).exists() and Path(path).stat().st_ino == inode]
