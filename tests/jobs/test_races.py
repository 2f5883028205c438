"""Whoever cancels, finishes and deletes a job at the same time: it ends once, and every count comes out even."""

import random
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from redis import Redis

from jobs.job import JobState
from jobs.store import Store
from tests.dispatch import DONE
from tests.jobs.conftest import TENANT, Submit

RACES = 1000


def test_a_thousand_races_end_each_job_once(store: Store, redis: Redis, submit: Submit) -> None:
    """Cancel, claim and finish, and delete begin at once: one terminal event for each job, and nothing left of it."""

    def work(job_id: str) -> None:
        attempt = store.claim(job_id, 1, "w")
        if attempt is not None:
            assert store.finish(attempt, DONE)

    def delete(job_id: str) -> None:
        while not (gone := store.delete(job_id, TENANT)):
            assert gone is not None

    acts: list[Callable[[str], object]] = [lambda job_id: store.cancel(job_id, TENANT), work, delete]
    ids = []
    with ThreadPoolExecutor(len(acts)) as pool:
        for _ in range(RACES):
            ids.append(submit().id)
            random.shuffle(acts)
            for racer in [pool.submit(act, ids[-1]) for act in acts]:
                racer.result(30)
    happened = [fields for _, fields in redis.xrange("stockade:events")]
    for state in (b"queued", b"finished", b"deleted"):
        found = Counter(fields[b"job"].decode() for fields in happened if fields[b"state"] == state)
        assert found == Counter(ids), state
    outcomes = {fields[b"outcome"] for fields in happened if fields[b"state"] == b"finished"}
    assert outcomes == {b"cancelled", b"exited"}, "one side won every race"
    assert_even(redis)


def assert_even(redis: Redis) -> None:
    """Nothing waits or runs, and no job is anywhere."""
    load = redis.hgetall(f"stockade:load:{TENANT}")
    assert {name: load.get(name) for name in (b"queued", b"running")} == {b"queued": b"0", b"running": b"0"}
    for key in (
        "due",
        "expiry",
        "released:default",
        "leases:default",
        f"jobs:{TENANT}",
        f"backlog:default:{TENANT}",
    ):
        assert redis.zcard(f"stockade:{key}") == 0, key
    assert list(redis.scan_iter("stockade:job:*")) == []


def test_a_cancel_that_comes_while_it_runs_is_one_end_too(store: Store, redis: Redis, submit: Submit) -> None:
    """Running, cancelling, finished: each state is announced once, in order."""
    job = submit()
    attempt = store.claim(job.id, 1, "w")
    assert attempt is not None
    for _ in range(3):
        store.cancel(job.id, TENANT)
    assert store.delete(job.id, TENANT) is False
    store.finish(attempt, DONE)
    store.finish(attempt, DONE)
    store.cancel(job.id, TENANT)
    states = [fields[b"state"].decode() for _, fields in redis.xrange("stockade:events")]
    assert states == [*JobState]
    assert store.delete(job.id, TENANT)
    assert_even(redis)
