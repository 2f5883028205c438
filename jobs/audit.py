"""The audit log: who was let in or refused, and who changed keys and policies.

A tenant's log is two streams, each of the latest `ENTRIES` entries, about: `stockade:audit:TENANT:jobs` has what was
decided about jobs (actions `job.…`), `stockade:audit:TENANT` all else, so that whoever submits many jobs does not drive
out what was done with keys. They are read as one. The id of an entry in its stream has its time, by the server's clock;
in the log the number behind that is doubled, odd for jobs, so that no two are the same. Fields: `actor` (`key:KEYID`,
`operator`, `service`), `action` (`job.admitted`, `key.created`, …), `about` (a JSON object). Events of the platform are
those of the tenant `platform`.

No secret gets in: texts are cut, and what looks like one of our keys or signing secrets is struck out.
"""

import heapq
import json
import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, NamedTuple

from pydantic import AwareDatetime, Field, JsonValue
from redis import Redis

from policies.model import Frozen
from policies.violation import shown

PLATFORM = "platform"
"""The tenant of what concerns the whole installation."""
OPERATOR, SERVICE = "operator", "service"
"""Actors that have no key: who works at the command line, and the service by itself."""
ENTRIES = 10_000
"""Entries about jobs, and others, that are kept of each tenant, about; the oldest go first."""
ABOUT_MAX = 20
"""Facts of one entry, and items of a list in it."""
PAGE_MAX = 500
"""The most entries of one page."""
LOOKED_AT_MAX = 5000
"""Entries that are looked at for one page; it ends there, however few of them met its conditions."""

_BATCH = 1000
_ACTOR = re.compile(r"operator|service|key:[A-Za-z0-9_-]{1,64}")
_ACTION = re.compile(r"[a-z_]{1,32}(\.[a-z_]{1,32}){1,3}")
_SECRETS = re.compile(r"(sk_[0-9a-f]{16}_|whsec_)[A-Za-z0-9_+/=-]+")
_JOB = "job"
_CURSOR = re.compile(r"([0-9]{1,20})-([0-9]{1,20})")


class Entry(Frozen):
    """One thing that happened."""

    id: str = Field(description="Identifier: unique in the tenant's log, and in order.")
    at: AwareDatetime = Field(description="When.")
    actor: str = Field(description="Who did it: `key:` and an API key's id, `operator`, or `service`.")
    action: str = Field(description="What was done.", examples=["job.refused", "key.created"])
    about: dict[str, JsonValue] = Field(description="The particulars; which, depends on the action.")


class Page(Frozen):
    """Some entries of the log."""

    entries: tuple[Entry, ...] = Field(description="The entries, newest first.")
    next_cursor: str | None = Field(
        description="Send this as `cursor` to get those before; null when there are none. A page for an action "
        "may have few entries, or none, and others before it."
    )


class CursorError(ValueError):
    """A cursor that no page gave out."""


class Position(NamedTuple):
    """How far a log has been read: the latest entry of each of its streams."""

    others: str
    jobs: str


class _Stream(NamedTuple):
    key: str
    odd: int

    def before(self, place: tuple[int, int]) -> str:
        """What is in this stream before an entry of the log, as the end of an interval."""
        return f"({place[0]}-{(place[1] - self.odd + 1) // 2}"


def record(redis: Redis, tenant: str, actor: str, action: str, /, **about: Any) -> None:
    """Write one entry into a tenant's log.

    Args:
        redis: where the log is.
        tenant: id of the tenant, or `PLATFORM`.
        actor: `OPERATOR`, `SERVICE` or what `key_actor` gives.
        action: words joined by points.
        about: particulars; texts are cut, lists and objects too.

    Raises:
        ValueError: actor or action are not of that form.
        redis.RedisError: it is not written.
    """
    if not _ACTOR.fullmatch(actor) or not _ACTION.fullmatch(action):
        raise ValueError(f"{actor!r} did {action!r}: not an actor and an action")
    particulars = json.dumps({name: _safe(value) for name, value in list(about.items())[:ABOUT_MAX]})
    fields: dict[Any, Any] = {"actor": actor, "action": action, "about": particulars}
    [stream] = _streams(tenant, action)
    redis.xadd(stream.key, fields, maxlen=ENTRIES, approximate=True)


def key_actor(key_id: str) -> str:
    """The actor behind the API key of this id."""
    return f"key:{key_id}"


