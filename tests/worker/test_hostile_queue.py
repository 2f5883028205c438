"""Whoever can write into the queue, or fill it, gains nothing. A docstring begins with the number of its case.

The table of all cases is in tests/hostile/README.md. The door of the broker itself is tested in
tests/jobs/test_queue.py, worker processes in test_process.py.
"""

import json
from typing import Any

import pytest
from redis import Redis
from redis.exceptions import OutOfMemoryError

from jobs.broker import ForgedMessageError, admit
from jobs.job import JobState
from jobs.queue import PREFIX, VISIBILITY_TIMEOUT, celery_app
from jobs.settings import Settings
from jobs.store import Store
from policies.loader import load_policies
from tests.dispatch import DONE, deliver, message, open_window, published
from tests.worker.conftest import Submit
from tests.worker.fake_launcher import FakeLauncher
from worker.attempt import Workshop
from worker.stop import Stops
from worker.task import Runner

QUEUE = PREFIX + "default"


@pytest.fixture
def runner(workshop: Workshop, launcher: FakeLauncher) -> Runner:
    """A runner over the fake launcher."""
    return Runner("w1", workshop, Stops())


def run_queue(runner: Runner, redis: Redis) -> None:
    """Deliver what is in the queue, through the broker's door, until nothing is."""
    raw: Any
    while (raw := redis.rpop(QUEUE)) is not None:
        try:
            body = admit(json.loads(raw), "default")["body"]
        except ForgedMessageError:
            continue
        runner.run(*json.loads(body)[0])


def test_a_forged_message_jumps_no_queue(
    runner: Runner, store: Store, redis: Redis, submit: Submit, launcher: FakeLauncher
) -> None:
    """Case 174: a perfect message for a job that waits in its backlog starts nothing; the job has its turn later."""
    job = submit(command=["echo", "hi"])
    for attempt in (1, 2, 3):
        deliver(redis, job.id, attempt)
    run_queue(runner, redis)
    assert launcher.plans == []
    found = store.get(job.id)
    assert found is not None
    assert (found.state, found.attempt) == (JobState.QUEUED, 0)
    assert store.position(job) == 0
    open_window(redis)
    store.sweep(10)
    run_queue(runner, redis)
    assert len(launcher.plans) == 1


@pytest.mark.parametrize("wait", [{}, {"pool": "bigmem"}])
def test_a_message_in_another_pools_queue_names_the_same_job(
    runner: Runner, store: Store, redis: Redis, submit: Submit, launcher: FakeLauncher, wait: dict[str, str]
) -> None:
    """Case 174: whichever queue a message is put into, the job runs once, when it is released."""
    open_window(redis)
    job = submit(command=["true"])
    deliver(redis, job.id, 1, **wait)
    runner.run(job.id, 1)
    run_queue(runner, redis)
    assert len(launcher.plans) == 1


def test_yesterdays_message_runs_nothing(
    runner: Runner, store: Store, redis: Redis, submit: Submit, launcher: FakeLauncher
) -> None:
    """Case 176: every message that was ever sent, again: while the job runs, between its attempts, and after it."""
    open_window(redis)
    job = submit(command=["true"])
    old: list[Any] = redis.lrange(QUEUE, 0, -1)
    redis.delete(QUEUE)
    first = store.claim(job.id, 1, "w0")
    assert first is not None
    redis.lpush(QUEUE, *old)
    run_queue(runner, redis)
    assert store.give_back(first).next_attempt == 2
    old += redis.lrange(QUEUE, 0, -1)
    redis.delete(QUEUE)
    redis.lpush(QUEUE, old[0])
    run_queue(runner, redis)
    assert launcher.plans == []
    second = store.claim(job.id, 2, "w0")
    assert second is not None
    assert store.finish(second, DONE)
    redis.lpush(QUEUE, *old)
    run_queue(runner, redis)
    assert launcher.plans == []
    assert store.delete(job.id, job.tenant)
    redis.lpush(QUEUE, *old)
    run_queue(runner, redis)
    assert launcher.plans == []


def test_changed_limits_in_the_stored_job_are_refused(
    runner: Runner, store: Store, redis: Redis, submit: Submit, launcher: FakeLauncher
) -> None:
    """Case 177: who raises a limit in the stored admission gets no job with it, but an error of ours that says so."""
    open_window(redis)
    job = submit(command=["true"])
    stored: Any = json.loads(redis.hget(f"stockade:job:{job.id}", "admission") or b"")
    stored["steps"][0]["limits"]["memory"] = 2**40
    redis.hset(f"stockade:job:{job.id}", "admission", json.dumps(stored))
    run_queue(runner, redis)
    assert launcher.plans == []
    ended = store.get(job.id)
    assert ended is not None
    assert ended.result is not None
    assert "steps" in ended.result.outcome.message


