"""The store keeps every job's truth: one execution an attempt, one end a job, nothing lost."""

import threading
import time
from typing import Any

import pytest
from redis import Redis

from jobs.job import ATTEMPTS_MAX, Attempt, JobState
from jobs.outcome import Artifact, OutcomeKind
from jobs.store import FINISHED_CHANNEL, Renewal, Store
from tests.dispatch import DONE
from tests.jobs.conftest import TENANT, Submit


def claimed(store: Store, job_id: str, number: int = 1, worker: str = "w1") -> Attempt:
    """An attempt that the store must grant."""
    attempt = store.claim(job_id, number, worker)
    assert attempt is not None
    return attempt


def heard(redis: Redis, act: Any) -> list[str]:
    """The ids of finished jobs that are announced while `act` runs."""
    with redis.pubsub(ignore_subscribe_messages=True) as subscription:
        subscription.subscribe(FINISHED_CHANNEL)
        subscription.get_message(timeout=1)
        act()
        found = []
        while message := subscription.get_message(timeout=0.2):
            found.append(message["data"].decode())
    return found


def test_created_job_comes_back_as_it_was_asked(store: Store, submit: Submit) -> None:
    """What was accepted is what is found: spec, admission, tenant and time, to the byte."""
    job = submit(steps=[{"argv": ["cat"], "stdin": {"base64": "AP8="}, "limits": {"memory": 64 << 20}}])
    assert store.get(job.id) == job
    assert job.state is JobState.QUEUED
    assert job.attempt == 0
    assert job.admission.steps[0].limits.memory == 64 << 20
    assert abs(job.created_at.timestamp() - time.time()) < 5


def test_other_tenants_job_is_not_there(store: Store, submit: Submit) -> None:
    """A job is invisible to every tenant but its own, and cannot be cancelled by another."""
    job = submit()
    assert store.get(job.id, TENANT) is not None
    assert store.get(job.id, "tenant_b") is None
    assert store.cancel(job.id, "tenant_b") is None
    assert store.get("job_unknown") is None


