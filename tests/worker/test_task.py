"""A delivery runs its attempt once and brings it to exactly one end, whatever fails."""

import threading
import time
from typing import Any

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError

from jobs.job import ATTEMPTS_MAX, JobState
from jobs.outcome import OutcomeKind
from jobs.store import Store
from policies.loader import load_policies
from tests.dispatch import open_window, published
from tests.worker.conftest import Submit, until
from tests.worker.fake_launcher import FakeLauncher
from worker import task
from worker.attempt import Workshop
from worker.stop import Reason, Stops
from worker.task import Runner


@pytest.fixture
def stops() -> Stops:
    """The switches of the runner's attempts."""
    return Stops()


@pytest.fixture
def runner(
    workshop: Workshop, launcher: FakeLauncher, stops: Stops, monkeypatch: pytest.MonkeyPatch
) -> Runner:
    """A runner over the fake launcher."""
    monkeypatch.setattr(task, "RETRY_PAUSE", 0.0)
    open_window(workshop.store.redis)
    return Runner("w1", workshop, stops)


def next_message(store: Store) -> tuple[str, int] | None:
    """Take the next message from the queue, as the broker does."""
    waiting = published(store.redis)
    store.redis.rpop("stockade:celery:default")
    return waiting[0] if waiting else None


def run_all(runner: Runner, store: Store) -> None:
    """Deliver what is in the queue until nothing is."""
    while message := next_message(store):
        runner.run(*message)


BROKEN = {"op": "failed", "step": "cgroup", "errno": 16, "subject": "memory", "hint": ""}


def test_job_is_run_and_finished(runner: Runner, store: Store, submit: Submit) -> None:
    """A delivery brings a queued job to its result."""
    job = submit(command=["echo", "hi"])
    runner.run(job.id, 1)
    ended = store.get(job.id)
    assert ended is not None
    assert ended.result is not None
    assert ended.result.steps[0].stdout.text == "hi\n"


def test_duplicate_delivery_runs_nothing(
    runner: Runner, store: Store, submit: Submit, launcher: FakeLauncher, stops: Stops
) -> None:
    """The same message twice, at the same time or later, runs the job once."""
    job = submit(command=["sleep", "0.5"])
    both = [threading.Thread(target=runner.run, args=(job.id, 1)) for _ in range(3)]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    runner.run(job.id, 1)
    runner.run(job.id, 2)
    assert len(launcher.plans) == 1
    assert stops.running() == []


def test_unknown_job_runs_nothing(runner: Runner, launcher: FakeLauncher) -> None:
    """A message for a job that is not there is dropped in silence."""
    runner.run("job_unknown", 1)
    assert launcher.plans == []


def test_our_failure_is_tried_again_three_times(
    runner: Runner, store: Store, submit: Submit, launcher: FakeLauncher
) -> None:
    """A sandbox that cannot be made costs an attempt; after three the job ends with the reason."""
    job = submit(command=["true"])
    launcher.fail = BROKEN
    run_all(runner, store)
    ended = store.get(job.id)
    assert ended is not None
    assert ended.result is not None
    assert ended.result.outcome.kind is OutcomeKind.SANDBOX_ERROR
    assert "cgroup memory: EBUSY" in ended.result.outcome.message
    assert len(launcher.plans) == ATTEMPTS_MAX


def test_failure_that_passes_is_not_the_jobs(
    runner: Runner, store: Store, submit: Submit, launcher: FakeLauncher
) -> None:
    """A job whose first attempt failed on our side has an ordinary result from its second."""
    job = submit(command=["true"])
    launcher.fail = BROKEN
    runner.run(*next_message(store))  # type: ignore[misc]
    launcher.fail = None
    assert published(store.redis) == [(job.id, 2)]
    run_all(runner, store)
    ended = store.get(job.id)
    assert ended is not None
    assert ended.result is not None
    assert ended.result.outcome.succeeded
    assert ended.attempt == 2


