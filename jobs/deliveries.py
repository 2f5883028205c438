"""Deliveries: messages to webhooks, from the event to the answer of who was told, or to the dead letters.

    stockade:delivery:ID         hash: webhook, type, job, body, state, number, created (ms); tries, how often it was
                                 tried, and begun, how many of these were before the latest redelivery;
                                 try:N, JSON of `Try`, for the latest `TRIES_KEPT`
    stockade:webhook:ID:due      sorted set of what is pending by when it is to be sent; while it is being sent, by the
                                 end of the sender's lease, so that what a sender that died had taken is sent again
    stockade:webhook:ID:STATE    sorted sets of all deliveries by number (pending, delivered, dead): the log
    stockade:webhook_due         sorted set of webhooks by their turn: the one first that has waited longest
    stockade:webhook_waiting:PROJECT   hash of what is pending of all its webhooks: delivery -> bytes of its body, and
                                 total, their sum

An event is told at least once whatever dies, always under the same id, which is that of the delivery. A webhook's log
keeps `LOG_MAX` delivered and as many dead ones, and nothing for longer than `RETENTION`.
"""

import hashlib
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from random import uniform
from typing import Any

from pydantic import AwareDatetime, Field
from redis import Redis

from jobs.scripts import script
from jobs.webhooks import DUE, WEBHOOK, instant
from policies.model import Frozen

SCHEDULE = (5.0, 60.0, 300.0, 1800.0, 7200.0, 21_600.0, 43_200.0, 86_400.0)
"""Seconds between a failed try and the next, give or take `JITTER`; after the last a delivery is dead."""
JITTER = 0.2
LEASE = 30.0
"""Seconds that a sender has for one try; more than a request can take."""
PENDING_MAX = 20_000
"""Deliveries of one project that may wait; what happens beyond that is not told, and counted."""
PENDING_BYTES = 16 * 2**20
"""Bytes that their bodies may have."""
PENDING_SHARE = 200
"""Deliveries of one webhook that may wait all the same: one whose receiver is away does not silence the others."""
LOG_MAX = 1000
"""Delivered, and dead, deliveries of one webhook that are kept."""
TRIES_KEPT = 10
"""Tries of one delivery that are kept."""
RETENTION = 7 * 24 * 3600
"""Seconds that a delivery is kept."""
PAUSE_AFTER = 3 * 24 * 3600
"""Seconds without a success after which a webhook that fails is paused."""
PING = "webhook.ping"
"""The type of the message that a test sends."""

_DELIVERY, _SEQUENCE = "stockade:delivery:", "stockade:webhook_sequence"
_GONE = 410  # HTTP: the receiver wants no more, as Standard Webhooks has it
_NEWEST = "+inf"


class DeliveryState(StrEnum):
    """Where a delivery is on its way."""

    PENDING = "pending"
    DELIVERED = "delivered"
    DEAD = "dead"


class Try(Frozen):
    """One request, and what came of it."""

    at: AwareDatetime = Field(description="When it was sent.")
    milliseconds: int = Field(description="How long it took.")
    status: int | None = Field(description="The HTTP status of the answer; null when there was none.")
    error: str | None = Field(description="Why there was no answer; null when there was one.")
    response: str = Field(description="The beginning of the answer's body, as text.")

    @property
    def succeeded(self) -> bool:
        """Whether the receiver took it: any status of 200 to 299."""
        return self.status is not None and 200 <= self.status < 300


class Delivery(Frozen):
    """One message to one webhook."""

    id: str = Field(description="Identifier: the `webhook-id` of every try.")
    type: str = Field(description="What it tells.", examples=["job.finished"])
    job: str | None = Field(description="Identifier of the job that it is about; null for a test.")
    state: DeliveryState = Field(
        description="`pending` until it is `delivered`, or `dead` since every try failed."
    )
    created_at: AwareDatetime = Field(description="When it was made.")
    due_at: AwareDatetime | None = Field(description="When it is to be sent (again); null unless pending.")
    tries: int = Field(description="How often it was sent.")
    log: tuple[Try, ...] = Field(
        description=f"The latest {TRIES_KEPT} tries whose end is known, oldest first."
    )


@dataclass(frozen=True, slots=True)
class Message:
    """What a delivery is made of."""

    webhook: str
    delivery: str
    type: str
    job: str
    """Identifier of the job that it is about; "" for a test."""
    body: bytes


@dataclass(frozen=True, slots=True)
class Claim:
    """A delivery that its holder is to send, within `LEASE` seconds."""

    webhook: str
    delivery: str
    number: int
    """Which try it is, from 1; it fences off an earlier holder."""
    attempt: int
    """The same since the delivery was made or last begun again."""
    body: bytes
    url: str
    secrets: tuple[str, ...] = field(repr=False)
    """What it is to be signed with: the secret, and the one before while that is still good."""
    failing: bool
    """Whether the webhook's last delivery failed."""


