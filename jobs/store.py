"""The store: every job's truth, in Redis. Who runs what, who may still report, and what became of it.

A job is one hash, `stockade:job:ID`:

    tenant      whose it is
    state       queued, running, cancelling, finished (`JobState`)
    attempt     how often its execution was begun
    spec, admission, result     JSON of `JobSpec`, `Admission`, `JobResult`
    retention   ms that it is kept after its end
    created, started, finished  ms since the epoch, by the server's clock
    worker, token               who runs it, and the fencing token of that attempt

Beside it: `stockade:queued` and `stockade:leases` (sorted sets of job ids), `stockade:fence` and
`stockade:delivered` (counters), `stockade:artifacts:ID:TOKEN` (hash: path to content) and
`stockade:workers` (hash). Each change of a state is one Lua script, `jobs/lua/NAME.lua`, whose head lists
what it touches; so each is one round trip, all or nothing, and decided by one clock.
"""

import json
import secrets
from collections.abc import Sequence
from datetime import UTC, datetime
from enum import IntEnum
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import Field
from redis import Redis
from redis.backoff import ExponentialBackoff
from redis.client import PubSub
from redis.exceptions import ConnectionError as ConnectionLostError
from redis.retry import Retry

from jobs import queue
from jobs.job import ATTEMPTS_MAX, Attempt, Job, JobResult, JobState
from jobs.outcome import Outcome, OutcomeKind
from jobs.settings import Settings
from jobs.spec import JobSpec
from policies.admission import Admission
from policies.model import Frozen

FINISHED_CHANNEL = "stockade:finished"
"""Where the id of each job that ends is published."""
CANCEL_CHANNEL = "stockade:cancel"
"""Where the id of each running job that is to be cancelled is published."""
BATCH = 100
"""The most jobs that one sweep returns."""
UNCLAIMED_ARTIFACTS = 24 * 3600
"""Seconds after which the artifacts of an attempt that never finished are dropped."""
WORKER_SILENCE = 15.0
"""Seconds without a heartbeat after which a worker counts as gone."""

_RELEASES_MAX = 900  # the queue takes attempt numbers up to 999
_JOB, _QUEUED, _LEASES = "stockade:job:", "stockade:queued", "stockade:leases"
_FENCE, _DELIVERED, _WORKERS = "stockade:fence", "stockade:delivered", "stockade:workers"
_FIELDS = ("tenant", "state", "spec", "admission", "attempt", "created", "started", "finished", "result")
_SCRIPTS = ("create", "claim", "renew", "finish", "fail", "cancel", "expired", "lost", "heartbeat")


class Renewal(IntEnum):
    """What became of a lease when it was to be renewed."""

    LOST = 0
    RENEWED = 1
    CANCELLING = 2
    """Renewed; but the job is to be cancelled."""


class Lease(NamedTuple):
    """One attempt's hold on a job, as the reaper finds it."""

    job_id: str
    token: int


class Failure(NamedTuple):
    """What became of an attempt that failed for a reason of ours."""

    accepted: bool
    """False when the token was stale: somebody else has the job."""
    next_attempt: int | None
    """The number of the attempt for which the job is queued again; None when it is finished."""


class WorkerStatus(Frozen):
    """What a worker last told about itself."""

    name: str = Field(description="The worker's name.")
    slots: int = Field(description="Sandboxes that it runs at a time.")
    running: int = Field(description="How many of them are in use.")
    launcher: str | None = Field(description="Null when its launcher answers; else what is wrong.")
    silent: float = Field(description="Seconds since it was last heard of.")


def connect(settings: Settings, timeout: float = 10) -> Redis:
    """A client of the settings' Redis server, for `Store` and `jobs.tenants`. It connects when used.

    `timeout`: seconds to wait for an answer. A lost connection is tried again; a silent server is not,
    so that this is how long a call can take.
    """
    return Redis.from_url(
        settings.redis_py,
        socket_timeout=timeout,
        socket_connect_timeout=min(5, timeout),
        health_check_interval=30,
        retry=Retry(ExponentialBackoff(cap=0.2, base=0.02), 2, supported_errors=(ConnectionLostError,)),
    )


