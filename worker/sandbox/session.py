"""One connection of a peer: one job, its steps one after the other over one workspace."""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import stat
from typing import TYPE_CHECKING, Any

from worker.sandbox import confined, plan, wire
from worker.sandbox.errors import SandboxError
from worker.sandbox.sandbox import Room, Sandbox

if TYPE_CHECKING:
    from worker.sandbox.launcher import Launcher


class Session:
    """States: idle, a sandbox running, or a confined child (collect, clean) at work."""

    def __init__(self, launcher: Launcher, connection: socket.socket) -> None:
        self._launcher, self._connection = launcher, connection
        self._sandbox: Sandbox | None = None
        self._child: tuple[int, int] | None = None
        self._answer: dict[str, Any] | None = None
        self.room: Room | None = None
        self._plan: plan.Plan | None = None
        self._fds: list[int] = []
        self._doomed: str | None = None
        self._step, self._gone, self._quarantine = 0, False, False
        launcher.watch(connection.fileno(), self._on_message)

    # --- messages of the peer

    def _on_message(self) -> None:
        try:
            message, fds = wire.receive(self._connection)
        except (wire.WireError, OSError) as problem:
            self._refuse(SandboxError("message", subject=str(problem)))
            self._leave()
            return
        if message is None:
            self._leave()
            return
        try:
            self._handle(message, fds)
        except SandboxError as problem:
            self._refuse(problem)
        except OSError as problem:
            self._refuse(
                SandboxError(str(message.get("op")), problem.errno or 0, str(problem.filename or ""))
            )
        except Exception as problem:
            # One peer's nonsense, or a mistake of ours that it found, ends one session and not the launcher.
            self._refuse(SandboxError("message", subject=f"{type(problem).__name__}: {problem}"))
            self._leave()
        finally:
            wire.close_all(fds)

    def _handle(self, message: dict[str, Any], fds: list[int]) -> None:
        match message.get("op"):
            case "run":
                self._run(message, fds)
            case "kill":
                reason = message.get("reason")
                if reason not in ("output", "cancelled"):
                    raise SandboxError("message", subject=f"reason {reason!r}", hint="output or cancelled")
                if self._sandbox:
                    self._sandbox.kill(reason)
                elif self._fds:
                    self._doomed = reason
            case "collect":
                self._collect(message)
            case "about":
                self._must_be_idle()
                self._send({"op": "about", **self._launcher.about})
            case "image":
                self._must_be_idle()
                self._send({"op": "image", "image": self._launcher.images.find(plan.text(message, "image"))})
            case other:
                hint = "run, kill, collect, about or image"
                raise SandboxError("message", subject=f"op {other!r}", hint=hint)

    def _run(self, message: dict[str, Any], fds: list[int]) -> None:
        launcher = self._launcher
        self._must_be_idle()
        if len(fds) not in (3, 4) or (len(fds) == 4 and self._step):
            raise SandboxError(
                "message", subject="descriptors", hint="stdin, stdout, stderr; files with step 0"
            )
        if any(_is_door(fd) for fd in fds):
            raise SandboxError("message", subject="descriptors", hint="files, pipes, sockets or terminals")
        wanted = plan.parse(message, launcher.ceilings, launcher.host.programs, launcher.images)
        if self.room is None and wanted.keep:
            self.room = launcher.make_room(wanted.image, keep=True)
        self._plan, self._fds = wanted, [os.dup(fd) for fd in fds]
        launcher.want(self, wanted.image, self.room)

    def on_sandbox(self, box: Sandbox) -> None:
        """A sandbox is there for the step that was asked for."""
        wanted, fds, step = self._plan, self._fds, self._step
        assert wanted is not None
        if self._gone:
            self._doomed = "cancelled"
        self._sandbox, self._fds, self._step = box, [], step + 1
        try:
            room = box.room or self.room
            assert room is not None
            self.room = room
            caps = room.workspace.caps(wanted.limits, step)
            if box.room is None:
                box.build(room, step)
            box.start(wanted, step, caps, fds)
            if self._doomed:
                box.kill(self._doomed)
        except SandboxError as problem:
            box.facts.failed = problem.as_message()
            box.kill(None)
        finally:
            self._doomed = None
            wire.close_all(fds)

    def on_no_sandbox(self, problem: SandboxError) -> None:
        """There will be none."""
        wire.close_all(self._fds)
        self._fds, self._doomed = [], None
        if self._gone:
            self._release()
        else:
            self._refuse(problem)

    def _must_be_idle(self) -> None:
        if self._sandbox or self._child or self._fds:
            raise SandboxError("message", subject="op", hint="wait for the answer to the one before")

    def _collect(self, message: dict[str, Any]) -> None:
        self._must_be_idle()
        patterns, files, size = (message.get(key) for key in ("patterns", "max_files", "max_bytes"))
        if (
            not isinstance(patterns, list)
            or not all(isinstance(each, str) and each and "\0" not in each for each in patterns)
            or type(files) is not int
            or type(size) is not int
            or self.room is None
            or self._plan is None
        ):
            raise SandboxError(
                "message", subject="collect", hint="patterns, max_files, max_bytes, after a run"
            )
        owner, connection = self.room.ids.base + self._plan.user, self._connection
        self._start_child(
            owner, connection, lambda: confined.collect(connection, tuple(patterns), files, size)
        )

    # --- confined children

    def _start_child(self, owner: int, keep: socket.socket | None, work: Any) -> None:
        assert self.room is not None
        self._child = confined.fork(self.room.workspace.directory, owner, keep, work)
        # One thing at a time: what the peer says next waits, and so does the news that it is gone.
        self._launcher.unwatch(self._connection.fileno())
        self._launcher.watch(self._child[1], self._on_child)

    def _on_child(self) -> None:
        assert self._child is not None
        _, pidfd = self._child
        self._launcher.unwatch(pidfd)
        ended = os.waitid(os.P_PIDFD, pidfd, os.WEXITED)
        os.close(pidfd)
        self._child = None
        answer, self._answer = self._answer, None
        if self._gone:
            self._release()
            return
        self._launcher.watch(self._connection.fileno(), self._on_message)
        if ended is None or ended.si_code != os.CLD_EXITED or ended.si_status:
            self._refuse(SandboxError("collect" if answer is None else "clean", subject="workspace"))
        elif answer is not None:
            self._send(answer)

    # --- the sandbox's end

    def on_sandbox_end(self, stuck: bool = False) -> None:
        """Called when every process of the running sandbox is gone, or when it is given up."""
        box, wanted = self._sandbox, self._plan
        assert box and wanted
        self._sandbox = None
        if not stuck:
            box.reap()
        try:
            answer = box.result(stuck)
        except OSError as problem:
            answer = SandboxError("usage", problem.errno or 0, box.name).as_message()
        self._quarantine |= stuck
        if not self._gone and (stuck or not wanted.keep):
            # At once: nothing that follows concerns the peer.
            self._send(answer)
            self._launcher.drop_sandbox(box)
            return
        self._launcher.drop_sandbox(box)
        if self._gone:
            self._release()
        else:
            self._answer = answer
            names = tuple(f"{kind}-{self._step - 1}" for kind in ("up", "ovl", "shm"))
            try:
                self._start_child(0, None, lambda: confined.clean(names))
            except OSError as problem:
                self._answer = None
                self._refuse(SandboxError("clean", problem.errno or 0, "workspace"))

    # --- the peer's end

    def _send(self, answer: dict[str, Any]) -> None:
        # A peer that does not read its answers is as good as gone; nobody waits for it.
        try:
            wire.send(self._connection, answer, flags=socket.MSG_DONTWAIT)
        except (OSError, wire.WireError):
            self._leave()

    def _refuse(self, problem: SandboxError) -> None:
        self._send(problem.as_message())

    def _leave(self) -> None:
        """The peer is gone: kill what it has running; what remains is released when that is dead."""
        if self._gone:
            return
        self._gone = True
        if self._child:
            signal.pidfd_send_signal(self._child[1], signal.SIGKILL)
        else:
            self._launcher.unwatch(self._connection.fileno())
        self._connection.close()
        if self._sandbox:
            self._sandbox.kill("cancelled")
        elif not self._child and not self._fds:
            self._release()

    def close(self) -> None:
        """End the session from our side (the launcher stops)."""
        self._leave()

    def _release(self) -> None:
        if self.room:
            self._launcher.drop_room(self.room, self._quarantine)
        self._launcher.forget(self)


def _is_door(fd: int) -> bool:
    """Whether other files can be reached through the descriptor: a directory, or one that is a path only."""
    return bool(fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_PATH) or stat.S_ISDIR(os.fstat(fd).st_mode)
