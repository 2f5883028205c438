"""Whoever cancels, finishes and deletes a job at the same time: it ends once, and every count comes out even."""

import threading
from collections import Counter

from redis import Redis

from jobs.job import JobState
from jobs.store import Store
from tests.dispatch import DONE
from tests.jobs.conftest import TENANT, Submit

RACES = 1000


def test_a_thousand_races_end_each_job_once(store: Store, redis: Redis, submit: Submit) -> None:
    """Cancel, claim and finish, and delete begin at once: one terminal event for each job, and nothing left of it."""
    barrier = threading.Barrier(3)
    ids: list[str] = []
    faults: list[BaseException] = []

    def cancel(job_id: str) -> None:
        store.cancel(job_id, TENANT)

    def work(job_id: str) -> None:
        attempt = store.claim(job_id, 1, "w")
        if attempt is not None:
            assert store.finish(attempt, DONE)

    def delete(job_id: str) -> None:
        while not (gone := store.delete(job_id, TENANT)):
            assert gone is not None

    def racer(act: object) -> None:
        try:
            for _ in range(RACES):
                barrier.wait(30)
                act(ids[-1])  # type: ignore[operator]
                barrier.wait(30)
        except BaseException as fault:
            faults.append(fault)
            barrier.abort()

    threads = [threading.Thread(target=racer, args=(act,)) for act in (cancel, work)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(RACES):
            ids.append(submit().id)
            barrier.wait(30)
            delete(ids[-1])
            barrier.wait(30)
    except threading.BrokenBarrierError:
        pass
    finally:
        barrier.abort()
        for thread in threads:
            thread.join()
    assert faults == [] or all(isinstance(fault, threading.BrokenBarrierError) for fault in faults)
    assert len(ids) == RACES
    events = [(fields[b"job"].decode(), fields[b"state"]) for _, fields in redis.xrange("stockade:events")]
    for state in (b"queued", b"finished", b"deleted"):
        assert Counter(job for job, found in events if found == state) == Counter(ids), state
    outcomes = Counter(
        fields[b"outcome"] for _, fields in redis.xrange("stockade:events") if fields[b"outcome"]
    )
    assert set(outcomes) == {b"cancelled", b"exited"}, "no race was won by the other side"
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