class Store:
    """Jobs in Redis. Safe for threads. Every method raises redis.RedisError when Redis is not there."""

    def __init__(self, redis: Redis, *, lease: float = 12.0) -> None:
        """`lease`: seconds that an attempt is left alone without a sign of life from its worker."""
        self.redis = redis
        self.lease = lease
        sources = Path(__file__).parent / "lua"
        self._run = {name: redis.register_script((sources / f"{name}.lua").read_text()) for name in _SCRIPTS}

    def create(self, spec: JobSpec, admission: Admission, tenant: str) -> Job:
        """Accept a job for the tenant of this id. On return it is stored; it still has to be published."""
        job_id = "job_" + secrets.token_hex(12)
        retention = int(admission.retention * 1000)
        written: list[str | int] = [
            spec.model_dump_json(exclude_unset=True),
            admission.model_dump_json(),
            retention,
        ]
        created = self._run["create"]([_JOB + job_id, _QUEUED], [job_id, tenant, *written])
        return Job(
            id=job_id,
            tenant=tenant,
            state=JobState.QUEUED,
            spec=spec,
            admission=admission,
            created_at=_instant(created),
        )

    def get(self, job_id: str, tenant: str | None = None) -> Job | None:
        """The job; None when there is none, or it is not that tenant's."""
        values = self.redis.hmget(_JOB + job_id, _FIELDS)
        found = dict(zip(_FIELDS, values, strict=True))
        if found["tenant"] is None or (tenant is not None and found["tenant"] != tenant.encode()):
            return None
        return _job(job_id, found)

    def claim(self, job_id: str, attempt: int, worker: str) -> Attempt | None:
        """Take the job for its attempt of this number; None when that is not what it waits for."""
        keys = [_JOB + job_id, _QUEUED, _LEASES, _FENCE, _DELIVERED]
        claimed = self._run["claim"](keys, [job_id, attempt, worker, self._lease_ms])
        if claimed is None:
            return None
        token, now, *values = claimed
        found = dict(zip(("tenant", "spec", "admission", "created"), values, strict=True))
        job = _job(job_id, found | {"state": b"running", "attempt": attempt, "started": now})
        until = _instant(now + self._lease_ms)
        return Attempt(job=job, number=attempt, worker=worker, token=token, lease_until=until)

    def renew(self, attempts: Sequence[Attempt]) -> list[Renewal]:
        """Prolong the leases of these attempts by `lease` seconds from now, in one call."""
        if not attempts:
            return []
        keys = [_LEASES, *(_JOB + attempt.job.id for attempt in attempts)]
        holders: list[str | int] = [
            value for attempt in attempts for value in (attempt.job.id, attempt.token)
        ]
        return [Renewal(answer) for answer in self._run["renew"](keys, [self._lease_ms, *holders])]

    def finish(self, attempt: Attempt, result: JobResult) -> bool:
        """End the job with this result and wake who waits; False when the attempt's token is stale.

        To be asked again when the answer was lost: the second answer is that of the first.
        """
        job_id = attempt.job.id
        keys = [_JOB + job_id, _LEASES, _artifacts(job_id, attempt.token)]
        args: list[str | int] = [job_id, attempt.token, result.model_dump_json(), FINISHED_CHANNEL]
        return bool(self._run["finish"](keys, args))

    def fail_attempt(self, attempt: Attempt, kind: OutcomeKind, message: str) -> Failure:
        """End an attempt that *we* failed: queue the job for another, or finish it when it has had its three.

        Args:
            attempt: the attempt.
            kind: the outcome when there is no further attempt, SANDBOX_ERROR or WORKER_LOST.
            message: one sentence about the failure, for that outcome.
        """
        return self._fail(Lease(attempt.job.id, attempt.token), kind, message)

    def release(self, attempt: Attempt) -> Failure:
        """Give a job back that its worker will not run to its end: it is queued again in any case."""
        lease = Lease(attempt.job.id, attempt.token)
        return self._fail(lease, OutcomeKind.WORKER_LOST, "Its worker was stopped.", attempts=_RELEASES_MAX)

    def expired(self) -> list[Lease]:
        """Leases that have ended, up to `BATCH`; none until Redis has been up for the length of one."""
        found = self._run["expired"]([_LEASES], [self._lease_ms, BATCH, _JOB])
        return [Lease(job_id.decode(), int(token)) for job_id, token in _pairs(found)]

    def expire(self, lease: Lease) -> Failure:
        """End an attempt whose lease has ended, as `fail_attempt`; refused when it was renewed since."""
        message = f"The worker that ran it was lost, {ATTEMPTS_MAX} times."
        return self._fail(lease, OutcomeKind.WORKER_LOST, message, when="expired")

    def lost(self, after: float) -> list[tuple[str, int]]:
        """Queued jobs, up to `BATCH`, whose message seems lost: job id and attempt, to be published again.

        Args:
            after: seconds since its publication before a message is taken for lost.
        """
        found = self._run["lost"]([_QUEUED, _DELIVERED, queue.LIST], [int(after * 1000), BATCH, _JOB])
        return [(job_id.decode(), int(attempt)) for job_id, attempt in _pairs(found)]

    def cancel(self, job_id: str, tenant: str) -> Job | None:
        """Cancel the tenant's job: at once while it waits, soon while it runs, not when it is finished.

        Returns the job as it then is; None when the tenant has no such job.
        """
        result = _ended(OutcomeKind.CANCELLED, "It was cancelled before it started.")
        args = [job_id, tenant, result, FINISHED_CHANNEL, CANCEL_CHANNEL]
        known = self._run["cancel"]([_JOB + job_id, _QUEUED], args)
        return self.get(job_id, tenant) if known else None

    def cancellations(self) -> PubSub:
        """A subscription to the ids of running jobs that are to be cancelled; `renew` tells it too."""
        subscription: PubSub = self.redis.pubsub(ignore_subscribe_messages=True)  # type: ignore[no-untyped-call]
        subscription.subscribe(CANCEL_CHANNEL)
        return subscription

    def put_artifact(self, attempt: Attempt, path: str, content: bytes) -> None:
        """Keep a collected file. It can be fetched once the attempt has finished the job."""
        key = _artifacts(attempt.job.id, attempt.token)
        with self.redis.pipeline(transaction=False) as pipe:
            pipe.hset(key, path, content)
            pipe.expire(key, UNCLAIMED_ARTIFACTS)
            pipe.execute()

    def get_artifact(self, job_id: str, path: str) -> bytes | None:
        """The content of a collected file of a finished job; None when there is no such file."""
        token: Any = self.redis.hget(_JOB + job_id, "token")
        content: Any = self.redis.hget(_artifacts(job_id, int(token)), path) if token else None
        return content  # type: ignore[no-any-return]

    def heartbeat(self, worker: str, *, slots: int, running: int, launcher: str | None) -> None:
        """Say that a worker lives (see `WorkerStatus`); to be repeated well within `WORKER_SILENCE`."""
        about = json.dumps({"slots": slots, "running": running, "launcher": launcher})
        self._run["heartbeat"]([_WORKERS], [worker, about, int(WORKER_SILENCE * 1000)])

    def farewell(self, worker: str) -> None:
        """Say that a worker has stopped."""
        self.redis.hdel(_WORKERS, worker)

    def workers(self) -> list[WorkerStatus]:
        """The workers that live."""
        with self.redis.pipeline(transaction=False) as pipe:
            pipe.time()
            pipe.hgetall(_WORKERS)
            (seconds, microseconds), entries = pipe.execute()
        now = seconds + microseconds / 1e6
        found = []
        for name, entry in entries.items():
            seen, _, about = entry.partition(b" ")
            silent = max(0.0, round(now - int(seen) / 1000, 3))
            if silent < WORKER_SILENCE:
                found.append(WorkerStatus(name=name.decode(), silent=silent, **json.loads(about)))
        return found

    @property
    def _lease_ms(self) -> int:
        return int(self.lease * 1000)

    def _fail(
        self, lease: Lease, kind: OutcomeKind, message: str, *, when: str = "", attempts: int = ATTEMPTS_MAX
    ) -> Failure:
        cancelled = _ended(OutcomeKind.CANCELLED, f"It was cancelled; its last attempt failed: {message}")
        ends = [_ended(kind, message), cancelled, FINISHED_CHANNEL]
        args: list[str | int] = [lease.job_id, lease.token, when, attempts, *ends]
        answer = self._run["fail"]([_JOB + lease.job_id, _QUEUED, _LEASES], args)
        return Failure(accepted=answer >= 0, next_attempt=answer if answer > 0 else None)


