"""Refusals of jobs: each is counted by its rules, and those by policy and budget stand in the audit log.

What the policy or a budget refuses is written down with the fields and rules at fault, never with the values that the
request had there. A caller that repeats itself fills the log no faster than one entry in `QUIET` seconds for the same
refusal; the next entry then says how often it came meanwhile.
"""

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock
from time import monotonic

import structlog
from redis import Redis
from redis.exceptions import RedisError

from api.auth import Identity
from api.problems import NOT_ADMITTED, OVER_BUDGET, ProblemError
from jobs import audit
from jobs.metrics import metrics
from jobs.rules import rule_of

QUIET = 10.0  # seconds
REMEMBERED = 10_000  # refusals whose repetition is noticed
RECORDED = frozenset({NOT_ADMITTED, OVER_BUDGET})
"""The problems that are written into the audit log; the others are no decision about a job."""

log = structlog.get_logger(__name__)


class Refusals:
    """Takes note of the refusals of one process. Safe for threads."""

    def __init__(self, redis: Redis, quiet: float = QUIET) -> None:
        self._redis = redis
        self._quiet = quiet
        self._lock = Lock()
        self._latest: OrderedDict[tuple[str, ...], tuple[float, int]] = OrderedDict()

    @contextmanager
    def noted(self, caller: Identity) -> Iterator[None]:
        """Take note of the problem that the block, which submits a job for `caller`, raises."""
        try:
            yield
        except ProblemError as error:
            self.note(caller, error)
            raise

    def note(self, caller: Identity, problem: ProblemError) -> None:
        """Count a refusal and, where that is to be, write it down. Redis may be away."""
        rules = sorted({rule_of(error.field) for error in problem.errors})
        metrics.count("jobs_submitted_total", result=problem.kind.name)
        for rule in rules:
            metrics.count("refusals_total", problem=problem.kind.name, rule=rule)
        if problem.kind in RECORDED:
            self._record(caller, problem, rules)

    def _record(self, caller: Identity, problem: ProblemError, rules: list[str]) -> None:
        actor = audit.key_actor(caller.key_id)
        repeated = self._repeated((caller.id, actor, problem.kind.name, *rules))
        if repeated is None:
            return
        fields = [error.field for error in problem.errors]
        about = {"problem": problem.kind.name, "rules": rules, "fields": fields, "repeated": repeated}
        try:
            audit.record(self._redis, caller.id, actor, "job.refused", **about)
        except RedisError as error:
            log.warning("refusal_not_recorded", error=type(error).__name__)

    def _repeated(self, refusal: tuple[str, ...]) -> int | None:
        """How often it came since it was last written down; None when that was a moment ago."""
        now = monotonic()
        with self._lock:
            written, repeated = self._latest.pop(refusal, (float("-inf"), 0))
            if now - written < self._quiet:
                self._latest[refusal] = written, repeated + 1
                return None
            self._latest[refusal] = now, 0
            if len(self._latest) > REMEMBERED:
                self._latest.popitem(last=False)
            return repeated
