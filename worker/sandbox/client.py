"""A peer's side of the launcher: one ``Session`` is one job. Unprivileged; standard library only."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from worker.sandbox import wire
from worker.sandbox.errors import SandboxError


@dataclass(frozen=True, slots=True)
class CollectedFile:
    """An output file: path in the workspace, size in bytes, mode, and a descriptor that the receiver closes."""

    path: str
    size: int
    mode: int
    fd: int


class Session:
    """A connection to the launcher. Leaving the ``with`` block kills and releases everything of the job."""

    def __init__(self, launcher: str | socket.socket) -> None:
        """launcher: path of its socket, or a socket that is connected already."""
        if isinstance(launcher, str):
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            try:
                self._socket.connect(launcher)
            except OSError as problem:
                self._socket.close()
                hint = "is the launcher running, and may this user connect to it?"
                raise SandboxError("connect", problem.errno or 0, launcher, hint) from problem
        else:
            self._socket = launcher
        wire.prepare(self._socket)

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def fileno(self) -> int:
        """For poll(2): readable when ``receive`` has an answer."""
        return self._socket.fileno()

    def run(
        self, plan: dict[str, Any], stdin: int, stdout: int, stderr: int, files: int | None = None
    ) -> None:
        """Ask for one step; the answer comes by ``receive``. The descriptors stay the caller's."""
        fds = (stdin, stdout, stderr) if files is None else (stdin, stdout, stderr, files)
        try:
            packet = wire.encode({**plan, "op": "run"})
        except wire.WireError as problem:
            raise SandboxError("message", errno.EMSGSIZE, "plan", str(problem)) from None
        self._send(packet, fds)

    def kill(self, reason: str) -> None:
        """Kill the running step; its answer tells ``reason`` (``output`` or ``cancelled``)."""
        self._send(wire.encode({"op": "kill", "reason": reason}))

    def about(self, timeout: float) -> dict[str, Any]:
        """What the launcher's host offers: ``cgroup`` (v1 or v2), ``kernel`` (its release), ``images`` (name to
        digest; of ``host`` its name).

        timeout: seconds after which a launcher that does not answer counts as gone.
        """
        self._socket.settimeout(timeout)
        self._send(wire.encode({"op": "about"}))
        answer = self.receive()
        self._socket.settimeout(None)
        if answer["op"] != "about":
            raise SandboxError("launcher", 0, "about", "it is of another version")
        return answer

    def receive(self) -> dict[str, Any]:
        """The next answer: ``ended``, or ``failed`` as a ``SandboxError``'s fields. Blocks until it is there."""
        message, fds = self._receive()
        wire.close_all(fds)
        return message

    def collect(
        self, patterns: list[str], max_files: int, max_bytes: int, errors: list[dict[str, str]]
    ) -> Iterator[CollectedFile]:
        """The workspace's regular files that match, one by one; what could not be had is added to ``errors``."""
        request = {"op": "collect", "patterns": patterns, "max_files": max_files, "max_bytes": max_bytes}
        self._send(wire.encode(request))
        while True:
            message, fds = self._receive()
            if message["op"] == "file":
                yield CollectedFile(message["path"], message["size"], message["mode"], fds[0])
                continue
            wire.close_all(fds)
            if message["op"] == "failed":
                raise SandboxError(message["step"], message["errno"], message["subject"], message["hint"])
            errors.extend(message["errors"])
            return

    def image(self, image: str) -> dict[str, Any] | None:
        """What the launcher's host has recorded of an image, by its name or digest; None when it is not there."""
        self._send(wire.encode({"op": "image", "image": image}))
        found: dict[str, Any] | None = self._answer()["image"]
        return found

    def _answer(self) -> dict[str, Any]:
        message = self.receive()
        if message["op"] == "failed":
            raise SandboxError(message["step"], message["errno"], message["subject"], message["hint"])
        return message

    def close(self) -> None:
        """End the job: the launcher kills and releases everything of it."""
        self._socket.close()

    def _send(self, packet: bytes, fds: tuple[int, ...] = ()) -> None:
        try:
            wire.send(self._socket, packet, fds)
        except OSError as problem:
            raise SandboxError(
                "launcher", problem.errno or 0, "connection", "the launcher is gone"
            ) from problem

    def _receive(self) -> tuple[dict[str, Any], list[int]]:
        try:
            message, fds = wire.receive(self._socket)
        except OSError as problem:
            raise SandboxError(
                "launcher", problem.errno or 0, "connection", "the launcher is gone"
            ) from problem
        if message is None:
            raise SandboxError("launcher", 0, "connection", "the launcher is gone")
        return message, fds
