"""Run programs in real sandboxes from a test: one launcher, and jobs that are data in, data out."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests import census
from tests.census import SLOWDOWN

PROJECT = Path(__file__).resolve().parents[1]
MiB = 1 << 20
PREPARED = 2

LIMITS: dict[str, float] = {
    "cpus": 1.0,
    "memory": 256 * MiB,
    "pids": 64,
    "cpu_time": 20.0 * SLOWDOWN,
    "wall_time": 20.0 * SLOWDOWN,
    "disk": 64 * MiB,
    "disk_inodes": 16384,
    "open_files": 256,
    "file_size": 64 * MiB,
    "stack": 8 * MiB,
}
CAPABILITIES = ["CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "NET_BIND_SERVICE"]
ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/work",
    "LANG": "C.UTF-8",
}

PRELUDE = """
import ctypes, errno, fcntl, json, os, resource, signal, socket, struct, sys, threading, time
_libc = ctypes.CDLL(None, use_errno=True)
def sc(number, *arguments):
    "A system call by number: its result, or the name of its errno."
    given = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    _libc.syscall.restype = ctypes.c_long
    result = _libc.syscall(ctypes.c_long(number), *given)
    return result if result >= 0 else errno.errorcode.get(ctypes.get_errno(), ctypes.get_errno())
def tried(action, *arguments, **named):
    "'ok', or the name of the errno with which the action failed."
    try:
        action(*arguments, **named)
    except OSError as error:
        return errno.errorcode.get(error.errno, error.errno)
    return "ok"
def content(path, flags=os.O_RDONLY):
    "What a file holds, or the name of the errno that opening or reading it gives."
    try:
        descriptor = os.open(path, flags | os.O_NONBLOCK)
        try:
            return os.read(descriptor, 65536).decode("latin-1")
        finally:
            os.close(descriptor)
    except OSError as error:
        return errno.errorcode[error.errno]
def say(value):
    print(json.dumps(value), flush=True)
"""


@dataclass(frozen=True)
class Ran:
    """What became of one step: the launcher's message and every byte that the program wrote."""

    ended: dict[str, Any]
    stdout: bytes
    stderr: bytes
    seconds: float

    @property
    def said(self) -> Any:
        """The value that the program's ``say`` printed last."""
        lines = self.stdout.decode().strip().splitlines()
        assert lines, f"the program said nothing: {self.ended} {self.stderr.decode(errors='replace')}"
        return json.loads(lines[-1])

    def evidence(self, limit: str) -> list[dict[str, Any]]:
        """The facts that the launcher gave about one limit."""
        return [fact for fact in self.ended["evidence"] if fact["limit"] == limit]

    def assert_succeeded(self) -> Ran:
        """The program ran to its end and exited 0."""
        detail = f"{self.ended}\n{self.stdout[-2000:]!r}\n{self.stderr[-4000:].decode(errors='replace')}"
        assert self.ended.get("op") == "ended", detail
        assert (self.ended["exit_code"], self.ended["killed"]) == (0, None), detail
        assert self.ended["teardown"] == "clean", detail
        return self

    def assert_killed(self, reason: str) -> None:
        """The step was stopped for ``reason``, cleanly, and the evidence says so."""
        assert self.ended.get("op") == "ended", self.ended
        assert self.ended["killed"] == reason, (self.ended, self.stderr[-2000:])
        assert self.ended["teardown"] == "clean"
        (fact,) = self.evidence(reason)
        assert fact["observed"]
        assert fact["where"]


