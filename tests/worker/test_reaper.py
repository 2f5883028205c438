"""The reaper gives back what dead workers held and publishes again what the broker lost."""

import time
from typing import Any

import pytest

from jobs.job import ATTEMPTS_MAX
from jobs.outcome import OutcomeKind
from jobs.store import Store
from tests.worker.conftest import Claim, Submit, until
from worker.reaper import Reaper


@pytest.fixture
def published() -> list[tuple[str, int]]:
    """What was published."""
    return []


@pytest.fixture
def reaper(store: Store, published: list[tuple[str, int]]) -> Reaper:
    """A reaper that takes a message for lost after half a second."""
    return Reaper(store, lambda job_id, number: published.append((job_id, number)), republish_after=0.5)


def test_jobs_of_a_dead_worker_are_published_again(
    store: Store, reaper: Reaper, claim: Claim, published: list[tuple[str, int]]
) -> None:
    """What a silent worker held is queued for the next attempt and published, once."""
    attempt = claim(command=["true"])
    reaper.sweep()
    assert published == []
    until(lambda: reaper.sweep() or published)
    reaper.sweep()
    assert published == [(attempt.job.id, 2)]


def test_job_that_outlives_three_workers_is_given_up(
    store: Store, reaper: Reaper, submit: Submit, published: list[tuple[str, int]]
) -> None:
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
    assert published == [(job.id, 2), (job.id, 3)]


def test_lost_message_is_published_again(
    store: Store, reaper: Reaper, submit: Submit, published: list[tuple[str, int]]
) -> None:
    """A job that was accepted and never published, or whose message vanished, is published in time."""
    job = submit(command=["true"])
    reaper.sweep()
    assert published == []
    time.sleep(0.6)
    reaper.sweep()
    reaper.sweep()
    assert published == [(job.id, 1)]


def test_two_reapers_return_a_job_once(store: Store, claim: Claim) -> None:
    """Any number of reapers may find the same expired lease; one of them gives the job back."""
    claim(command=["true"])
    leases: Any = until(store.expired)
    answers = [store.expire(leases[0]) for _ in range(3)]
    assert [answer.accepted for answer in answers] == [True, False, False]
