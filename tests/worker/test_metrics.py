"""What a worker counts of its attempts, and that it comes to Redis."""

from collections.abc import Mapping
from typing import Any

import pytest
from redis import Redis

from jobs.measures import MEASURES
from jobs.metrics import Metrics, metrics, stored
from jobs.settings import Settings
from jobs.store import Store
from tests.dispatch import open_window
from tests.worker.conftest import Submit, until
from tests.worker.fake_launcher import FakeLauncher
from worker import task
from worker.attempt import Workshop
from worker.keeper import Keeper
from worker.reaper import Reaper
from worker.stop import Reason, Stops
from worker.task import Runner

PHASES = {"claim", "admit", "session", "sandbox", "run", "collect", "finish"}


@pytest.fixture
def runner(workshop: Workshop, launcher: FakeLauncher, monkeypatch: pytest.MonkeyPatch) -> Runner:
    """A runner over the fake launcher; what this process counted before is forgotten."""
    monkeypatch.setattr(task, "RETRY_PAUSE", 0.0)
    monkeypatch.setattr(metrics, "_held", {})
    open_window(workshop.store.redis)
    return Runner("w1", workshop, Stops())


def counted(redis: Redis, name: str) -> Mapping[tuple[str, ...], float]:
    """How often, by labels; of a histogram the number of its values."""
    assert metrics.flush(redis)
    series = stored(redis).get(MEASURES[name], {})
    return {labels: sum(n for part, n in parts.items() if part != "sum") for labels, parts in series.items()}


def test_an_attempt_is_counted_with_its_phases(runner: Runner, redis: Redis, submit: Submit) -> None:
    """Once its end, its wait and its time; each phase once, those of a step once for each step."""
    runner.run(submit(steps=[{"argv": ["true"]}, {"argv": ["true"]}], outputs=["*"]).id, 1)
    assert counted(redis, "attempts_total") == {("finished",): 1}
    assert counted(redis, "queue_wait_seconds") == {("default",): 1}
    assert counted(redis, "run_seconds") == {("default",): 1}
    phases = dict.fromkeys(PHASES, 1) | {"sandbox": 2, "run": 2}
    assert counted(redis, "sandbox_phase_seconds") == {(phase,): n for phase, n in phases.items()}


def test_a_delivery_that_runs_nothing_is_no_attempt(runner: Runner, redis: Redis, submit: Submit) -> None:
    """A duplicate is not counted as a wait or an end."""
    runner.run("job_unknown", 1)
    assert counted(redis, "attempts_total") == {}
    assert counted(redis, "queue_wait_seconds") == {}


def test_our_failures_are_counted_apart(
    runner: Runner, redis: Redis, submit: Submit, launcher: FakeLauncher
) -> None:
    """An attempt that we failed is no run of the job; its second attempt did not wait anew."""
    job = submit(command=["true"])
    launcher.fail = {"op": "failed", "step": "cgroup", "errno": 16, "subject": "memory", "hint": ""}
    runner.run(job.id, 1)
    launcher.fail = None
    runner.run(job.id, 2)
    assert counted(redis, "attempts_total") == {("failed",): 1, ("finished",): 1}
    assert counted(redis, "queue_wait_seconds") == {("default",): 1}
    assert counted(redis, "run_seconds") == {("default",): 1}


def test_a_result_that_came_too_late_is_counted_as_stale(
    runner: Runner, redis: Redis, store: Store, submit: Submit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another attempt had the job meanwhile: no run of it."""
    monkeypatch.setattr(store, "finish", lambda *_: False)
    runner.run(submit(command=["true"]).id, 1)
    assert counted(redis, "attempts_total") == {("stale",): 1}
    assert counted(redis, "run_seconds") == {}


def test_a_stopped_attempt_is_counted_by_its_reason(
    runner: Runner, redis: Redis, submit: Submit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given back when the worker goes down."""

    def stopped(*_: object) -> Any:
        raise task.StoppedError(Reason.SHUTDOWN)

    monkeypatch.setattr(task, "run_attempt", stopped)
    runner.run(submit(command=["true"]).id, 1)
    assert counted(redis, "attempts_total") == {("shutdown",): 1}


def test_the_keeper_brings_it_to_redis(
    store: Store, settings: Settings, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside the heartbeat, and what is left when the worker stops."""
    own = Metrics()
    monkeypatch.setattr("worker.keeper.metrics", own)
    keeper = Keeper("w1", settings, store, Stops(), Reaper(store))

    def sum_of() -> float:
        return sum(parts[""] for parts in stored(redis).get(MEASURES["attempts_total"], {}).values())

    own.count("attempts_total", result="finished")
    keeper.start()
    until(lambda: sum_of() == 1)
    own.count("attempts_total", result="finished")
    keeper.stop()
    assert sum_of() == 2
