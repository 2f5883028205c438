"""The store: every job's truth, in Redis. Who waits and who runs, who may still report, what became of it.

A job is one hash, `stockade:job:ID`:

    tenant      the project whose it is
    state       queued, running, cancelling, finished (`JobState`)
    attempt     how often its execution was begun
    pool        the Celery queue that it goes through
    spec, admission, result     JSON of `JobSpec`, `Admission`, `JobResult`
    kept, sizes what becomes of the spec when the job ends, and its files' sizes (`jobs/kept.py`), where it has contents
    labels, outcome, policy     parts of these, so that a list of jobs need not read the whole
    retention   ms that it is kept after its end; expires: when that is
    created, started, finished, starts_by, ends_by      ms since the epoch, by the server's clock
    worker, token               who runs it, and the fencing token of that attempt
    charged     slot-seconds that its project has been charged ahead, until it ends
    idempotency key of the record of the caller's `Idempotency-Key`
    artifact_bytes              bytes of its artifacts (`stockade:artifacts:ID:TOKEN`, hash: path -> content)

Each change of a state is one Lua script, `jobs/lua/NAME.lua`, whose head and whose libraries' heads list every key
that it touches; so each is one round trip, all or nothing, and decided by one clock. Which job goes to the workers
next is decided in `lib/release.lua`, within the same step that makes room for it: whatever dies, no job is between
two places.
"""

import hashlib
import json
import secrets
import time
from collections.abc import Sequence
from datetime import datetime
from enum import IntEnum
from typing import Any, NamedTuple

from redis import Redis
from redis.backoff import ExponentialBackoff
from redis.client import PubSub
from redis.exceptions import ConnectionError as ConnectionLostError
from redis.retry import Retry

from jobs.clock import instant
from jobs.job import ATTEMPTS_MAX, Attempt, Job, JobResult, JobState
from jobs.kept import without_contents
from jobs.metrics import metrics
from jobs.outcome import Outcome, OutcomeKind
from jobs.scripts import script
from jobs.settings import Settings
from jobs.spec import JobSpec
from jobs.usage import charge_of
from policies.admission import Admission

FINISHED_CHANNEL = "stockade:finished"
"""Where the id of each job that ends is published."""
CANCEL_CHANNEL = "stockade:cancel"
"""Where the id of each running job that is to be cancelled is published."""
BATCH = 100
"""The most jobs of each kind that one sweep handles."""
UNCLAIMED_ARTIFACTS = 24 * 3600
"""Seconds after which the artifacts of an attempt that never finished are dropped."""

_RELEASES_MAX = 900  # the queue takes attempt numbers up to 999
_JOB = "stockade:job:"
_SCRIPTS = (
    *("create", "recall", "get", "claim", "renew", "keep"),
    *("room", "finish", "fail", "cancel", "delete", "sweep"),
)
_FIELDS = (
    *("tenant", "state", "spec", "admission", "attempt", "created", "started", "finished", "result"),
    *("expires", "pool"),
)


class Renewal(IntEnum):
    """What became of a lease when it was to be renewed."""

    LOST = 0
    RENEWED = 1
    CANCELLING = 2
    """Renewed; but the job is to be cancelled."""


class Failure(NamedTuple):
    """What became of an attempt that failed for a reason of ours."""

    accepted: bool
    """False when the token was stale: somebody else has the job."""
    next_attempt: int | None
    """The number of the attempt for which the job is queued again; None when it is finished."""


class Idempotency(NamedTuple):
    """A caller's `Idempotency-Key`, and what it was sent with."""

    key: str
    body: bytes


class Submits(NamedTuple):
    """How the tightest budget `submits_per_minute` stands."""

    limit: int
    left: int
    reset: float
    """Seconds until all of it is there again."""


class Accepted(NamedTuple):
    """A job that was handed in."""

    job: Job
    again: bool
    """Whether it is that of an earlier call with the same idempotency key; nothing new was made."""
    submits: Submits | None
    """None where there is no such budget."""
    position: int | None = None
    """How many jobs of its own project went before a new job; None when it was released at once."""


class Swept(NamedTuple):
    """One thing that a sweep did: `expired`, `published`, `late`, `deleted` (of a job), `released` (of a pool),
    `reviewed` (of POOL|TENANT, one that may have no more for now)."""

    what: str
    name: str
    number: int
    """Next attempt, 0 for none; how many jobs were released; 1 where a tenant takes its turns again."""