def page(
    redis: Redis,
    tenant: str,
    *,
    limit: int,
    cursor: str | None = None,
    action: str | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
) -> Page:
    """The newest entries that meet all conditions.

    Args:
        redis: where the log is.
        tenant: id of the tenant, or `PLATFORM`.
        limit: how many at the most.
        cursor: only what is older than the page that gave this out.
        action: only this action, or those that begin with it and a point (`matches`): `job`, `job.refused`.
        since: only from then on.
        until: only before then.

    Raises:
        CursorError: `cursor` is none.
    """
    place = _place(cursor) if cursor is not None else None
    oldest = f"{_milliseconds(since)}-0" if since else "-"
    batch = limit + 1 if action is None else _BATCH
    entries = heapq.merge(
        *(
            _backwards(redis, stream, _newest(stream, place, until), oldest, batch)
            for stream in _streams(tenant, action)
        ),
        key=lambda entry: _place(entry.id),
        reverse=True,
    )
    found: list[Entry] = []
    last = None
    for number, entry in enumerate(entries):
        if last is not None and (number == LOOKED_AT_MAX or len(found) == limit):
            return Page(entries=tuple(found), next_cursor=last.id)
        if matches(entry, action):
            found.append(entry)
        last = entry
    return Page(entries=tuple(found), next_cursor=None)


def position(redis: Redis, tenant: str) -> Position:
    """How far the log goes now."""
    latest: list[Any] = [redis.xrevrange(stream.key, count=1) for stream in _streams(tenant, None)]
    return Position(*(found[0][0].decode() if found else "0-0" for found in latest))


def after(redis: Redis, tenant: str, known: Position) -> tuple[list[Entry], Position]:
    """The entries after a position, oldest first, and the position behind them."""
    entries: list[Entry] = []
    reached = []
    for stream, latest in zip(_streams(tenant, None), known, strict=True):
        found: Any = redis.xrange(stream.key, f"({latest}", "+", count=_BATCH)
        entries += (_entry(stream, *item) for item in found)
        reached.append(found[-1][0].decode() if found else latest)
    return sorted(entries, key=lambda entry: _place(entry.id)), Position(*reached)


def matches(entry: Entry, action: str | None) -> bool:
    """Whether an entry is of this action, or of one that begins with it and a point; None is any."""
    return action is None or f"{entry.action}.".startswith(f"{action}.")


def _streams(tenant: str, action: str | None) -> list[_Stream]:
    """The streams that can have entries of this action, those of jobs last; None is any."""
    key = f"stockade:audit:{tenant}"
    others, jobs = _Stream(key, 0), _Stream(f"{key}:jobs", 1)
    if action is None:
        return [others, jobs]
    return [jobs if action.partition(".")[0] == _JOB else others]


def _newest(stream: _Stream, place: tuple[int, int] | None, until: datetime | None) -> str:
    """The end of the interval of a stream that is before an entry of the log and before a time."""
    if until is not None and (place is None or _milliseconds(until) <= place[0]):
        return f"({_milliseconds(until)}-0"
    return stream.before(place) if place else "+"


def _backwards(redis: Redis, stream: _Stream, newest: str, oldest: str, batch: int) -> Iterator[Entry]:
    while True:
        found: Any = redis.xrevrange(stream.key, newest, oldest, count=batch)
        yield from (_entry(stream, *item) for item in found)
        if len(found) < batch:
            return
        newest = "(" + found[-1][0].decode()


def _entry(stream: _Stream, entry_id: bytes, fields: Mapping[bytes, bytes]) -> Entry:
    milliseconds, _, number = entry_id.decode().partition("-")
    return Entry(
        id=f"{milliseconds}-{2 * int(number) + stream.odd}",
        at=datetime.fromtimestamp(int(milliseconds) / 1000, UTC),
        actor=fields.get(b"actor", SERVICE.encode()).decode(),
        action=fields.get(b"action", b"").decode(),
        about=json.loads(fields.get(b"about", b"{}")),
    )


def _safe(value: Any) -> JsonValue:
    if isinstance(value, list | tuple | set | frozenset):
        return [_safe(item) for item in list(value)[:ABOUT_MAX]]
    if isinstance(value, Mapping):
        return {str(_safe(str(name))): _safe(inner) for name, inner in list(value.items())[:ABOUT_MAX]}
    text = _SECRETS.sub(r"\1…", value) if isinstance(value, str) else value
    return shown(text)


def _place(cursor: str) -> tuple[int, int]:
    """Where in the log the entry of this id stands: of two the later one is greater."""
    parts = _CURSOR.fullmatch(cursor)
    if parts is None or int(parts[1]) == 0 or any(int(part) >= 1 << 64 for part in parts.groups()):
        raise CursorError("a cursor that a page gave out as next_cursor")
    return int(parts[1]), int(parts[2])


def _milliseconds(moment: datetime) -> int:
    return max(1, int(moment.timestamp() * 1000))  # nothing is before 0-0, and Redis will not look there
