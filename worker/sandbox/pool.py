"""Sandboxes made ahead of demand, each for one step of one job.

*Built* ones have the file system of the usual image as well and serve jobs of a single step; *bare* ones wait for a
room, for jobs whose workspace outlives a step and for other images. Refilled when the launcher has nothing else to do.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from worker.sandbox.errors import SandboxError
from worker.sandbox.sandbox import Room, Sandbox

if TYPE_CHECKING:
    from worker.sandbox.launcher import Launcher
    from worker.sandbox.session import Session


class Pool:
    """Asked for by ``want``; answered through ``Launcher.begin``, at once or when the zygote has made one."""

    def __init__(self, launcher: Launcher, size: int) -> None:
        self._launcher, self._size = launcher, size
        self._image = launcher.host.usual
        self._built: deque[Sandbox] = deque()
        self._bare: deque[Sandbox] = deque()
        self._unborn: deque[Sandbox] = deque()
        self._wanting: deque[tuple[Session, str, Room | None]] = deque()

    @property
    def hungry(self) -> bool:
        """Whether to ``refill`` now: while jobs run, making more would take the processors from them, so then
        only the last one is replaced."""
        ready = len(self._built) + len(self._bare) + len(self._unborn) - len(self._wanting)
        return ready < (min(1, self._size) if self._launcher.busy else self._size)

    def refill(self) -> None:
        """Ask for one more sandbox."""
        try:
            self._unborn.append(Sandbox(self._launcher.host, self._launcher.new_name()))
        except (SandboxError, OSError) as problem:
            self._give_up(problem)

    def _give_up(self, problem: Exception) -> None:
        # Jobs still ask for sandboxes of their own, and are told why there is none.
        from worker.sandbox.launcher import log

        log("prepare_failed", problem=str(problem))
        self._size = 0

    def want(self, session: Session, image: str, room: Room | None) -> None:
        """Give one to the session; ``SandboxError`` when none can be made."""
        if room is None and image == self._image and self._built:
            self._launcher.begin(self._built.popleft(), session)
        elif self._bare:
            self._give(self._bare.popleft(), session, image, room)
        else:
            self._wanting.append((session, image, room))
            if len(self._unborn) < len(self._wanting):
                try:
                    self._unborn.append(Sandbox(self._launcher.host, self._launcher.new_name()))
                except BaseException:
                    self._wanting.pop()
                    raise

    def _give(self, box: Sandbox, session: Session, image: str, room: Room | None) -> None:
        if room is None:
            try:
                room = self._launcher.make_room(image, keep=False)
            except SandboxError as problem:
                self._bare.append(box)
                session.on_no_sandbox(problem)
                return
        session.room = room
        self._launcher.begin(box, session)

    def on_born(self) -> None:
        """The zygote answers for the oldest one that was asked for."""
        box = self._unborn.popleft()
        try:
            box.born()
        except SandboxError as problem:
            if self._wanting:
                self._wanting.popleft()[0].on_no_sandbox(problem)
            else:
                self._give_up(problem)
            return
        if self._wanting:
            self._give(box, *self._wanting.popleft())
        elif self._image is not None and len(self._built) < max(1, self._size - 1):
            self._build(box, self._image)
        else:
            self._bare.append(box)

    def _build(self, box: Sandbox, image: str) -> None:
        try:
            box.build(self._launcher.make_room(image, keep=False), 0)
            self._built.append(box)
        except SandboxError:
            self._bare.append(box)

    def close(self) -> None:
        """Throw all of them away."""
        while self._unborn:
            self.on_born()
        for box in (*self._built, *self._bare):
            box.kill(None)
            box.reap()
            box.close()
            if box.room:
                self._launcher.drop_room(box.room)
