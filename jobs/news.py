"""News: the events of projects that have webhooks, until their webhooks' deliveries are made.

    stockade:told             set of the projects that have webhooks (jobs/webhooks.py)
    stockade:news:PROJECT     stream of its events that are still to be told (fields: jobs/events.py); the store's
                              scripts append to it, up to `NEWS` of lib/ending.lua
    stockade:missed:PROJECT   hash of state -> how many events came when that many waited already
    stockade:news             sorted set of the projects that have news by their turn, ms; while a project's news are
                              taken, by the end of the taker's lease

Projects take turns, a batch each, so that whoever makes many events delays and loses none but its own. What was taken
and not told, since the taker died, is taken again when the lease has ended: an event is told at least once.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from redis import Redis

from jobs.events import MISSED, NEWS, EventType, news_keys
from jobs.scripts import script
from jobs.webhooks import WEBHOOK

CHANNEL = NEWS
"""Channel on which a project's id is announced when it has news and had none."""
LEASE = 30.0
"""Seconds that a taker has for a batch; more than making its deliveries can take."""
BATCH = 100
"""Events that a project's turn has."""


@dataclass(frozen=True)
class Batch:
    """The oldest news of one project."""

    project: str
    entries: Sequence[tuple[bytes, Mapping[bytes, bytes]]]
    """The events as they are in the stream: identifier and fields."""
    missed: Mapping[EventType, int]
    """How many events of each type were never written, because too many waited."""


class News:
    """The news in Redis. Safe for threads. Every method raises redis.RedisError when Redis is not there."""

    def __init__(self, redis: Redis, *, lease: float = LEASE, batch: int = BATCH) -> None:
        self._redis = redis
        self._lease = lease
        self._batch = batch

    def take(self) -> Batch | float | None:
        """The news of the project whose turn it is; else the seconds until a turn comes, None when there are none."""
        args: list[str | int] = [int(self._lease * 1000), self._batch, NEWS + ":", MISSED]
        wait, *found = script(self._redis, "news_take")([NEWS], args)
        if not found:
            return None if wait < 0 else wait / 1000
        project, entries, missed = found
        return Batch(
            project=project.decode(),
            entries=[(entry_id, _paired(fields)) for entry_id, fields in entries],
            missed={_type(state): int(count) for state, count in _paired(missed).items()},
        )

    def told(self, batch: Batch) -> None:
        """Forget these: their deliveries are there. The project's next turn comes after all others'."""
        args: list[str | bytes] = [batch.project, *(entry_id for entry_id, _ in batch.entries)]
        script(self._redis, "news_told")(news_keys(batch.project), args)

    def missed(self, batch: Batch, kind: EventType, webhooks: Iterable[str]) -> None:
        """Count what was missed of this type as dropped of these webhooks; the same batch again counts nothing."""
        keys = [MISSED + batch.project, *(WEBHOOK + each for each in webhooks)]
        script(self._redis, "news_missed")(keys, [kind.removeprefix("job."), batch.missed[kind]])


def _paired(flat: Sequence[Any]) -> dict[bytes, bytes]:
    return dict(zip(flat[::2], flat[1::2], strict=True))


def _type(state: bytes) -> EventType:
    return EventType("job." + state.decode())