class BudgetExceededError(Exception):
    """A budget of the project, or of its organisation, is used up.

    Attributes:
        budget: its name, as in `jobs.tenants.Budgets`.
        tenant: id of the tenant whose it is.
        limit, used: what it is and how it stands, in the budget's unit.
        retry_after: seconds after which it is worth trying again.
        submits: how `submits_per_minute` stands, whichever budget it is.
    """

    def __init__(
        self,
        budget: str,
        tenant: str,
        limit: float,
        used: float,
        retry_after: float,
        submits: Submits | None = None,
    ) -> None:
        super().__init__(f"the budget {budget} of {limit:g} is used up")
        self.budget, self.tenant, self.limit, self.used = budget, tenant, limit, used
        self.retry_after, self.submits = retry_after, submits


class IdempotencyError(Exception):
    """An idempotency key that came before with another body."""


class ProjectGoneError(Exception):
    """The project was removed a moment ago."""


def connect(settings: Settings, timeout: float = 10) -> Redis:
    """A client of the settings' Redis server, for `Store` and its neighbours. It connects when used.

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
        self._run = {name: script(redis, name) for name in _SCRIPTS}

    def create(
        self,
        spec: JobSpec,
        admission: Admission,
        project: str,
        *,
        actor: str = "service",
        idempotency: Idempotency | None = None,
    ) -> Accepted:
        """Accept a job for the project of this id. On return it is stored, and goes its way by itself.

        Args:
            spec: what is asked.
            admission: what the policy decided about it.
            project: id of the tenant.
            actor: who asks, for the audit log.
            idempotency: the caller's key, if it sent one.

        Raises:
            BudgetExceededError: a budget of the project or its organisation is used up.
            IdempotencyError: the key came before with another body.
            ProjectGoneError: there is no such project any more.
        """
        job_id = "job_" + secrets.token_hex(12)
        keys, args = create_call(job_id, spec, admission, project, actor, idempotency)
        answer = self._run["create"](keys, args)
        match answer:
            case [b"created", created, position, *submits]:
                job = _new_job(job_id, spec, admission, project, created)
                return Accepted(job, False, _submits(submits), position if position >= 0 else None)
            case [b"over", budget, level, limit, used, wait, *submits]:
                raise BudgetExceededError(
                    budget.decode(), level.decode(), float(limit), float(used), wait / 1000, _submits(submits)
                )
            case [b"gone"]:
                raise ProjectGoneError(f"there is no project {project} any more")
        earlier = self._earlier(answer)
        if earlier is None:  # it has just been deleted, and the record of the key with it
            return self.create(spec, admission, project, actor=actor, idempotency=idempotency)
        return earlier

    def recall(self, project: str, idempotency: Idempotency) -> Accepted | None:
        """The job of an earlier call with this idempotency key; None when there was none.

        Raises IdempotencyError when that call had another body.
        """
        key = _idempotency_key(project, idempotency.key)
        answer = self._run["recall"]([key], [project, _digest(idempotency.body)])
        return self._earlier(answer) if answer else None

    def get(self, job_id: str, project: str | None = None) -> Job | None:
        """The job; None when there is none, it is not that project's, or its retention is over."""
        job = self._stored(job_id, project or "")
        if job is not None and job.expires_at is not None and job.expires_at.timestamp() <= time.time():
            return None  # only waiting to be swept
        return job

    def claim(self, job_id: str, attempt: int, worker: str) -> Attempt | None:
        """Take the job for its attempt of this number; None when that is not what it waits for."""
        claimed = self._run["claim"](
            [_JOB + job_id, "stockade:fence"], [job_id, attempt, worker, self._lease_ms]
        )
        if claimed is None:
            return None
        token, now, *values = claimed
        found = dict(zip(("tenant", "spec", "admission", "created", "pool"), values, strict=True))
        job = _job(job_id, found | {"state": b"running", "attempt": attempt, "started": now})
        until = instant(now + self._lease_ms)
        return Attempt(job=job, number=attempt, worker=worker, token=token, lease_until=until)

    def renew(self, attempts: Sequence[Attempt]) -> list[Renewal]:
        """Prolong the leases of these attempts by `lease` seconds from now, in one call."""
        if not attempts:
            return []
        keys = [_JOB + attempt.job.id for attempt in attempts]
        holders: list[str | int] = [
            value for attempt in attempts for value in (attempt.job.id, attempt.token)
        ]
        return [Renewal(answer) for answer in self._run["renew"](keys, [self._lease_ms, *holders])]

    def finish(self, attempt: Attempt, result: JobResult) -> bool:
        """End the job with this result, charge it, and wake who waits; False when the token is stale.

        To be asked again when the answer was lost: the second answer is that of the first.
        """
        job_id = attempt.job.id
        args: list[str | int | float] = [job_id, attempt.token, *_ending(result)]
        args += charge_of(result, attempt.job.admission)
        with metrics.timed("release_seconds"):
            return bool(self._run["finish"]([_artifacts(job_id, attempt.token)], args))

    def fail_attempt(self, attempt: Attempt, kind: OutcomeKind, message: str) -> Failure:
        """End an attempt that *we* failed: queue the job for another, or finish it when it has had its three.

        Args:
            attempt: the attempt.
            kind: the outcome when there is no further attempt, SANDBOX_ERROR or WORKER_LOST.
            message: one sentence about the failure, for that outcome.
        """
        return self._fail(attempt, kind, message, ATTEMPTS_MAX)

    def give_back(self, attempt: Attempt) -> Failure:
        """Give a job back that its worker will not run to its end: it is queued again in any case."""
        return self._fail(attempt, OutcomeKind.WORKER_LOST, "Its worker was stopped.", _RELEASES_MAX)

    def cancel(self, job_id: str, project: str) -> Job | None:
        """Cancel the project's job: at once while it waits, soon while it runs, not when it is finished.

        Returns the job as it then is; None when the project has no such job.
        """
        ending = _ended(OutcomeKind.CANCELLED, "It was cancelled before it started.")
        known = self._run["cancel"]([_JOB + job_id], [job_id, project, *ending, CANCEL_CHANNEL])
        return self.get(job_id, project) if known else None

    def delete(self, job_id: str, project: str, *, actor: str = "service") -> bool | None:
        """Delete the project's finished job with all that is kept of it.

        Args:
            job_id: the job.
            project: id of the tenant.
            actor: who asks, for the audit log.

        Returns:
            True when it is gone, False when it has not finished, None when the project has no such job.
        """
        answer = self._run["delete"]([], [job_id, project, actor])
        return {1: True, -1: False}.get(int(answer))

    def sweep(self, lost_after: float) -> list[Swept]:
        """Do what time asks for, for all jobs; what was done, up to `BATCH` of each kind.

        Leases that have ended give their jobs back, messages that seem lost are published again, jobs that may
        not start any more end, retention ends, and what there is room for is released. No lease ends until
        Redis has been up for the length of one.

        Args:
            lost_after: seconds since its publication before a message is taken for lost.
        """
        lost = f"The worker that ran it was lost, {ATTEMPTS_MAX} times."
        endings = [
            *_ended(OutcomeKind.WORKER_LOST, lost),
            *_ended(OutcomeKind.CANCELLED, "It was cancelled; the worker that ran it was lost."),
        ]
        told = self._run["sweep"]([], [BATCH, self._lease_ms, int(lost_after * 1000), ATTEMPTS_MAX, *endings])
        triples = zip(told[::3], told[1::3], told[2::3], strict=True)
        return [Swept(what.decode(), name.decode(), int(number)) for what, name, number in triples]

    def position(self, job: Job) -> int | None:
        """How many jobs of its own project are released before this one; None once it is released."""
        rank: Any = self.redis.zrank(f"stockade:backlog:{job.admission.pool}:{job.tenant}", job.id)
        return None if rank is None else int(rank)

    def cancellations(self) -> PubSub:
        """A subscription to the ids of running jobs that are to be cancelled; `renew` tells it too."""
        subscription: PubSub = self.redis.pubsub(ignore_subscribe_messages=True)  # type: ignore[no-untyped-call]
        subscription.subscribe(CANCEL_CHANNEL)
        return subscription

    def artifact_room(self, project: str) -> int | None:
        """Bytes of artifacts that the project may still have by its and its organisation's budget; None: any."""
        room = self._run["room"]([], [project])
        return None if room is None else int(room)

    def put_artifact(self, attempt: Attempt, path: str, content: bytes) -> None:
        """Keep a collected file. It can be fetched once the attempt has finished the job.

        Nothing is kept of an attempt that has lost its job: nobody would ever delete it.
        """
        key = _artifacts(attempt.job.id, attempt.token)
        with self.redis.pipeline(transaction=True) as pipe:
            pipe.hset(key, path, content)
            pipe.expire(key, UNCLAIMED_ARTIFACTS)
            self._run["keep"]([_JOB + attempt.job.id, key], [attempt.token], client=pipe)
            pipe.execute()

    def get_artifact(self, job_id: str, path: str) -> bytes | None:
        """The content of a collected file of a finished job; None when there is no such file."""
        token: Any = self.redis.hget(_JOB + job_id, "token")
        content: Any = self.redis.hget(_artifacts(job_id, int(token)), path) if token else None
        return content  # type: ignore[no-any-return]

    def _stored(self, job_id: str, project: str = "") -> Job | None:
        """The job, even when its retention is over; None when there is none, or it is not that project's."""
        values = self._run["get"]([_JOB + job_id], [project, *_FIELDS])
        return None if values is None else _job(job_id, dict(zip(_FIELDS, values, strict=True)))

    def _earlier(self, answer: Sequence[Any]) -> Accepted | None:
        """The job that a key's earlier use made, as a script names it; None when it is gone."""
        used, known, *submits = answer
        if used != b"again":
            raise IdempotencyError("this Idempotency-Key came before with another body")
        job = self._stored(known.decode())
        return None if job is None else Accepted(job, True, _submits(submits))

    @property
    def _lease_ms(self) -> int:
        return int(self.lease * 1000)

    def _fail(self, attempt: Attempt, kind: OutcomeKind, message: str, attempts: int) -> Failure:
        cancelled = f"It was cancelled; its last attempt failed: {message}"
        endings = [*_ended(kind, message), *_ended(OutcomeKind.CANCELLED, cancelled)]
        answer = self._run["fail"]([], [attempt.job.id, attempt.token, attempts, *endings])
        return Failure(accepted=answer >= 0, next_attempt=answer if answer > 0 else None)


