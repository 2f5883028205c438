"""Deletion is complete: no key of Redis says anything of a deleted job but the logs that are meant to."""

from redis import Redis

from jobs.live import LiveOutput, Piece, Pieces, Stream
from jobs.outcome import Artifact, OutcomeKind
from jobs.spec import JobSpec
from jobs.store import Idempotency, Store
from policies.admission import admit
from policies.loader import load_policies
from tests.dispatch import DONE, make_project
from tests.jobs.conftest import TENANT

LOGS = {"stockade:events", f"stockade:audit:{TENANT}:jobs"}


def contents(redis: Redis, key: str) -> bytes:
    """All that is under a key, as far as it is text."""
    kind = redis.type(key)
    match kind:
        case b"hash":
            found: object = redis.hgetall(key)
        case b"zset":
            found = redis.zrange(key, 0, -1)
        case b"set":
            found = redis.smembers(key)
        case b"list":
            found = redis.lrange(key, 0, -1)
        case b"stream":
            found = redis.xrange(key)
        case _:
            found = redis.get(key)
    return repr(found).encode()


def mentions(redis: Redis, *texts: str) -> set[str]:
    """The keys that have one of these texts in their name or under it."""
    keys = [key.decode() for key in redis.scan_iter()]
    return {
        key for key in keys if any(text in key or text.encode() in contents(redis, key) for text in texts)
    }


def test_nothing_of_a_deleted_job_is_left(store: Store, redis: Redis) -> None:
    """After a failed and a good attempt with files, live output and an idempotency key: only logs name it."""
    make_project(redis, TENANT)
    spec = JobSpec.model_validate_json('{"command": ["echo", "s3cret"], "labels": {"a": "s3cret"}}')
    admission = admit(spec, load_policies()["default"])
    made = store.create(spec, admission, TENANT, idempotency=Idempotency("k", b"{}"), actor="key:0123")
    job_id = made.job.id
    redis.delete("stockade:celery:default")  # a worker has taken the message
    first = store.claim(job_id, 1, "w")
    assert first is not None
    store.put_artifact(first, "a", b"s3cret")
    store.fail_attempt(first, OutcomeKind.SANDBOX_ERROR, "It failed.")
    redis.delete("stockade:celery:default")
    second = store.claim(job_id, 2, "w")
    assert second is not None
    store.put_artifact(second, "a", b"s3cret")
    piece = Piece(attempt=2, step=0, stream=Stream.STDOUT, offset=0, data=b"s3cret")
    LiveOutput(redis).publish([Pieces(job_id, begins=True, keep=60, pieces=[piece])])
    artifact = Artifact(path="a", size=6, sha256="0" * 64, mode="0644")
    assert store.finish(second, DONE.model_copy(update={"artifacts": (artifact,)}))
    assert len(mentions(redis, job_id, "s3cret")) > 5
    assert redis.hget(f"stockade:load:{TENANT}", "artifact_bytes") == b"6"
    assert store.delete(job_id, TENANT, actor="key:0123")
    assert mentions(redis, job_id, "s3cret") == LOGS
    assert mentions(redis, "s3cret") == set()
    assert redis.hget(f"stockade:load:{TENANT}", "artifact_bytes") == b"0"
    [(_, last)] = redis.xrevrange(f"stockade:audit:{TENANT}:jobs", count=1)
    assert (last[b"action"], last[b"actor"]) == (b"job.deleted", b"key:0123")


def test_an_attempt_that_lost_its_job_leaves_no_files(store: Store, redis: Redis, submit: object) -> None:
    """What it collects after it was given up, or after the job was deleted, is dropped at once."""
    job = submit()  # type: ignore[operator]
    first = store.claim(job.id, 1, "w")
    assert first is not None
    store.put_artifact(first, "a", b"1")
    store.fail_attempt(first, OutcomeKind.WORKER_LOST, "lost")
    store.put_artifact(first, "a", b"1")
    second = store.claim(job.id, 2, "w")
    assert second is not None
    store.put_artifact(first, "b", b"1")
    store.put_artifact(second, "a", b"2")
    assert list(redis.scan_iter("stockade:artifacts:*")) == [
        f"stockade:artifacts:{job.id}:{second.token}".encode()
    ]
    store.finish(second, DONE)
    assert store.delete(job.id, TENANT)
    store.put_artifact(second, "c", b"3")
    assert list(redis.scan_iter("stockade:artifacts:*")) == []


def test_what_has_not_finished_is_not_deleted(store: Store, redis: Redis, submit: object) -> None:
    """Nor what belongs to another project, nor what is not there."""
    job = submit()  # type: ignore[operator]
    assert store.delete(job.id, TENANT) is False
    assert store.delete(job.id, "tenant_b") is None
    assert store.delete("job_none", TENANT) is None
    assert store.get(job.id) == job
