"""An attempt can be stopped from any thread at any moment, and is never started after that."""

import threading

import pytest

from worker.sandbox.errors import SandboxError
from worker.stop import Reason, Stop, StoppedError, Stops


class Step:
    """A step that remembers what it was killed for."""

    def __init__(self, error: Exception | None = None) -> None:
        self.kills: list[str] = []
        self.error = error

    def kill(self, reason: str) -> None:
        self.kills.append(reason)
        if self.error:
            raise self.error


def test_running_step_is_killed() -> None:
    """A stop while a step runs kills it."""
    stop, step = Stop(), Step()
    stop.start(step, lambda: None)
    stop.ask(Reason.CANCELLED)
    assert step.kills == ["cancelled"]


def test_stop_between_steps_starts_no_other() -> None:
    """A stop between two steps kills nothing, and no step starts after it."""
    stop, step, started = Stop(), Step(), []
    stop.start(step, lambda: None)
    stop.ended()
    stop.ask(Reason.CANCELLED)
    with pytest.raises(StoppedError):
        stop.start(step, lambda: started.append(1))
    assert (step.kills, started) == ([], [])


def test_stop_during_start_is_not_lost() -> None:
    """A stop that comes while the step is being started kills it as soon as it has."""
    stop, step = Stop(), Step()
    asked = threading.Thread(target=lambda: stop.ask(Reason.CANCELLED))
    stop.start(step, asked.start)
    asked.join()
    assert step.kills == ["cancelled"]


def test_first_reason_counts() -> None:
    """An attempt that was cancelled stays cancelled when the worker goes down as well."""
    stop = Stop()
    stop.ask(Reason.CANCELLED)
    stop.ask(Reason.SHUTDOWN)
    assert stop.reason is Reason.CANCELLED


@pytest.mark.parametrize("reason", [Reason.LEASE_LOST, Reason.SHUTDOWN])
def test_step_that_we_stopped_has_no_result(reason: Reason) -> None:
    """A step that ended because we stopped it says nothing about the job."""
    stop = Stop()
    stop.start(Step(), lambda: None)
    stop.ask(reason)
    with pytest.raises(StoppedError) as stopped:
        stop.ended()
    assert stopped.value.reason is reason


def test_launcher_that_is_gone_is_no_error() -> None:
    """To kill a step whose launcher is gone is nothing to the one who asks."""
    stop = Stop()
    stop.start(Step(SandboxError("launcher")), lambda: None)
    stop.ask(Reason.CANCELLED)


def test_duplicate_has_no_switch() -> None:
    """An attempt that this process has already is recognised; another attempt of the job is not that."""
    stops = Stops()
    with stops.of("job_1", 1) as first, stops.of("job_1", 1) as again, stops.of("job_1", 2) as next_:
        assert first is not None
        assert again is None
        assert next_ is not None
    with stops.of("job_1", 1) as later:
        assert later is not None


def test_everything_stops_and_so_does_what_comes_after() -> None:
    """When the worker goes down, what it still takes stops before it starts."""
    stops = Stops()
    with stops.of("job_1", 1) as one:
        stops.ask_all(Reason.SHUTDOWN)
        assert one is not None
        assert one.reason is Reason.SHUTDOWN
    with stops.of("job_2", 1) as two:
        assert two is not None
        assert two.reason is Reason.SHUTDOWN
