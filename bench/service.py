"""Jobs over HTTP, against a whole service that is started for it."""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bench import processes

CHECKOUT = Path(__file__).resolve().parents[1]
START_SECONDS = 60


PARTS = {
    "api": " -m api ",
    "worker": " -m worker ",
    "launcher": " -m worker.sandbox.launcher ",
    "valkey": "valkey-server",
}


@dataclass(frozen=True)
class Service:
    """A running `stockade up`: its process, port and key."""

    pid: int
    port: int
    key: str

    def cpu_seconds(self) -> dict[str, float]:
        """What each part of the service has used; sandboxes count with the launcher, which waits for them."""
        spent = {}
        for child in processes.children(self.pid):
            command = (processes.PROC / str(child) / "cmdline").read_text().replace("\0", " ")
            name = next(part for part, sign in PARTS.items() if sign in f"{command} ")
            spent[name] = processes.cpu_seconds(processes.tree(child))
        return spent

    def round(self, clients: int, jobs: int) -> tuple[list[float], float, dict[str, float]]:
        """Run jobs; seconds of each, of the round, of CPU per part (the load's own is left out)."""
        before = self.cpu_seconds()
        asked = {"port": self.port, "key": self.key, "clients": clients, "jobs": jobs}
        done = subprocess.run(
            [sys.executable, "-m", "bench.load"],
            cwd=CHECKOUT, input=json.dumps(asked), text=True, capture_output=True, check=False, timeout=600,
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(f"jobs over HTTP: {done.stderr.strip()[-2000:]}")
        answer = json.loads(done.stdout)
        cpu = {name: after - before[name] for name, after in self.cpu_seconds().items()}
        return answer["took"], answer["elapsed"], cpu


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def running() -> Iterator[Service]:
    """Start `stockade up` with a state directory of its own; stop it and remove the directory at the end."""
    state, port = Path(tempfile.mkdtemp(prefix="stockade-bench-")), free_port()
    command = [str(Path(sys.executable).with_name("stockade")), "up"]
    command += ["--state", str(state), "--listen", f"127.0.0.1:{port}"]
    up = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd="/")
    try:
        yield Service(up.pid, port, greeting(up))
    finally:
        up.send_signal(signal.SIGINT)
        try:
            up.communicate(timeout=60)
        finally:
            up.kill()
            shutil.rmtree(state, ignore_errors=True)


def greeting(up: subprocess.Popen[str]) -> str:
    """Wait until the service has said that it is ready; the key that it printed."""
    assert up.stdout is not None
    said = []
    signal.signal(signal.SIGALRM, lambda *_: os.kill(up.pid, signal.SIGTERM))
    signal.alarm(START_SECONDS)
    try:
        for line in up.stdout:
            said.append(line)
            if found := re.search(r"\bsk_[\w-]+", line):
                return found[0]
    finally:
        signal.alarm(0)
    raise RuntimeError(f"stockade up did not start:\n{''.join(said)}")
