"""The reaper: has the store do what time asks for, and tells the log what that was.

Every worker has one, at its start and on a timer; any number may sweep at once, because each job's change is one
step in the store.
"""

import structlog

from jobs.store import BATCH, Store, Swept

LOST_AFTER = 10.0
"""Seconds since its publication before a message that did not arrive is taken for lost."""

log = structlog.get_logger(__name__)


class Reaper:
    """Sweeps the store."""

    def __init__(self, store: Store, lost_after: float = LOST_AFTER) -> None:
        self._store = store
        self._lost_after = lost_after

    def sweep(self) -> None:
        """Sweep until there is no more than a batch of anything left.

        Raises redis.RedisError when Redis is not there; the next sweep goes on where this one stopped.
        """
        swept = self._store.sweep(self._lost_after)
        _tell(swept)
        while len(swept) >= BATCH:
            swept = self._store.sweep(self._lost_after)
            _tell(swept)


def _tell(swept: list[Swept]) -> None:
    for what, name, number in swept:
        if what == "expired":
            log.warning("lease_expired", job=name, next_attempt=number or None)
        elif what == "published":
            log.warning("published_again", job=name, attempt=number)
        elif what == "late":
            log.info("job_too_late", job=name)
