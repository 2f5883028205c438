"""One idempotency key is one job: under concurrency, after failures, and for as long as the job is kept."""

import threading

import pytest
from redis import Redis
from redis.exceptions import ResponseError

from jobs.job import Job
from jobs.spec import JobSpec
from jobs.store import Accepted, Idempotency, IdempotencyError, ProjectGoneError, Store
from policies.admission import admit
from policies.loader import load_policies
from tests.dispatch import DONE, make_project
from tests.jobs.conftest import TENANT

SPEC = JobSpec(command={"argv": ("true",)})  # type: ignore[arg-type]
ADMISSION = admit(SPEC, load_policies()["default"])


def hand_in(store: Store, key: str, body: bytes = b"{}", tenant: str = TENANT) -> Accepted:
    """Submit a job with this idempotency key."""
    project = make_project(store.redis, tenant)
    return store.create(SPEC, ADMISSION, project, idempotency=Idempotency(key, body))


def end(store: Store, job: Job) -> None:
    """Claim a job and finish it."""
    attempt = store.claim(job.id, 1, "w")
    assert attempt is not None
    assert store.finish(attempt, DONE)


def test_the_same_key_and_body_is_the_same_job(store: Store) -> None:
    """Whatever has become of it meanwhile; it is told apart from one that is new."""
    first = hand_in(store, "a")
    assert not first.again
    assert hand_in(store, "a") == Accepted(first.job, True, None)
    end(store, first.job)
    again = hand_in(store, "a")
    assert (again.again, again.job) == (True, store.get(first.job.id))
    assert store.recall(TENANT, Idempotency("a", b"{}")) == again
    assert store.recall(TENANT, Idempotency("b", b"{}")) is None


def test_another_body_is_refused(store: Store, redis: Redis) -> None:
    """Nothing is made of it, and the first job stays what it is."""
    first = hand_in(store, "a")
    with pytest.raises(IdempotencyError):
        hand_in(store, "a", b"[]")
    with pytest.raises(IdempotencyError):
        store.recall(TENANT, Idempotency("a", b"[]"))
    assert redis.zrange(f"stockade:jobs:{TENANT}", 0, -1) == [first.job.id.encode()]


def test_a_key_belongs_to_its_project(store: Store) -> None:
    """The same key of another project is another key."""
    first, other = hand_in(store, "a"), hand_in(store, "a", tenant="tenant_b")
    assert first.job.id != other.job.id
    assert not other.again


def test_twenty_at_once_are_one_job(store: Store, redis: Redis) -> None:
    """Of twenty callers with one key, one makes the job and all are told of it."""
    make_project(redis, TENANT)
    barrier, found = threading.Barrier(20), []

    def call() -> None:
        barrier.wait(30)
        found.append(store.create(SPEC, ADMISSION, TENANT, idempotency=Idempotency("a", b"{}")))

    threads = [threading.Thread(target=call) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({accepted.job.id for accepted in found}) == 1
    assert [accepted.again for accepted in found].count(False) == 1
    assert redis.zcard(f"stockade:jobs:{TENANT}") == 1


def test_a_deleted_job_gives_its_key_back(store: Store) -> None:
    """After its deletion the key makes a new job, with any body."""
    first = hand_in(store, "a")
    end(store, first.job)
    assert store.delete(first.job.id, TENANT)
    assert store.recall(TENANT, Idempotency("a", b"[]")) is None
    second = hand_in(store, "a", b"[]")
    assert (second.again, second.job.id == first.job.id) == (False, False)


def left(redis: Redis) -> list[bytes]:
    """The jobs and records of keys that there are."""
    return [*redis.scan_iter("stockade:job:*"), *redis.scan_iter("stockade:idempotency:*")]


def test_without_memory_neither_job_nor_record_is_left(store: Store, redis: Redis) -> None:
    """A Redis that is full refuses the whole; once it has room again the same key makes its job."""
    make_project(redis, TENANT)
    redis.config_set("maxmemory", 1)
    try:
        with pytest.raises(ResponseError, match="memory"):
            store.create(SPEC, ADMISSION, TENANT, idempotency=Idempotency("a", b"{}"))
    finally:
        redis.config_set("maxmemory", 0)
    assert left(redis) == []
    assert not hand_in(store, "a").again


@pytest.mark.parametrize(
    "key",
    [f"jobs:{TENANT}", "due", "events", "pools", f"backlog:default:{TENANT}", f"load:{TENANT}"],
)
def test_a_script_that_fails_leaves_neither_job_nor_record(store: Store, redis: Redis, key: str) -> None:
    """Wherever it stops; the next try is not told of a job that nobody will run."""
    redis.set(f"stockade:{key}", "not what it should be")
    with pytest.raises(ResponseError, match="WRONGTYPE"):
        hand_in(store, "a")
    assert left(redis) == []
    redis.delete(f"stockade:{key}")
    assert redis.zcard(f"stockade:backlog:default:{TENANT}") == 0
    second = hand_in(store, "a")
    assert not second.again
    end(store, second.job)
    assert redis.hmget(f"stockade:load:{TENANT}", "queued", "running") == [b"0", b"0"]


def test_a_project_that_was_removed_gets_no_job(store: Store, redis: Redis) -> None:
    """A caller whose key is still believed for a moment leaves nothing behind."""
    with pytest.raises(ProjectGoneError):
        store.create(SPEC, ADMISSION, "tenant_gone")
    assert left(redis) == []
    assert not redis.exists("stockade:load:tenant_gone")
