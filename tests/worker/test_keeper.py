"""The keeper keeps leases, tells that the worker lives, and hears of cancellations."""

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from jobs.settings import Settings
from jobs.store import Store
from jobs.workers import Workers
from tests.worker.conftest import LEASE, Claim, until
from tests.worker.fake_launcher import FakeLauncher
from worker.keeper import Every, Keeper, launcher_state
from worker.reaper import Reaper
from worker.stop import Reason, Stops


@pytest.fixture
def stops() -> Stops:
    """The switches of what the worker runs."""
    return Stops()


@pytest.fixture
def keeper(store: Store, stops: Stops, settings: Settings, directory: Path) -> Iterator[Keeper]:
    """A keeper at work, whose launcher is not there yet."""
    there = settings.model_copy(update={"slots": 4, "launcher": directory / "later.sock"})
    kept = Keeper("w1", there, store, stops, Reaper(store))
    kept.start()
    yield kept
    kept.stop()


@pytest.mark.usefixtures("keeper")
def test_leases_are_renewed(store: Store, stops: Stops, claim: Claim) -> None:
    """What runs keeps its lease as long as it runs."""
    attempt = claim(command=["true"])
    with stops.of(attempt.job.id, 1) as stop:
        assert stop is not None
        stop.attempt = attempt
        time.sleep(1.5 * LEASE)
        job = store.get(attempt.job.id)
        assert job is not None
        assert job.state == "running"
        assert stop.reason is None
    until(lambda: (found := store.get(attempt.job.id)) and found.state == "queued")


@pytest.mark.usefixtures("keeper")
def test_attempt_whose_lease_is_lost_is_stopped(store: Store, stops: Stops, claim: Claim) -> None:
    """A worker that learns that its job is another's stops running it."""
    attempt = claim(command=["true"])
    with stops.of(attempt.job.id, 1) as stop:
        assert stop is not None
        stop.attempt = attempt
        store.give_back(attempt)
        until(lambda: stop.reason is Reason.LEASE_LOST, seconds=LEASE)


@pytest.mark.usefixtures("keeper")
def test_cancellation_is_heard_at_once(store: Store, stops: Stops, claim: Claim) -> None:
    """A cancellation reaches the attempt within a fraction of a second."""
    attempt = claim(command=["true"])
    with stops.of(attempt.job.id, 1) as stop:
        assert stop is not None
        stop.attempt = attempt
        until(lambda: store.redis.pubsub_numsub("stockade:cancel")[0][1])
        begun = time.monotonic()
        store.cancel(attempt.job.id, "tenant_a")
        until(lambda: stop.reason is Reason.CANCELLED)
        assert time.monotonic() - begun < 0.3


@pytest.mark.usefixtures("keeper")
def test_cancellation_that_was_missed_comes_with_the_lease(store: Store, stops: Stops, claim: Claim) -> None:
    """A cancellation whose announcement was lost is noticed when the lease is renewed."""
    attempt = claim(command=["true"])
    store.cancel(attempt.job.id, "tenant_a")
    with stops.of(attempt.job.id, 1) as stop:
        assert stop is not None
        stop.attempt = attempt
        until(lambda: stop.reason is Reason.CANCELLED, seconds=LEASE)


def test_worker_tells_of_itself_and_of_its_launcher(keeper: Keeper, store: Store, directory: Path) -> None:
    """Whoever asks sees the worker, its slots, and whether its launcher answers; a stopped one is gone."""
    workers = Workers(store.redis)
    [worker] = until(workers.live)
    assert (worker.name, worker.slots, worker.running, worker.pools) == ("w1", 4, 0, ("default",))
    assert worker.launcher is not None
    assert "does not answer" in worker.launcher
    keeper.stop()
    assert workers.live() == []
    with FakeLauncher(directory / "later.sock"):
        trouble, host = launcher_state(directory / "later.sock")
    assert trouble is None
    assert (host.cgroup, host.kernel) == ("v2", "6.1.0")


@pytest.mark.usefixtures("keeper")
def test_attempt_whose_deadline_has_come_is_stopped(store: Store, stops: Stops, claim: Claim) -> None:
    """A running job is stopped when its deadline comes."""
    deadline = datetime.now(UTC) + timedelta(seconds=0.5)
    attempt = claim(command=["true"], deadline=deadline.isoformat())
    with stops.of(attempt.job.id, 1) as stop:
        assert stop is not None
        stop.attempt = attempt
        assert stop.reason is None
        until(lambda: stop.reason is Reason.DEADLINE)
        assert datetime.now(UTC) >= deadline


def test_duty_that_fails_is_done_again() -> None:
    """Nothing that goes wrong in a duty ends it."""
    calls = []

    def act() -> None:
        calls.append(1)
        raise ValueError("a defect")

    duty = Every(0.0, act)
    duty.turn()
    duty.turn()
    assert len(calls) == 2


def test_duty_waits_for_its_time() -> None:
    """A duty is done at its interval, however often its turn comes."""
    calls: list[int] = []
    duty = Every(60.0, lambda: calls.append(1))
    duty.turn()
    duty.turn()
    assert len(calls) == 1
