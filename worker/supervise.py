"""Supervision of one step: its output read while it runs, its end awaited, its limits on output watched.

The launcher owns the step and its deadline. The worker holds the read ends of two pipes and the session, and
sleeps in one poll(2) over the three. What is over the limit is read and dropped, so that the program goes
on; but slowly, because the reading is not charged to the job.
"""

import os
import select
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from jobs.job_event import Stream
from worker.capture import Capture
from worker.sandbox.client import Session
from worker.sandbox.errors import SandboxError
from worker.stop import Stop

CHUNK = 64 * 1024
"""Bytes read at once: what a pipe holds (pipe(7))."""
DROP_PAUSE = 0.00005
"""Seconds to wait after each chunk that is dropped: some 500 MB/s, at a fifth of a core."""
LAUNCHER_GRACE = 30.0
"""Seconds over the step's own wall_time after which a silent launcher counts as broken."""
DRAIN_GRACE = 1.0
"""Seconds to wait for the end of the pipes of a step that is dead; one that will not die may hold them."""

Heard = Callable[[Stream, bytes], None]
"""Is told each chunk as it is read, and must not block: the reading waits for it."""

_READY = select.POLLIN | select.POLLHUP | select.POLLERR


@dataclass(frozen=True)
class Ended:
    """How a step ended: the launcher's report, and its output."""

    report: dict[str, Any]
    stdout: Capture
    stderr: Capture


class _Pipes:
    """The pipes of one step's stdout and stderr: write ends for the launcher, read ends for us."""

    def __init__(self, limit: int, heard: Heard) -> None:
        self.stdout, self.stderr = Capture(limit), Capture(limit)
        self.captures: dict[int, Capture] = {}
        self.write_ends: list[int] = []
        self._heard = heard
        self._streams: dict[int, Stream] = {}
        for stream, capture in ((Stream.STDOUT, self.stdout), (Stream.STDERR, self.stderr)):
            reading, writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
            os.set_blocking(writing, True)  # the program's end, which it expects to block
            self.captures[reading], self._streams[reading] = capture, stream
            self.write_ends.append(writing)

    def __enter__(self) -> "_Pipes":
        return self

    def __exit__(self, *_: object) -> None:
        self.close_write_ends()
        while self.captures:
            os.close(self.captures.popitem()[0])

    def close_write_ends(self) -> None:
        while self.write_ends:
            os.close(self.write_ends.pop())

    @property
    def over(self) -> bool:
        return self.stdout.over or self.stderr.over

    def read(self, pipe: int) -> None:
        """Take what is there; forget the pipe at its end."""
        try:
            chunk = os.read(pipe, CHUNK)
        except BlockingIOError:
            return
        if not chunk:
            del self.captures[pipe]
            os.close(pipe)
            return
        capture = self.captures[pipe]
        dropping = capture.over
        capture.feed(chunk)
        self._heard(self._streams[pipe], chunk)
        if dropping:
            time.sleep(DROP_PAUSE)


def supervise(
    session: Session,
    plan: dict[str, Any],
    descriptors: tuple[int, int | None],
    output: int,
    kill: bool,
    stop: Stop,
    heard: Heard = lambda stream, chunk: None,
) -> Ended:
    """Run one step to its end.

    Args:
        session: the job's connection to the launcher.
        plan: the step, as the launcher takes it.
        descriptors: the step's standard input, and the files of the workspace for a first step that has any.
        output: bytes to keep of each stream.
        kill: whether to have the step killed when a stream passes that.
        stop: the attempt's switch.
        heard: is told what is read.

    Raises:
        SandboxError: the launcher failed, or is gone, or says nothing.
        StoppedError: the attempt is to stop.
    """
    stdin, files = descriptors
    with _Pipes(output, heard) as pipes:
        ends = pipes.write_ends
        stop.start(session, lambda: session.run(plan, stdin, ends[0], ends[1], files))
        pipes.close_write_ends()
        deadline = time.monotonic() + plan["limits"]["wall_time"] + LAUNCHER_GRACE
        try:
            report = _watch(session, pipes, deadline, kill)
        finally:
            stop.ended()
        _drain(pipes)
        return Ended(report, pipes.stdout, pipes.stderr)


def _watch(session: Session, pipes: _Pipes, deadline: float, kill: bool) -> dict[str, Any]:
    """Read the pipes until the launcher reports the step's end."""
    wanted = kill
    poll = _poll_of(*pipes.captures, session.fileno())
    while True:
        ready = poll(deadline)
        if not ready:
            raise SandboxError("launcher", 0, "connection", "it did not report the step's end in time")
        for descriptor in ready:
            if descriptor in pipes.captures:
                pipes.read(descriptor)
                if descriptor not in pipes.captures:
                    poll = _poll_of(*pipes.captures, session.fileno())
            elif descriptor == session.fileno():
                return _report(session.receive())
        if wanted and pipes.over:
            session.kill("output")
            wanted = False


def _drain(pipes: _Pipes) -> None:
    """Read what the step wrote last; its writers are dead, so the end of each pipe is there or near."""
    deadline = time.monotonic() + DRAIN_GRACE
    while pipes.captures:
        ready = _poll_of(*pipes.captures)(deadline)
        if not ready:
            return
        for pipe in ready:
            pipes.read(pipe)


def _report(message: dict[str, Any]) -> dict[str, Any]:
    if message["op"] == "failed":
        raise SandboxError(message["step"], message["errno"], message["subject"], message["hint"])
    return message


def _poll_of(*descriptors: int) -> Callable[[float], list[int]]:
    """A function that waits until one of them is ready or a time of the monotonic clock has come."""
    poll = select.poll()
    for descriptor in descriptors:
        poll.register(descriptor, _READY)

    def wait(deadline: float) -> list[int]:
        left = max(0.0, deadline - time.monotonic())
        return [descriptor for descriptor, _ in poll.poll(left * 1000)]

    return wait