def test_job_that_its_policy_no_longer_allows_is_not_tried_again(
    workshop: Workshop, store: Store, submit: Submit
) -> None:
    """A refusal by the worker's policy ends the job at once: another attempt would end the same."""
    open_window(store.redis)
    lost = load_policies()["default"].model_copy(update={"version": "of nobody"})
    job = submit(lost, command=["true"])
    run_all(Runner("w1", workshop, Stops()), store)
    ended = store.get(job.id)
    assert ended is not None
    assert ended.result is not None
    assert ended.result.outcome.kind is OutcomeKind.SANDBOX_ERROR
    assert "knows no policy" in ended.result.outcome.message
    assert ended.attempt == 1


def test_defect_of_ours_is_not_shown_to_the_caller(
    runner: Runner,
    store: Store,
    submit: Submit,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An exception that nobody expected is retried, and its text stays in the log."""

    def broken(*_: object) -> None:
        raise ValueError("secret detail")

    monkeypatch.setattr(task, "run_attempt", broken)
    job = submit(command=["true"])
    run_all(runner, store)
    ended = store.get(job.id)
    assert ended is not None
    assert ended.result is not None
    assert ended.result.outcome.kind is OutcomeKind.SANDBOX_ERROR
    assert "secret" not in ended.result.outcome.message


def test_result_waits_for_redis(
    runner: Runner, store: Store, submit: Submit, monkeypatch: pytest.MonkeyPatch, launcher: FakeLauncher
) -> None:
    """A result that cannot be stored now is stored when Redis is back; the job is not run again."""
    job = submit(command=["true"])
    real, calls = store.finish, []

    def unreliable(*args: Any) -> bool:
        calls.append(time.monotonic())
        if len(calls) < 4:
            raise RedisConnectionError("gone")
        return real(*args)

    monkeypatch.setattr(store, "finish", unreliable)
    runner.run(job.id, 1)
    ended = store.get(job.id)
    assert ended is not None
    assert ended.finished
    assert len(launcher.plans) == 1
    assert calls[3] - calls[2] > calls[1] - calls[0]


def test_result_of_a_stale_attempt_is_refused(
    runner: Runner, store: Store, submit: Submit, launcher: FakeLauncher
) -> None:
    """A worker that comes back after its lease was given away cannot end the job."""
    job = submit(command=["sleep", "2.6"])
    slow = threading.Thread(target=runner.run, args=(job.id, 1))
    slow.start()
    until(lambda: ("expired", job.id, 2) in store.sweep(lost_after=60))
    assert store.claim(job.id, 2, "w2") is not None
    slow.join()
    found = store.get(job.id)
    assert found is not None
    assert found.state is JobState.RUNNING
    assert found.result is None


def test_job_of_a_stopping_worker_goes_back(
    runner: Runner, store: Store, submit: Submit, stops: Stops
) -> None:
    """A worker that has to go kills what runs and queues it again, however often that happens."""
    job = submit(command=["sleep", "20"])
    for number in range(1, ATTEMPTS_MAX + 2):
        running = threading.Thread(target=runner.run, args=(job.id, number))
        running.start()
        until(stops.running)
        time.sleep(0.1)
        stops.ask(job.id, Reason.SHUTDOWN)
        running.join()
        assert published(store.redis)[-1] == (job.id, number + 1)
        found = store.get(job.id)
        assert found is not None
        assert found.state is JobState.QUEUED


def test_cancelled_job_is_finished_as_cancelled(
    runner: Runner, store: Store, submit: Submit, stops: Stops
) -> None:
    """A cancellation that reaches the worker becomes the job's outcome."""
    job = submit(command=["sleep", "20"])
    running = threading.Thread(target=runner.run, args=(job.id, 1))
    running.start()
    until(stops.running)
    store.cancel(job.id, "tenant_a")
    stops.ask(job.id, Reason.CANCELLED)
    running.join()
    ended = store.get(job.id)
    assert ended is not None
    assert ended.result is not None
    assert ended.result.outcome.kind is OutcomeKind.CANCELLED
