"""What a delivery makes a worker do: claim the job, run the attempt, see to its end."""

import time
from collections.abc import Callable

import structlog
from redis.exceptions import RedisError

from jobs.job import Attempt, JobResult
from jobs.metrics import metrics
from jobs.outcome import Outcome, OutcomeKind
from jobs.store import Failure
from worker.admission import NotAdmittedError
from worker.attempt import Workshop, run_attempt
from worker.sandbox.errors import SandboxError
from worker.stop import Reason, Stop, StoppedError, Stops

FINISH_PATIENCE = 300.0
"""Seconds to go on trying to store a result while Redis is not there; after that the job is run again."""
PAUSE_MOST = 1.0
"""Seconds between two tries at the most."""

RETRY_PAUSE = 0.25
"""Seconds to wait, times the number of the attempt, before a failed one is given back: a fault may pass."""

log = structlog.get_logger(__name__)


class Runner:
    """Runs the attempts that are delivered to one worker. Safe for threads: each delivery has its own."""

    def __init__(self, name: str, workshop: Workshop, stops: Stops) -> None:
        self._name = name
        self._workshop = workshop
        self._store = workshop.store
        self._stops = stops

    def run(self, job_id: str, number: int) -> None:
        """Run the attempt of this number of a job, unless it is not to be run (any more). Raises nothing."""
        with (
            self._stops.of(job_id, number) as stop,
            structlog.contextvars.bound_contextvars(job=job_id, attempt=number),
        ):
            if stop is None:
                log.info("duplicate_delivery")
                return
            try:
                with metrics.timed("sandbox_phase_seconds", phase="claim"):
                    attempt = stop.attempt = self._store.claim(job_id, number, self._name)
            except RedisError as error:
                log.warning("claim_failed", error=str(error))  # the sweep publishes it again
                return
            if attempt is None:
                log.info("not_to_be_run")
                return
            _count_start(attempt)
            with structlog.contextvars.bound_contextvars(tenant=attempt.job.tenant):
                self._run(attempt, stop)

    def _run(self, attempt: Attempt, stop: Stop) -> None:
        begun = time.monotonic()
        try:
            result = self._attempt(attempt, stop)
            with metrics.timed("sandbox_phase_seconds", phase="finish"):
                accepted = self._finish(attempt, result)
        except StoppedError as stopped:
            metrics.count("attempts_total", result=stopped.reason.value)
            if stopped.reason is Reason.SHUTDOWN:
                self._give_back(attempt)
            log.warning("attempt_stopped", reason=stopped.reason.value)
        except Exception as error:  # whatever it was, it was us: the job gets another attempt
            self._fail(attempt, error)
        else:
            seconds = time.monotonic() - begun
            _count_end(attempt, accepted, seconds)
            _log_end(result, accepted, seconds)

    def _attempt(self, attempt: Attempt, stop: Stop) -> JobResult:
        try:
            return run_attempt(attempt, self._workshop, stop)
        except NotAdmittedError as error:
            return JobResult(outcome=Outcome(kind=OutcomeKind.SANDBOX_ERROR, message=str(error)))

    def _finish(self, attempt: Attempt, result: JobResult) -> bool:
        """Store the result, and wait for a Redis that is away; its lease says whether it is still wanted."""
        deadline, pause = time.monotonic() + FINISH_PATIENCE, 0.05
        while True:
            try:
                return self._store.finish(attempt, result)
            except RedisError as error:
                if time.monotonic() > deadline:
                    raise
                log.warning("finish_delayed", error=str(error))
            time.sleep(pause)
            pause = min(2 * pause, PAUSE_MOST)

    def _fail(self, attempt: Attempt, error: Exception) -> None:
        metrics.count("attempts_total", result="failed")
        known = isinstance(error, SandboxError | RedisError)
        log.error("attempt_failed", error=str(error), exc_info=None if known else error)
        time.sleep(RETRY_PAUSE * attempt.number)
        message = f"The sandbox failed: {error}." if known else "The worker failed; its log has the reason."
        self._end(lambda: self._store.fail_attempt(attempt, OutcomeKind.SANDBOX_ERROR, message))

    def _give_back(self, attempt: Attempt) -> None:
        self._end(lambda: self._store.give_back(attempt))

    def _end(self, end: Callable[[], Failure]) -> None:
        """End a failed attempt, which publishes the next. Where that does not succeed, the lease ends."""
        try:
            end()
        except RedisError as error:
            log.warning("left_to_the_reaper", error=str(error))


def _count_start(attempt: Attempt) -> None:
    """Count how long a job waited for its first execution."""
    if attempt.number == 1 and attempt.job.started_at is not None:
        waited = attempt.job.started_at - attempt.job.created_at
        metrics.observe("queue_wait_seconds", waited.total_seconds(), pool=attempt.job.admission.pool)


def _count_end(attempt: Attempt, accepted: bool, seconds: float) -> None:
    metrics.count("attempts_total", result="finished" if accepted else "stale")
    if accepted:
        metrics.observe("run_seconds", seconds, pool=attempt.job.admission.pool)


def _log_end(result: JobResult, accepted: bool, seconds: float) -> None:
    """The one line that a finished attempt writes."""
    log.info(
        "attempt",
        outcome=result.outcome.kind.value,
        exit_code=result.outcome.exit_code,
        accepted=accepted,
        seconds=round(seconds, 4),
        steps=len(result.steps),
        cpu_time=round(sum(step.usage.cpu_time for step in result.steps), 4),
        memory=max((step.usage.memory for step in result.steps), default=0),
        artifacts=len(result.artifacts),
    )