def create_call(
    job_id: str,
    spec: JobSpec,
    admission: Admission,
    project: str,
    actor: str = "service",
    idempotency: Idempotency | None = None,
) -> tuple[list[str], list[str | int]]:
    """The keys and arguments of create.lua for a job."""
    keys = [_JOB + job_id]
    if idempotency:
        keys.append(_idempotency_key(project, idempotency.key))
    return keys, [
        *(job_id, project, spec.model_dump_json(exclude_unset=True), admission.model_dump_json()),
        *(int(admission.retention * 1000), admission.pool, admission.priority.rank),
        int(admission.max_queue_time * 1000),
        _milliseconds(spec.deadline) if spec.deadline else "",
        *(_labels(spec), admission.policy),
        _digest(idempotency.body) if idempotency else "",
        actor,
        *without_contents(spec),
    ]


def job_key(job_id: str) -> str:
    """The name of a job's hash."""
    return _JOB + job_id


def _artifacts(job_id: str, token: int) -> str:
    return f"stockade:artifacts:{job_id}:{token}"


def _idempotency_key(project: str, key: str) -> str:
    return f"stockade:idempotency:{project}:{_digest(key.encode())}"


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _ending(result: JobResult) -> tuple[str, str, str]:
    """A result as the scripts take it: kind of the outcome, the outcome, the whole."""
    return result.outcome.kind.value, result.outcome.model_dump_json(), result.model_dump_json()