def sealed(content: bytes) -> int:
    """A read-only descriptor of a sealed memory file, as the worker makes for standard input."""
    writable = os.memfd_create("stdin", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        view = memoryview(content)
        while view:
            view = view[os.write(writable, view) :]
        fcntl.fcntl(writable, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK)
        return os.open(f"/proc/self/fd/{writable}", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(writable)


def packed(files: Mapping[str, bytes | tuple[bytes, int]]) -> bytes:
    """Files for the workspace as the launcher takes them; a value may be (content, mode)."""
    parts = []
    for path, value in files.items():
        data, mode = value if isinstance(value, tuple) else (value, 0o644)
        name = os.fsencode(path)
        parts += [struct.pack("<HIQ", len(name), mode, len(data)), name, data]
    return b"".join(parts)


def argv_of(program: str | Sequence[str]) -> list[str]:
    """A text is Python source, run isolated inside the sandbox; a list is the argv itself."""
    if isinstance(program, str):
        return ["/usr/bin/python3", "-I", "-c", PRELUDE + program]
    return list(program)


class Job:
    """One connection to the launcher: steps over one workspace. Closing it kills and releases everything."""

    def __init__(self, socket_path: Path) -> None:
        from worker.sandbox.client import Session

        self.session = Session(str(socket_path))
        self._pipes: dict[int, str] = {}
        self._kept = {"stdout": bytearray(), "stderr": bytearray()}
        self._begin = 0.0
        self._allowed = 0.0

    def __enter__(self) -> Job:
        self.session.__enter__()
        return self

    def __exit__(self, *problem: object) -> None:
        for pipe in self._pipes:
            os.close(pipe)
        self._pipes.clear()
        self.session.__exit__(*problem)

    def start(
        self,
        program: str | Sequence[str],
        *,
        stdin: bytes = b"",
        files: Mapping[str, bytes | tuple[bytes, int]] | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str = "/work",
        user: int = 0,
        capabilities: Sequence[str] = CAPABILITIES,
        plan: Mapping[str, Any] | None = None,
        **limits: float,
    ) -> Job:
        """Send one step and return at once. ``plan`` replaces fields of the plan, ``limits`` of its
        limits.
        """
        message = {
            "image": "host",
            "argv": argv_of(program),
            "env": ENVIRONMENT | dict(env or {}),
            "cwd": cwd,
            "user": user,
            "hostname": "sandbox",
            "syscalls": "default",
            "capabilities": list(capabilities),
            "limits": LIMITS | limits,
        } | dict(plan or {})
        self._kept = {"stdout": bytearray(), "stderr": bytearray()}
        self._allowed = float(message["limits"].get("wall_time", 0)) + 20 * SLOWDOWN
        self._begin = time.monotonic()
        given = [sealed(stdin)]
        try:
            for name in ("stdout", "stderr"):
                reading, writing = os.pipe2(os.O_CLOEXEC)
                given.append(writing)
                self._pipes[reading] = name
            if files is not None:
                given.append(sealed(packed(files)))
            self.session.run(message, given[0], given[1], given[2], given[3] if files is not None else None)
        finally:
            for descriptor in given:
                os.close(descriptor)
        return self

    def _pump(self, timeout: float) -> dict[str, Any] | None:
        """Move what has been written; returns the launcher's message when one has come."""
        poll = select.poll()
        poll.register(self.session.fileno(), select.POLLIN)
        for pipe in self._pipes:
            poll.register(pipe, select.POLLIN)
        ready = {descriptor for descriptor, _ in poll.poll(timeout * 1000)}
        for pipe in ready & set(self._pipes):
            chunk = os.read(pipe, 65536)
            if chunk:
                self._kept[self._pipes[pipe]] += chunk
            else:
                os.close(pipe)
                del self._pipes[pipe]
        if self.session.fileno() in ready:
            return dict(self.session.receive())
        return None

    def line(self, number: int = 0) -> Any:
        """Wait for the step's output line ``number`` and return the value that ``say`` printed there."""
        end = time.monotonic() + self._allowed
        while self._kept["stdout"].count(b"\n") <= number:
            assert time.monotonic() < end, f"no line {number} from the program: {self._kept}"
            ended = self._pump(0.1)
            assert ended is None, f"ended before line {number}: {ended} {self._kept}"
        return json.loads(bytes(self._kept["stdout"]).split(b"\n")[number])

    def written(self, stream: str = "stdout") -> int:
        """Bytes received from the step so far."""
        return len(self._kept[stream])

    def pump_until(self, enough: int) -> None:
        """Read until the step wrote ``enough`` bytes of standard output."""
        end = time.monotonic() + self._allowed
        while self.written() < enough:
            assert time.monotonic() < end
            assert self._pump(0.1) is None

    def wait(self) -> Ran:
        """Drain both pipes to their end and return what became of the step."""
        end = time.monotonic() + self._allowed
        ended = None
        while ended is None:
            assert time.monotonic() < end, f"no end of the step: {bytes(self._kept['stderr'][-2000:])!r}"
            ended = self._pump(0.2)
        seconds = time.monotonic() - self._begin
        while self._pipes:
            assert time.monotonic() < end, "the step has ended and somebody still holds its output open"
            self._pump(0.2)
        return Ran(ended, bytes(self._kept["stdout"]), bytes(self._kept["stderr"]), seconds)

    def run(self, program: str | Sequence[str], **options: Any) -> Ran:
        """Start one step and wait for its end."""
        return self.start(program, **options).wait()

    def collect(
        self, patterns: Iterable[str], max_files: int = 100, max_bytes: int = MiB
    ) -> tuple[dict[str, bytes], list[dict[str, Any]]]:
        """Fetch files of the workspace: {path: content} and the launcher's list of errors."""
        found: dict[str, bytes] = {}
        errors: list[dict[str, Any]] = []
        for file in self.session.collect(list(patterns), max_files, max_bytes, errors):
            with os.fdopen(file.fd, "rb") as content:
                found[file.path] = content.read(max_bytes + 1)
        return found, errors


class Launcher:
    """A launcher process of the test's own, from a copy of the code so that its hash is the launcher's
    alone.
    """

    def __init__(
        self,
        *,
        environment: Mapping[str, str] | None = None,
        plant: int | None = None,
        open_files: int | None = None,
    ) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="stockade-hostile-"))
        self.source = self.directory / "code"
        for name in ("worker/__init__.py", "worker/sandbox", "policies/syscalls"):
            self._copy(name)
        self.state = self.directory / "state"
        self.state.mkdir(mode=0o700)
        self.socket = self.directory / "launcher.sock"
        self.log = self.directory / "log"
        self._environment, self._plant = dict(environment or {}), plant
        self._few = [] if open_files is None else ["prlimit", f"--nofile={open_files}"]
        self.process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                [
                    *self._few,
                    sys.executable,
                    "-m",
                    "worker.sandbox.launcher",
                    "--socket",
                    str(self.socket),
                    "--state",
                    str(self.state),
                    "--prepared",
                    str(PREPARED),
                    "--slowdown",
                    str(SLOWDOWN),
                ],
                cwd="/",
                env={
                    **os.environ,
                    "PYTHONPATH": str(self.source),
                    "PYTHONDONTWRITEBYTECODE": "1",
                    **self._environment,
                },
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=() if self._plant is None else (self._plant,),
            )
        end = time.monotonic() + 20 * SLOWDOWN
        while not self._answers():
            if process.poll() is not None or time.monotonic() > end:
                process.kill()
                process.wait()
                raise AssertionError(f"no launcher: {self.log.read_text()}")
            time.sleep(0.02)
        return process

    def _answers(self) -> bool:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe:
            return probe.connect_ex(str(self.socket)) == 0

    def revive(self) -> None:
        """Start it again when an attack has ended it, so that one defect is one failed test."""
        if self.process.poll() is not None:
            self.socket.unlink(missing_ok=True)
            self.process = self._start()
            self.warm_up()

    def _copy(self, name: str) -> None:
        target = self.source / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if (PROJECT / name).is_dir():
            shutil.copytree(PROJECT / name, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(PROJECT / name, target)

    def warm_up(self, slots: int = 14) -> None:
        """Run some jobs side by side: what the launcher keeps for later is there afterwards."""
        with contextlib.ExitStack() as stack:
            jobs = [stack.enter_context(self.job()) for _ in range(slots)]
            for job in jobs:
                job.start(["/bin/true"])
            for job in jobs:
                job.wait().assert_succeeded()

    def unchanged(self) -> AbstractContextManager[None]:
        """Assert that the host is after the block as it was before it."""
        return census.unchanged(self.process.pid, self.state, self.source)

    def job(self) -> Job:
        """A new connection."""
        return Job(self.socket)

    def run(self, program: str | Sequence[str], **options: Any) -> Ran:
        """One job of one step."""
        with self.job() as job:
            return job.run(program, **options)

    def pids(self) -> list[int]:
        """Host pids of everything of jobs that runs inside sandboxes now, lowest first."""
        below = census.descendants(self.process.pid)
        return [
            pid for pid in below if census.uid_of(pid) >= census.FIRST_JOB_UID and not census.is_ours(pid)
        ]

    def stop(self) -> None:
        """End the launcher as an operator does, and remove what is the test's own."""
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(20 * SLOWDOWN)
        finally:
            self.process.kill()
            self.process.wait()
            self.remove()

    def remove(self) -> None:
        """Remove the test's own files."""
        shutil.rmtree(self.directory)


def secret() -> str:
    """A text that is nowhere else on this host."""
    return f"sentinel-{uuid.uuid4().hex}"