def test_what_a_message_says_beside_its_names_is_not_read(
    runner: Runner, store: Store, redis: Redis, submit: Submit, launcher: FakeLauncher
) -> None:
    """Cases 177, 178: limits, time limits and who is to be called back, in a message, are nothing to anybody."""
    open_window(redis)
    job = submit(command=["true"])
    forged: dict[str, Any] = message(job.id, 1)
    forged["headers"] |= {"timelimit": [9999, 9999], "kwargsrepr": "x", "eta": "2999-01-01"}
    forged["properties"] |= {"reply_to": "celery", "limits": {"memory": 2**40}}
    redis.delete(QUEUE)
    redis.lpush(QUEUE, json.dumps(forged))
    run_queue(runner, redis)
    assert len(launcher.plans) == 1
    assert launcher.plans[0] == _plan_of(runner, redis, submit, launcher)


def _plan_of(runner: Runner, redis: Redis, submit: Submit, launcher: FakeLauncher) -> Any:
    """The plan of the same job whose message nobody touched."""
    submit(command=["true"])
    run_queue(runner, redis)
    return launcher.plans[-1]


def test_a_forged_result_is_no_result(store: Store, redis: Redis, settings: Settings, submit: Submit) -> None:
    """Case 180: there is no result backend, and what is written where Celery would keep results changes no job."""
    job = submit(command=["true"])
    forged = {
        "status": "FAILURE",
        "result": {"exc_type": "system", "exc_module": "os", "exc_message": ["id"]},
    }
    for key in (f"celery-task-meta-{job.id}", f"{PREFIX}celery-task-meta-{job.id}/1"):
        redis.set(key, json.dumps(forged))
    with celery_app(settings) as app:
        assert app.conf.result_backend is None
        assert app.conf.task_ignore_result
        assert app.conf.result_accept_content == ["json"]
    found = store.get(job.id)
    assert found is not None
    assert found.state is JobState.QUEUED


def test_the_queue_is_never_longer_than_the_window(store: Store, redis: Redis, submit: Submit) -> None:
    """Case 183: however many jobs are handed in, cancelled or given back, Celery's queue has what workers can take."""
    open_window(redis, 4)
    jobs = [submit(command=["true"]) for _ in range(300)]
    for job in jobs[:200]:
        store.cancel(job.id, job.tenant)
    assert redis.llen(QUEUE) == 5
    for _ in range(50):
        job_id, number = published(redis)[0]
        redis.rpop(QUEUE)
        attempt = store.claim(job_id, number, "w")
        assert attempt is not None
        store.give_back(attempt)
    assert redis.llen(QUEUE) == 5


def test_a_full_redis_refuses_and_loses_nothing(store: Store, redis: Redis, submit: Submit) -> None:
    """Case 183: without memory nothing is accepted by half, a result waits, and deleting makes room again."""
    open_window(redis, 4)
    done, running = submit(command=["true"]), submit(command=["true"])
    first, second = store.claim(done.id, 1, "w"), store.claim(running.id, 1, "w")
    assert first is not None
    assert second is not None
    store.finish(first, DONE)
    redis.hset(f"stockade:job:{done.id}", "artifact_bytes", 10)
    before: Any = sorted(redis.keys("*"))
    redis.config_set("maxmemory", 1)
    try:
        with pytest.raises(OutOfMemoryError):
            submit(command=["true"])
        with pytest.raises(OutOfMemoryError):
            store.finish(second, DONE)
        assert sorted(redis.keys("*")) == before
        assert store.delete(done.id, done.tenant)
    finally:
        redis.config_set("maxmemory", 0)
    assert store.get(done.id) is None
    assert store.finish(second, DONE)


def test_a_full_redis_is_swept(store: Store, redis: Redis, submit: Submit) -> None:
    """Case 183: what is over its retention goes also where Redis has no memory left, whatever else is to be done."""
    open_window(redis, 4)
    old, late = submit(command=["true"]), submit(command=["true"])
    store.cancel(old.id, old.tenant)
    redis.zadd("stockade:expiry", {old.id: 1})
    redis.hset(f"stockade:job:{late.id}", "starts_by", 1)
    redis.zadd("stockade:due", {late.id: 1})
    redis.config_set("maxmemory", 1)
    try:
        swept = store.sweep(10)
    finally:
        redis.config_set("maxmemory", 0)
    assert [(each.what, each.name) for each in swept[:2]] == [("deleted", old.id), ("late", late.id)]


def test_no_job_is_longer_than_the_brokers_patience() -> None:
    """Case 185: a delivery is not repeated while its job may still run; the lease is renewed, not the message."""
    for policy in load_policies().values():
        assert policy.ceilings.wall_time * policy.steps_max < VISIBILITY_TIMEOUT
