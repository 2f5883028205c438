"""Shadow: drafts of policies, evaluated beside the policies in force on the submissions that come.

It has a thread and a short queue of its own: a submission hands itself over and goes on. When the queue is full
the submission is not evaluated; when Redis fails it is not counted; both only the log knows.
"""

import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import structlog
from redis import Redis
from redis.exceptions import RedisError

from jobs import shadow
from jobs.spec import JobSpec
from policies.admission import AdmissionError, admit
from policies.policy import Policy
from policies.scopes import ScopeError, Scopes, effective
from policies.violation import Violation

WAITING_MAX = 100
"""Submissions that wait to be evaluated; further ones are not."""

log = structlog.get_logger(__name__)


class Submission(NamedTuple):
    """One submission, and the draft that it is to be evaluated under."""

    spec: JobSpec
    draft: Policy
    scopes: Scopes
    tenant: str
    job: str | None
    """None when the policy in force refused it."""


class Shadow:
    """Evaluates submissions under drafts. Safe for threads."""

    def __init__(self, redis: Redis, host_image: bool) -> None:
        self._redis = redis
        self._host_image = host_image
        self._waiting: queue.Queue[Submission | None] = queue.Queue(WAITING_MAX)

    def see(self, submission: Submission) -> None:
        """Have a submission evaluated, soon. Raises nothing and waits for nothing."""
        try:
            self._waiting.put_nowait(submission)
        except queue.Full:
            log.warning("shadow_behind", draft=submission.draft.name)

    @contextmanager
    def watching(self) -> Iterator["Shadow"]:
        """Evaluate what comes until the block is left."""
        thread = threading.Thread(target=self._watch, name="shadow", daemon=True)
        thread.start()
        try:
            yield self
        finally:
            try:
                self._waiting.put_nowait(None)
                thread.join(timeout=1)
            except queue.Full:  # it is a daemon: the process ends without it
                pass

    def _watch(self) -> None:
        while (submission := self._waiting.get()) is not None:
            try:
                self._evaluate(submission)
            except RedisError as error:
                log.warning("shadow_not_counted", draft=submission.draft.name, reason=str(error))
            except Exception:
                log.exception("shadow_failed", draft=submission.draft.name)

    def _evaluate(self, submission: Submission) -> None:
        spec, draft, scopes, tenant, job = submission
        violations: tuple[Violation, ...] = ()
        try:
            admit(spec, effective(draft, scopes), host_image=self._host_image)
        except (ScopeError, AdmissionError) as error:
            violations = error.violations
        shadow.record(self._redis, draft.name, draft.digest, tenant, job, violations)