def _ended(kind: OutcomeKind, message: str) -> tuple[str, str, str]:
    return _ending(JobResult(outcome=Outcome(kind=kind, message=message)))


def _labels(spec: JobSpec) -> str:
    return json.dumps(spec.labels)


def _submits(answer: Sequence[int]) -> Submits | None:
    return Submits(answer[0], answer[1], answer[2] / 1000) if answer else None


def _milliseconds(moment: datetime) -> int:
    return int(moment.timestamp() * 1000)


def _new_job(job_id: str, spec: JobSpec, admission: Admission, project: str, created: int) -> Job:
    return Job(
        id=job_id,
        tenant=project,
        state=JobState.QUEUED,
        spec=spec,
        admission=admission,
        created_at=instant(created),
    )


def _job(job_id: str, found: dict[str, Any]) -> Job:
    """The job of a hash's values; what was not asked for counts as not there."""
    result, started, finished = found.get("result"), found.get("started"), found.get("finished")
    expires = found.get("expires")
    return Job.model_construct(
        id=job_id,
        tenant=found["tenant"].decode(),
        state=JobState(found["state"].decode()),
        spec=JobSpec.model_validate_json(found["spec"]),
        admission=Admission.model_validate_json(found["admission"]),
        attempt=int(found["attempt"]),
        created_at=instant(found["created"]),
        started_at=instant(started) if started else None,
        finished_at=instant(finished) if finished else None,
        expires_at=instant(expires) if expires else None,
        result=JobResult.model_validate_json(result) if result else None,
    )