def test_claim_is_granted_once(store: Store, submit: Submit) -> None:
    """Of many deliveries of one attempt, at once and from many threads, exactly one may run it."""
    job = submit()
    granted: list[Attempt | None] = []
    threads = [
        threading.Thread(target=lambda n=n: granted.append(store.claim(job.id, 1, f"w{n}")))
        for n in range(12)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    winners = [attempt for attempt in granted if attempt]
    assert len(winners) == 1
    assert winners[0].job.state is JobState.RUNNING
    assert winners[0].job.spec == job.spec
    assert winners[0].job.attempt == 1


def test_claim_refuses_what_does_not_wait(store: Store, submit: Submit) -> None:
    """A message for an unknown job, for a wrong attempt, or for a finished job runs nothing."""
    job = submit()
    assert store.claim("job_unknown", 1, "w1") is None
    assert store.claim(job.id, 2, "w1") is None
    assert store.finish(claimed(store, job.id), DONE)
    assert store.claim(job.id, 1, "w1") is None
    assert store.claim(job.id, 2, "w1") is None


def test_finish_ends_the_job_and_announces_it(store: Store, redis: Redis, submit: Submit) -> None:
    """A finished job carries its result, is announced, and is gone after its retention."""
    job = submit()
    attempt = claimed(store, job.id)
    assert heard(redis, lambda: store.finish(attempt, DONE)) == [job.id]
    finished = store.get(job.id)
    assert finished is not None
    assert finished.state is JobState.FINISHED
    assert finished.result == DONE
    assert finished.started_at is not None
    assert finished.finished_at is not None
    expires = float(redis.hget(f"stockade:job:{job.id}", "expires") or 0) / 1000
    assert abs(expires - finished.finished_at.timestamp() - job.admission.retention) < 0.01


def test_finish_may_be_asked_twice(store: Store, submit: Submit) -> None:
    """A caller whose answer was lost asks again and hears the same; the result stays the first."""
    attempt = claimed(store, submit().id)
    assert store.finish(attempt, DONE)
    assert store.finish(attempt, DONE)


def test_stale_token_is_refused(store: Store, submit: Submit) -> None:
    """Once a later attempt has begun, the earlier one can neither finish, nor fail, nor renew."""
    job = submit()
    first = claimed(store, job.id)
    assert store.fail_attempt(first, OutcomeKind.SANDBOX_ERROR, "no launcher").next_attempt == 2
    assert not store.finish(first, DONE)
    second = claimed(store, job.id, 2, "w2")
    assert second.token > first.token
    assert not store.finish(first, DONE)
    assert not store.fail_attempt(first, OutcomeKind.SANDBOX_ERROR, "late").accepted
    assert store.renew([first, second]) == [Renewal.LOST, Renewal.RENEWED]
    assert store.finish(second, DONE)


@pytest.mark.parametrize("kind", [OutcomeKind.SANDBOX_ERROR, OutcomeKind.WORKER_LOST])
def test_failures_of_ours_are_retried_three_times(store: Store, submit: Submit, kind: OutcomeKind) -> None:
    """A job whose attempts all fail for our reasons ends with that reason, after three of them."""
    job = submit()
    for number in range(1, ATTEMPTS_MAX + 1):
        failure = store.fail_attempt(claimed(store, job.id, number), kind, "cgroup: EBUSY")
        assert failure.accepted
        assert failure.next_attempt == (number + 1 if number < ATTEMPTS_MAX else None)
    ended = store.get(job.id)
    assert ended is not None
    assert ended.result is not None
    assert ended.result.outcome.kind is kind
    assert ended.result.outcome.message == "cgroup: EBUSY"
    assert ended.attempt == ATTEMPTS_MAX


def expired(store: Store) -> list[tuple[str, int]]:
    """The jobs whose lease a sweep ends, with their next attempt."""
    return [(name, number) for what, name, number in store.sweep(lost_after=60) if what == "expired"]


def test_expired_lease_gives_the_job_back(store: Store, submit: Submit) -> None:
    """A worker that is silent for a lease loses its job to the next attempt; one that renews keeps it."""
    silent, lively = claimed(store, submit().id), claimed(store, submit().id)
    until = time.monotonic() + 1.3
    while time.monotonic() < until:
        store.renew([lively])
        time.sleep(0.1)
    assert expired(store) == [(silent.job.id, 2)]
    assert expired(store) == []
    assert claimed(store, silent.job.id, 2, "w2").number == 2


def test_expiry_waits_until_the_server_is_older_than_a_lease(
    redis: Redis, store: Store, submit: Submit
) -> None:
    """After a restart of Redis, workers get the time of a lease to renew before their jobs are taken."""
    job = submit()
    claimed(store, job.id)
    time.sleep(1.1)
    assert expired(Store(redis, lease=1e6)) == []
    assert expired(store) == [(job.id, 2)]


def test_cancel_before_start_is_immediate(store: Store, redis: Redis, submit: Submit) -> None:
    """A job that waits is finished by its cancellation, announced, and never run."""
    job = submit()
    assert heard(redis, lambda: store.cancel(job.id, TENANT)) == [job.id]
    ended = store.get(job.id)
    assert ended is not None
    assert ended.result is not None
    assert ended.result.outcome.kind is OutcomeKind.CANCELLED
    assert ended.started_at is None
    assert store.claim(job.id, 1, "w1") is None


def test_cancel_while_running_tells_the_worker(store: Store, submit: Submit) -> None:
    """A running job is marked, its worker hears of it twice over, and a cancelled job is not run again."""
    job = submit()
    attempt = claimed(store, job.id)
    with store.cancellations() as subscription:
        subscription.get_message(timeout=1)
        cancelling = store.cancel(job.id, TENANT)
        message = subscription.get_message(timeout=1)
    assert cancelling is not None
    assert cancelling.state is JobState.CANCELLING
    assert message is not None
    assert message["data"].decode() == job.id
    assert store.renew([attempt]) == [Renewal.CANCELLING]
    assert store.fail_attempt(attempt, OutcomeKind.SANDBOX_ERROR, "launcher died").next_attempt is None
    ended = store.get(job.id)
    assert ended is not None
    assert ended.result is not None
    assert ended.result.outcome.kind is OutcomeKind.CANCELLED


def test_cancel_after_the_end_changes_nothing(store: Store, submit: Submit) -> None:
    """The result of a finished job stands."""
    attempt = claimed(store, submit().id)
    store.finish(attempt, DONE)
    after = store.cancel(attempt.job.id, TENANT)
    assert after is not None
    assert after.result == DONE


def again(store: Store, after: float) -> list[tuple[str, int]]:
    """The jobs that a sweep publishes again, with the attempt."""
    return [(name, number) for what, name, number in store.sweep(after) if what == "published"]


def test_lost_message_is_published_again(store: Store, redis: Redis, submit: Submit) -> None:
    """A job whose message vanished is published again, once in a while, until claimed."""
    job = submit()
    redis.delete("stockade:celery:default")
    assert again(store, after=0.5) == []
    time.sleep(0.6)
    assert again(store, after=0.5) == [(job.id, 1)]
    assert again(store, after=0.5) == []
    claimed(store, job.id)
    time.sleep(0.6)
    assert again(store, after=0.5) == []


def test_waiting_in_a_long_queue_is_not_lost(store: Store, submit: Submit) -> None:
    """While messages wait, a job is missed only when one published well after it has been delivered."""
    early = submit()
    time.sleep(0.6)
    assert again(store, after=0.2) == []
    late = submit()
    claimed(store, late.id)
    assert again(store, after=0.2) == [(early.id, 1)]


def test_artifacts_belong_to_the_attempt_that_finished(store: Store, redis: Redis, submit: Submit) -> None:
    """What a lost attempt left is never served as the job's; what the last one left is kept with the job."""
    job = submit()
    first = claimed(store, job.id)
    store.put_artifact(first, "out.bin", b"of the lost attempt")
    store.fail_attempt(first, OutcomeKind.WORKER_LOST, "lost")
    second = claimed(store, job.id, 2)
    store.put_artifact(second, "out.bin", b"\0\xff")
    made = Artifact(path="out.bin", size=2, sha256="0" * 64, mode="0644")
    store.finish(second, DONE.model_copy(update={"artifacts": (made,)}))
    assert store.get_artifact(job.id, "out.bin") == b"\0\xff"
    assert store.get_artifact(job.id, "other") is None
    assert store.get_artifact("job_unknown", "out.bin") is None
    assert store.delete(job.id, TENANT)
    assert not redis.exists(f"stockade:artifacts:{job.id}:{second.token}")


def test_each_step_of_a_job_is_one_round_trip(store: Store, redis: Redis, submit: Submit) -> None:
    """Creating, claiming and finishing a job cost one command each."""
    store.finish(claimed(store, submit().id), DONE)  # loads the scripts
    redis.config_resetstat()
    store.finish(claimed(store, submit().id), DONE)
    calls = {
        name.removeprefix("cmdstat_"): stats["calls"] for name, stats in redis.info("commandstats").items()
    }
    assert calls.pop("evalsha") == 3
    from_outside = {
        name: stats for name, stats in calls.items() if name in ("evalsha", "eval", "script|load")
    }
    assert from_outside == {}
