"""The reaper gives back what dead workers held and publishes again what the broker lost."""

import time

import pytest

from jobs.job import ATTEMPTS_MAX
from jobs.outcome import OutcomeKind
from jobs.store import Store
from tests.dispatch import open_window, published
from tests.worker.conftest import Claim, Submit, until
from worker.reaper import Reaper


@pytest.fixture
def reaper(store: Store) -> Reaper:
    """A reaper that takes a message for lost after half a second."""
    open_window(store.redis)
    return Reaper(store, lost_after=0.5)


def taken(store: Store) -> None:
    """All messages are taken from the queue by somebody who then dies."""
    store.redis.delete("stockade:celery:default")


def test_jobs_of_a_dead_worker_are_published_again(store: Store, reaper: Reaper, claim: Claim) -> None:
    """What a silent worker held is queued for the next attempt and published, once."""
    attempt = claim(command=["true"])
    taken(store)
    reaper.sweep()
    assert published(store.redis) == []
    until(lambda: reaper.sweep() or published(store.redis))
    reaper.sweep()
    assert published(store.redis) == [(attempt.job.id, 2)]


def test_job_that_outlives_three_workers_is_given_up(store: Store, reaper: Reaper, submit: Submit) -> None:
    """A job under which every worker dies ends as worker_lost, and is published no more."""
    job = submit(command=["true"])
    impatient = Store(store.redis, lease=0.05)
    for number in range(1, ATTEMPTS_MAX + 1):
        assert impatient.claim(job.id, number, f"w{number}") is not None
        time.sleep(0.1)
        reaper.sweep()
    ended = store.get(job.id)
    assert ended is not None
    assert ended.result is not None
    assert ended.result.outcome.kind is OutcomeKind.WORKER_LOST
    assert published(store.redis) == [(job.id, 1), (job.id, 2), (job.id, 3)]


def test_lost_message_is_published_again(store: Store, reaper: Reaper, submit: Submit) -> None:
    """A job whose message vanished is published in time, once."""
    job = submit(command=["true"])
    taken(store)
    reaper.sweep()
    assert published(store.redis) == []
    time.sleep(0.6)
    reaper.sweep()
    reaper.sweep()
    assert published(store.redis) == [(job.id, 1)]


def test_what_waits_without_room_is_released_when_there_is_some(store: Store, submit: Submit) -> None:
    """Jobs that came while no worker lived go into the queue with the first sweep after one says that it does."""
    jobs = [submit(command=["true"]) for _ in range(3)]
    reaper = Reaper(store)
    reaper.sweep()
    assert published(store.redis) == []
    open_window(store.redis, slots=2)
    reaper.sweep()
    assert published(store.redis) == [(job.id, 1) for job in jobs[:2]]
