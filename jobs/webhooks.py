"""Webhooks: the addresses that a project wants told when its jobs change their state.

    stockade:webhook:ID       hash: tenant, url, events (space separated), description, secret, old_secret,
                              old_until, state, reason, failing_since, dropped, created; times in ms
    stockade:webhooks:TENANT  sorted set of the project's webhooks by the time of their creation
    stockade:told             set of the projects that have any; workers read it too, for `jobs.news`

What is sent to them, and what became of it, is in `jobs.deliveries`. Secrets are stored as they are, since messages
are signed with them; they are in no model that is shown, and in no log.
"""

import base64
import secrets
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from pydantic import AwareDatetime, Field
from redis import Redis

from jobs.events import EventType, news_keys
from jobs.scripts import script
from policies.model import Frozen

WEBHOOKS_MAX = 20
"""Webhooks that a project may have."""
GRACE = 24 * 3600
"""Seconds after a secret's replacement in which messages are signed with the old one too."""

WEBHOOK, TOLD = "stockade:webhook:", "stockade:told"
"""Keys: before the id of a webhook; the set of projects that have any."""
DUE = "stockade:webhook_due"
"""Key of the sorted set of webhooks by the time at which they have something to be sent."""

_SECRET = "whsec_"  # noqa: S105 - what every secret begins with
_SECRET_BYTES = 32
_FIELDS = ("tenant", "url", "events", "description", "state", "reason", "failing_since", "dropped", "created")


class WebhookState(StrEnum):
    """Whether a webhook is told anything."""

    ACTIVE = "active"
    DISABLED = "disabled"
    PAUSED = "paused"


class Webhook(Frozen):
    """One address that is told of events. Its secret is shown only when it is made."""

    id: str = Field(description="Identifier, for its address `/v1/webhooks/ID`.")
    url: str = Field(description="Where messages are sent.")
    events: tuple[EventType, ...] = Field(description="What it is told of.")
    description: str = Field(description="What it is for, in the owner's words.")
    state: WebhookState = Field(
        description="`active`; `disabled` by its owner; or `paused` by the service, since it failed for long."
    )
    reason: str | None = Field(description="Why it is paused; else null.")
    failing_since: AwareDatetime | None = Field(
        description="When the first of the messages failed that have failed without a success since; else null."
    )
    waiting: int = Field(description="Messages that are still to be sent, or to be sent again.")
    dropped: int = Field(description="Messages that were never made because too many were waiting.")
    created_at: AwareDatetime = Field(description="When it was made.")


class Wish(Frozen):
    """What a webhook wants to be told."""

    id: str = Field(description="Identifier of the webhook.")
    events: frozenset[str] = Field(description="The types of events.")
    created_at: AwareDatetime = Field(description="When it was made: it is told of nothing that was before.")


class Webhooks:
    """The webhooks in Redis. Safe for threads. Every method raises redis.RedisError when Redis is not there."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    def create(
        self, tenant: str, url: str, events: Iterable[EventType], description: str
    ) -> tuple[Webhook, str] | None:
        """Make a webhook; it and its secret, which is not shown again. None when the project has its most."""
        webhook_id, secret = "wh_" + secrets.token_hex(12), new_secret()
        keys = [WEBHOOK + webhook_id, _of(tenant), TOLD]
        about = [url, " ".join(events), description, secret]
        if not script(self._redis, "webhook_create")(keys, [webhook_id, tenant, WEBHOOKS_MAX, *about]):
            return None
        made = self.get(webhook_id, tenant)
        assert made is not None
        return made, secret

    def get(self, webhook_id: str, tenant: str) -> Webhook | None:
        """The project's webhook of this id; None when it has none such."""
        return next(iter(self._read([webhook_id], tenant)), None)

    def of(self, tenant: str) -> Sequence[Webhook]:
        """The project's webhooks, oldest first."""
        ids: Any = self._redis.zrange(_of(tenant), 0, -1)
        return self._read([each.decode() for each in ids], tenant)

    def change(self, webhook_id: str, tenant: str, fields: dict[str, str]) -> Webhook | None:
        """Set these fields; None when the project has no such webhook. A state ends being paused."""
        if "state" in fields:
            fields = {**fields, "reason": "", "failing_since": ""}
        given = [value for pair in fields.items() for value in pair]
        known = script(self._redis, "webhook_change")(
            [WEBHOOK + webhook_id, DUE], [webhook_id, tenant, "", 0, *given]
        )
        return self.get(webhook_id, tenant) if known else None

    def rotate(self, webhook_id: str, tenant: str) -> str | None:
        """Replace the secret and return the new one; for `GRACE` the old one signs too. None as in `change`."""
        secret = new_secret()
        args: list[str | int] = [webhook_id, tenant, secret, GRACE * 1000]
        return secret if script(self._redis, "webhook_change")([WEBHOOK + webhook_id, DUE], args) else None

    def delete(self, webhook_id: str, tenant: str) -> bool:
        """Remove a webhook, with all that waits and its log; False when the project has no such webhook."""
        keys = [WEBHOOK + webhook_id, _of(tenant), TOLD, DUE, *news_keys(tenant)]
        return bool(script(self._redis, "webhook_delete")(keys, [webhook_id, tenant, "stockade:delivery:"]))

    def wishes(self, tenant: str) -> list[Wish]:
        """What the project's active webhooks want to be told."""
        ids: Any = self._redis.zrange(_of(tenant), 0, -1)
        with self._redis.pipeline(transaction=False) as pipe:
            for each in ids:
                pipe.hmget(WEBHOOK + each.decode(), "state", "events", "created")
            found = pipe.execute()
        return [
            Wish(id=each.decode(), events=frozenset(events.decode().split()), created_at=instant(created))
            for each, (state, events, created) in zip(ids, found, strict=True)
            if state == WebhookState.ACTIVE.encode()
        ]

    def _read(self, ids: Sequence[str], tenant: str) -> list[Webhook]:
        with self._redis.pipeline(transaction=False) as pipe:
            for each in ids:
                pipe.hmget(WEBHOOK + each, _FIELDS)
                pipe.zcard(f"{WEBHOOK}{each}:due")
            found = pipe.execute()
        rows = [dict(zip(_FIELDS, values, strict=True)) for values in found[::2]]
        return [
            _webhook(each, row, waiting)
            for each, row, waiting in zip(ids, rows, found[1::2], strict=True)
            if row["tenant"] == tenant.encode()
        ]


def new_secret() -> str:
    """A secret in the form of Standard Webhooks."""
    return _SECRET + base64.b64encode(secrets.token_bytes(_SECRET_BYTES)).decode()


def secret_bytes(secret: str) -> bytes:
    """The key that a secret stands for."""
    return base64.b64decode(secret.removeprefix(_SECRET))


def instant(milliseconds: Any) -> datetime:
    """A moment, from ms since the epoch."""
    return datetime.fromtimestamp(int(milliseconds) / 1000, UTC)


def _of(tenant: str) -> str:
    return f"stockade:webhooks:{tenant}"


def _webhook(webhook_id: str, row: dict[str, Any], waiting: int) -> Webhook:
    text = {name: (value or b"").decode() for name, value in row.items()}
    return Webhook(
        id=webhook_id,
        url=text["url"],
        events=tuple(EventType(each) for each in text["events"].split()),
        description=text["description"],
        state=WebhookState(text["state"]),
        reason=text["reason"] or None,
        failing_since=instant(text["failing_since"]) if text["failing_since"] else None,
        waiting=waiting,
        dropped=int(text["dropped"]),
        created_at=instant(text["created"]),
    )
