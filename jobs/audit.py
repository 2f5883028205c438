"""The audit log: who was let in or refused, and who changed keys and policies.

`stockade:audit:TENANT` is a stream of the latest `ENTRIES` entries, about; the id of an entry has its time, by
the server's clock. Its fields: `actor` (`key:KEYID`, `operator`, `service`), `action` (`job.admitted`,
`key.created`, …), `about` (a JSON object). Events of the platform are in `stockade:audit:platform`.

No secret gets in: texts are cut, and what looks like one of our keys or signing secrets is struck out.
"""

import json
import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from pydantic import AwareDatetime, Field, JsonValue
from redis import Redis

from policies.model import Frozen
from policies.violation import shown

PLATFORM = "platform"
"""The tenant of what concerns the whole installation."""
OPERATOR, SERVICE = "operator", "service"
"""Actors that have no key: who works at the command line, and the service by itself."""
ENTRIES = 10_000
"""Entries that are kept of each tenant, about; the oldest go first."""
ABOUT_MAX = 20
"""Facts of one entry, and items of a list in it."""
PAGE_MAX = 500
"""The most entries of one page."""

_BATCH = 1000
_ACTOR = re.compile(r"operator|service|key:[A-Za-z0-9_-]{1,64}")
_ACTION = re.compile(r"[a-z_]{1,32}(\.[a-z_]{1,32}){1,3}")
_SECRETS = re.compile(r"(sk_[0-9a-f]{16}_|whsec_)[A-Za-z0-9_+/=-]+")
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
        description="Send this as `cursor` to get those before; null when there are none."
    )


class CursorError(ValueError):
    """A cursor that no page gave out."""


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
    redis.xadd(_key(tenant), fields, maxlen=ENTRIES, approximate=True)


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
    newest = f"({_checked(cursor)}" if cursor is not None else "+"
    if until is not None and (cursor is None or _milliseconds(until) <= int(cursor.partition("-")[0])):
        newest = f"({_milliseconds(until)}-0"
    oldest = f"{_milliseconds(since)}-0" if since else "-"
    found: list[Entry] = []
    batch = limit + 1 if action is None else _BATCH
    for entry in _backwards(redis, tenant, newest, oldest, batch):
        if matches(entry, action):
            if len(found) == limit:
                return Page(entries=tuple(found), next_cursor=found[-1].id)
            found.append(entry)
    return Page(entries=tuple(found), next_cursor=None)


def after(redis: Redis, tenant: str, entry_id: str) -> list[Entry]:
    """The entries after the one of this id, oldest first; "0-0" is before all."""
    found: Any = redis.xrange(_key(tenant), f"({entry_id}", "+", count=_BATCH)
    return [_entry(*item) for item in found]


def matches(entry: Entry, action: str | None) -> bool:
    """Whether an entry is of this action, or of one that begins with it and a point; None is any."""
    return action is None or f"{entry.action}.".startswith(f"{action}.")


def _backwards(redis: Redis, tenant: str, newest: str, oldest: str, batch: int) -> Iterator[Entry]:
    while True:
        found: Any = redis.xrevrange(_key(tenant), newest, oldest, count=batch)
        yield from (_entry(*item) for item in found)
        if len(found) < batch:
            return
        newest = "(" + found[-1][0].decode()


def _entry(entry_id: bytes, fields: Mapping[bytes, bytes]) -> Entry:
    milliseconds = int(entry_id.partition(b"-")[0])
    return Entry(
        id=entry_id.decode(),
        at=datetime.fromtimestamp(milliseconds / 1000, UTC),
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


def _checked(cursor: str) -> str:
    parts = _CURSOR.fullmatch(cursor)
    if parts is None or int(parts[1]) == 0 or any(int(part) >= 1 << 64 for part in parts.groups()):
        raise CursorError("a cursor that a page gave out as next_cursor")
    return cursor


def _milliseconds(moment: datetime) -> int:
    return max(1, int(moment.timestamp() * 1000))  # nothing is before 0-0, and Redis will not look there


def _key(tenant: str) -> str:
    return f"stockade:audit:{tenant}"
