"""Stopping attempts that run: cancelled, past their deadline, without a lease, or the worker goes down."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from enum import StrEnum
from typing import Protocol

from jobs.job import Attempt
from worker.sandbox.errors import SandboxError


class Reason(StrEnum):
    """Why an attempt is to stop."""

    CANCELLED = "cancelled"
    DEADLINE = "deadline"
    LEASE_LOST = "lease_lost"
    SHUTDOWN = "shutdown"

    @property
    def ours(self) -> bool:
        """Whether it says nothing about the job: it is to run again, or runs elsewhere already."""
        return self in (Reason.LEASE_LOST, Reason.SHUTDOWN)


class StoppedError(Exception):
    """The attempt was stopped, for `reason`."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason.value)
        self.reason = reason


class Killable(Protocol):
    """What a running step can be killed with: the launcher's session."""

    def kill(self, reason: str) -> None:
        """Ask for the death of the step that runs, if one does. From any thread."""


class Stop:
    """The switch of one attempt: any thread may ask it to stop, once and for good."""

    def __init__(self, reason: Reason | None = None) -> None:
        self._lock = threading.Lock()
        self._running: Killable | None = None
        self.reason = reason
        self.attempt: Attempt | None = None
        """What it stops, once that is claimed."""

    def ask(self, reason: Reason) -> None:
        """Stop the attempt: kill the step that runs and let no other start. The first reason counts."""
        with self._lock:
            self.reason = self.reason or reason
            if self._running is not None:
                with contextlib.suppress(SandboxError):  # the launcher is gone, and the step with it
                    self._running.kill("cancelled")

    def guard(self) -> None:
        """Raise StoppedError when the attempt is to stop."""
        if self.reason is not None:
            raise StoppedError(self.reason)

    def start(self, step: Killable, start: Callable[[], None]) -> None:
        """Start a step unless the attempt is to stop, so that no `ask` falls between the two.

        Raises StoppedError.
        """
        with self._lock:
            self.guard()
            start()
            self._running = step

    def ended(self) -> None:
        """The step has ended. Raises StoppedError when the attempt is to stop for a reason of ours."""
        with self._lock:
            self._running = None
            if self.reason is not None and self.reason.ours:
                self.guard()


class Stops:
    """The switches of all attempts in this process, by job id and number."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._stops: dict[tuple[str, int], Stop] = {}
        self._everything: Reason | None = None

    @contextlib.contextmanager
    def of(self, job_id: str, number: int) -> Iterator[Stop | None]:
        """The switch of an attempt while the block runs; None when this process has it (a duplicate)."""
        key = job_id, number
        with self._lock:
            stop = None
            if key not in self._stops:
                stop = self._stops[key] = Stop(self._everything)
        try:
            yield stop
        finally:
            if stop is not None:
                with self._lock:
                    del self._stops[key]

    def running(self) -> list[tuple[Attempt, Stop]]:
        """The attempts that this process has claimed and not ended, with their switches."""
        with self._lock:
            return [(stop.attempt, stop) for stop in self._stops.values() if stop.attempt is not None]

    def ask(self, job_id: str, reason: Reason) -> None:
        """Stop what this process runs of a job, if anything."""
        with self._lock:
            stops = [stop for (each, _), stop in self._stops.items() if each == job_id]
        for stop in stops:
            stop.ask(reason)

    def ask_all(self, reason: Reason) -> None:
        """Stop everything that this process runs or is still to run."""
        with self._lock:
            self._everything = reason
            stops = list(self._stops.values())
        for stop in stops:
            stop.ask(reason)
