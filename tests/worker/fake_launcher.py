"""A launcher without isolation: it speaks the protocol and runs the program as a plain child process.

For tests that are about the worker and not about the sandbox.
"""

import contextlib
import os
import select
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from worker.sandbox import wire

USAGE = {
    "cpu_time": 0.01,
    "cpu_user": 0.01,
    "cpu_system": 0.0,
    "cpu_throttled": 0.0,
    "memory": 1 << 20,
    "pids": 1,
    "pids_refused": 0,
    "disk": 0,
    "disk_inodes": 0,
    "io_read_bytes": 0,
    "io_write_bytes": 0,
}
ISOLATION = {
    "cgroup": "v2",
    "namespaces": [],
    "user_namespace": {"base": 100_000, "size": 65_536},
    "seccomp": {"profile": "default", "sha256": "0" * 64},
    "capabilities": [],
    "no_new_privs": True,
    "image": "host",
    "image_note": None,
    "kernel": "fake",
}


class FakeLauncher:
    """Serves its socket from threads until it is closed; counts what it was asked to run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.plans: list[dict[str, Any]] = []
        """Every plan that it ran, in order."""
        self.fail: dict[str, Any] | None = None
        """A `failed` message to answer each plan with, instead of running it."""
        self.images: dict[str, dict[str, Any]] = {}
        """What is recorded of each image that it has, by digest."""
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.bind(str(path))
        self._listener.listen(64)
        self._connections: list[socket.socket] = []
        threading.Thread(target=self._serve, daemon=True).start()

    def __enter__(self) -> "FakeLauncher":
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Be gone, and kill what runs, as the launcher does."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.path.unlink(missing_ok=True)
        for connection in self._connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self._connections.append(connection)
                threading.Thread(target=self._job, args=(connection,), daemon=True).start()

    def _job(self, connection: socket.socket) -> None:
        workspace = tempfile.mkdtemp(prefix="fake-workspace-")
        try:
            with connection, contextlib.suppress(OSError, wire.WireError):
                while True:
                    message, fds = wire.receive(connection)
                    if message is None:
                        return
                    self._handle(connection, message, fds, Path(workspace))
        finally:
            shutil.rmtree(workspace, ignore_errors=True)

    def _handle(
        self, connection: socket.socket, message: dict[str, Any], fds: list[int], workspace: Path
    ) -> None:
        if message["op"] == "run":
            try:
                self.plans.append(message)
                if self.fail:
                    wire.send(connection, self.fail)
                    return
                if len(fds) == 4:
                    _unpack(fds[3], workspace)
                process = _start(message, fds, workspace)
            finally:
                wire.close_all(fds)
            wire.send(connection, _await(connection, process, message["limits"]["wall_time"]))
        elif message["op"] == "about":
            wire.send(
                connection, {"op": "about", "cgroup": "v2", "kernel": "6.1.0", "images": {"host": "host"}}
            )
        elif message["op"] == "image":
            wire.send(connection, {"op": "image", "image": self.images.get(message["image"])})
        elif message["op"] == "collect":
            _collect(connection, message, workspace)


def _unpack(descriptor: int, workspace: Path) -> None:
    packed = os.pread(descriptor, 1 << 24, 0)
    while packed:
        length, mode, size = struct.unpack_from("<HIQ", packed)
        start = struct.calcsize("<HIQ")
        path = workspace / packed[start : start + length].decode()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(packed[start + length : start + length + size])
        path.chmod(mode)
        packed = packed[start + length + size :]


def _start(plan: dict[str, Any], fds: list[int], workspace: Path) -> subprocess.Popen[bytes] | int:
    try:
        return subprocess.Popen(
            plan["argv"],
            stdin=fds[0],
            stdout=fds[1],
            stderr=fds[2],
            env=plan["env"],
            cwd=workspace,
            start_new_session=True,
        )
    except OSError as error:
        return error.errno or 0


def _await(
    connection: socket.socket, process: subprocess.Popen[bytes] | int, wall_time: float
) -> dict[str, Any]:
    begun, killed, gone = time.monotonic(), None, False
    if isinstance(process, int):
        return _ended(None, process, None, 0.0, wall_time)
    while process.poll() is None:
        if time.monotonic() - begun > wall_time:
            killed = killed or "wall_time"
            os.killpg(process.pid, signal.SIGKILL)
        readable, _, _ = select.select([] if gone else [connection], [], [], 0.005)
        if readable:
            message, _ = wire.receive(connection)
            gone = message is None
            killed = killed or (message["reason"] if message else "cancelled")
            os.killpg(process.pid, signal.SIGKILL)
    return _ended(process.returncode, None, killed, time.monotonic() - begun, wall_time)


def _ended(
    status: int | None, error: int | None, killed: str | None, wall: float, most: float
) -> dict[str, Any]:
    evidence = [{"limit": "wall_time", "value": most, "observed": wall, "where": "CLOCK_MONOTONIC"}]
    return {
        "op": "ended",
        "exit_code": status if status is not None and status >= 0 else None,
        "signal": -status if status is not None and status < 0 else None,
        "exec_errno": error,
        "killed": killed,
        "usage": USAGE | {"wall_time": wall},
        "evidence": evidence if killed == "wall_time" else [],
        "isolation": ISOLATION,
        "teardown": "clean",
    }


def _collect(connection: socket.socket, request: dict[str, Any], workspace: Path) -> None:
    errors = []
    for pattern in request["patterns"]:
        for path in sorted(workspace.glob(pattern)):
            name = str(path.relative_to(workspace))
            if not path.is_file():
                errors.append(
                    {"path": name, "error": "not_regular_file", "message": "It is no regular file."}
                )
                continue
            with path.open("rb") as content:
                state = os.fstat(content.fileno())
                found = {"op": "file", "path": name, "size": state.st_size, "mode": state.st_mode & 0o7777}
                wire.send(connection, found, (content.fileno(),))
    wire.send(connection, {"op": "collected", "errors": errors})