def job_key(job_id: str) -> str:
    """The name of a job's hash."""
    return _JOB + job_id


def _artifacts(job_id: str, token: int) -> str:
    return f"stockade:artifacts:{job_id}:{token}"


def _ended(kind: OutcomeKind, message: str) -> str:
    return JobResult(outcome=Outcome(kind=kind, message=message)).model_dump_json()


def _instant(milliseconds: Any) -> datetime:
    return datetime.fromtimestamp(int(milliseconds) / 1000, UTC)


def _pairs(flat: Sequence[Any]) -> list[tuple[Any, Any]]:
    return list(zip(flat[::2], flat[1::2], strict=True))


def _job(job_id: str, found: dict[str, Any]) -> Job:
    """The job of a hash's values; what was not asked for counts as not there."""
    result, started, finished = found.get("result"), found.get("started"), found.get("finished")
    return Job.model_construct(
        id=job_id,
        tenant=found["tenant"].decode(),
        state=JobState(found["state"].decode()),
        spec=JobSpec.model_validate_json(found["spec"]),
        admission=Admission.model_validate_json(found["admission"]),
        attempt=int(found["attempt"]),
        created_at=_instant(found["created"]),
        started_at=_instant(started) if started else None,
        finished_at=_instant(finished) if finished else None,
        result=JobResult.model_validate_json(result) if result else None,
    )
