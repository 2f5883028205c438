"""The reaper: gives back what dead workers held, and publishes again what the broker lost.

Every worker has one, at its start and on a timer; any number may sweep at once, because each job's return
is one compare-and-set in the store.
"""

from collections.abc import Callable

import structlog

from jobs.store import Store

REPUBLISH_AFTER = 10.0
"""Seconds since its publication before a message that did not arrive is taken for lost."""

log = structlog.get_logger(__name__)


class Reaper:
    """Sweeps the store."""

    def __init__(
        self, store: Store, publish: Callable[[str, int], None], republish_after: float = REPUBLISH_AFTER
    ) -> None:
        self._store = store
        self._publish = publish
        self._republish_after = republish_after

    def sweep(self) -> None:
        """End the attempts whose lease has ended, and publish again the jobs whose message is lost.

        Raises redis.RedisError or kombu.exceptions.OperationalError when Redis is not there; the next sweep
        goes on where this one stopped.
        """
        for lease in self._store.expired():
            failure = self._store.expire(lease)
            if not failure.accepted:
                continue
            log.warning("lease_expired", job=lease.job_id, next_attempt=failure.next_attempt)
            if failure.next_attempt is not None:
                self._publish(lease.job_id, failure.next_attempt)
        for job_id, attempt in self._store.lost(self._republish_after):
            log.warning("published_again", job=job_id, attempt=attempt)
            self._publish(job_id, attempt)