class Deliveries:
    """The deliveries in Redis. Safe for threads. Every method raises redis.RedisError when Redis is not there."""

    def __init__(self, redis: Redis, *, schedule: Sequence[float] = SCHEDULE, lease: float = LEASE) -> None:
        """`schedule`: seconds before the second try and each after it; `lease`: seconds for one try."""
        self._redis = redis
        self._schedule = tuple(schedule)
        self._lease = lease

    def create(self, message: Message) -> bool:
        """Make a delivery, due at once; the same one again does nothing. False when the webhook takes none."""
        return self.create_all([message])[0]

    def create_all(self, messages: Iterable[Message]) -> list[bool]:
        """The same for each of these, in one exchange with Redis."""
        create = script(self._redis, "delivery_create")
        bounds = [RETENTION * 1000, PENDING_MAX, PENDING_BYTES, PENDING_SHARE]
        with self._redis.pipeline(transaction=False) as pipe:
            for each in messages:
                keys = [WEBHOOK + each.webhook, _DELIVERY + each.delivery, DUE, _SEQUENCE]
                args: list[str | int | bytes] = [
                    each.webhook,
                    each.delivery,
                    each.type,
                    each.job,
                    each.body,
                    *bounds,
                ]
                create(keys, args, client=pipe)
            return [bool(made) for made in pipe.execute()]

    def claim(self, most: int, busy: Iterable[str] = ()) -> tuple[list[Claim], float | None]:
        """Take up to `most` deliveries that are due, one of each webhook at most, and of none that is `busy`.

        Returns them, and the seconds until more is due; None when nothing waits.
        """
        args: list[str | int] = [
            int(self._lease * 1000),
            most,
            1 + len(self._schedule),
            WEBHOOK,
            _DELIVERY,
            *busy,
        ]
        wait, *claimed = script(self._redis, "delivery_claim")([DUE], args)
        return [_claim(each) for each in claimed], None if wait < 0 else wait / 1000

    def settle(self, claim: Claim, done: Try) -> str:
        """Write down what came of a claimed delivery, and when it is tried again.

        Returns the state of the webhook (`WebhookState`); "" when there is nothing left to settle.
        """
        again = self._schedule[claim.attempt - 1 : claim.attempt]
        verdict, wait = "dead", 0.0
        if done.succeeded:
            verdict = "delivered"
        elif done.status == _GONE:
            verdict = "gone"
        elif again:
            verdict, wait = "again", again[0] * uniform(1 - JITTER, 1 + JITTER)  # noqa: S311 - no secret
        keys = [WEBHOOK + claim.webhook, _DELIVERY + claim.delivery, DUE]
        kept: list[str | int] = [TRIES_KEPT, LOG_MAX, _DELIVERY, PAUSE_AFTER * 1000]
        about: list[str | int] = [
            claim.webhook,
            claim.delivery,
            claim.number,
            done.model_dump_json(),
            verdict,
            int(wait * 1000),
        ]
        state: bytes = script(self._redis, "delivery_settle")(keys, about + kept)
        return state.decode()

    def get(self, webhook: str, delivery: str) -> Delivery | None:
        """The webhook's delivery of this id; None when it has none such."""
        return next(iter(self._read(webhook, [delivery])), None)

    def page(
        self, webhook: str, most: int, *, state: DeliveryState | None = None, before: int | None = None
    ) -> tuple[list[Delivery], int | None]:
        """Deliveries of a webhook, the latest first.

        Args:
            webhook: its id.
            most: how many.
            state: only those in this state.
            before: go on from here: what an earlier call returned.

        Returns the deliveries, and from where to go on; None when there are no more.
        """
        last = _NEWEST if before is None else f"({before}"
        with self._redis.pipeline(transaction=False) as pipe:
            for each in [state] if state else DeliveryState:
                pipe.zrevrangebyscore(f"{WEBHOOK}{webhook}:{each}", last, "-inf", 0, most, withscores=True)
            found = sorted((int(number), each) for part in pipe.execute() for each, number in part)
        page = found[::-1][:most]
        following = page[-1][0] if len(page) == most else None
        return self._read(webhook, [each.decode() for _, each in page]), following

    def redeliver(self, webhook: str, delivery: str, tenant: str) -> bool | None:
        """Send a delivery again, whatever became of it; it has all its tries before it.

        Returns None when the project's webhook has no such delivery, False when the webhook is not active.
        """
        keys = [WEBHOOK + webhook, _DELIVERY + delivery, DUE]
        answer = script(self._redis, "delivery_redeliver")(
            keys, [webhook, delivery, tenant, RETENTION * 1000]
        )
        return None if answer == 0 else answer > 0

    def _read(self, webhook: str, ids: Sequence[str]) -> list[Delivery]:
        with self._redis.pipeline(transaction=False) as pipe:
            for each in ids:
                pipe.hgetall(_DELIVERY + each)
                pipe.zscore(f"{WEBHOOK}{webhook}:due", each)
            found = pipe.execute()
        rows = zip(ids, found[::2], found[1::2], strict=True)
        return [
            _delivery(each, row, due) for each, row, due in rows if row.get(b"webhook") == webhook.encode()
        ]


def delivery_id(webhook: str, event: str) -> str:
    """The id of the delivery that tells this webhook of this event: the same whoever asks, and how often."""
    return "msg_" + hashlib.sha256(f"{webhook} {event}".encode()).hexdigest()[:24]


def ping_id() -> str:
    """The id of a test."""
    return "msg_" + secrets.token_hex(12)


def _claim(values: Sequence[Any]) -> Claim:
    webhook, delivery, number, attempt, body, url, secret, old, failing = values
    return Claim(
        webhook=webhook.decode(),
        delivery=delivery.decode(),
        number=number,
        attempt=attempt,
        body=body,
        url=url.decode(),
        secrets=tuple(each.decode() for each in (secret, old) if each),
        failing=bool(failing),
    )


def _delivery(delivery: str, row: dict[bytes, bytes], due: float | None) -> Delivery:
    tries = sorted((int(name[4:]), text) for name, text in row.items() if name.startswith(b"try:"))
    return Delivery(
        id=delivery,
        type=row[b"type"].decode(),
        job=row[b"job"].decode() or None,
        state=DeliveryState(row[b"state"].decode()),
        created_at=instant(row[b"created"]),
        due_at=None if due is None else instant(due),
        tries=int(row[b"tries"]),
        log=tuple(Try.model_validate_json(text) for _, text in tries),
    )
