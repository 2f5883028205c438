"""What a webhook is sent: a small body that names the job, and headers that prove who sent it.

Both are those of Standard Webhooks (https://www.standardwebhooks.com). A message has no outputs and nothing that
was sent with a job but its labels: who is told fetches the job with a key.
"""

import base64
import hashlib
import hmac
import json
from collections.abc import Sequence
from datetime import datetime
from importlib.metadata import version
from typing import Any

from redis import Redis

from jobs.events import Event, EventType
from jobs.webhooks import instant, secret_bytes

_AGENT = f"stockade/{version('stockade')}"
_JOB = "stockade:job:"


def message(kind: str, at: datetime, data: dict[str, Any]) -> bytes:
    """The body of a message of this type, about what happened at this moment."""
    return json.dumps(
        {"type": kind, "timestamp": at.isoformat(), "data": data}, separators=(",", ":")
    ).encode()


def headers(delivery: str, at: datetime, body: bytes, secrets: Sequence[str]) -> dict[str, str]:
    """The headers of one try at this moment: the signature has one part for each secret."""
    seconds = str(int(at.timestamp()))
    signed = b".".join((delivery.encode(), seconds.encode(), body))
    return {
        "content-type": "application/json",
        "user-agent": _AGENT,
        "webhook-id": delivery,
        "webhook-timestamp": seconds,
        "webhook-signature": " ".join(_signature(secret, signed) for secret in secrets),
    }


def _signature(secret: str, signed: bytes) -> str:
    digest = hmac.digest(secret_bytes(secret), signed, hashlib.sha256)
    return "v1," + base64.b64encode(digest).decode()


def bodies(redis: Redis, events: Sequence[Event]) -> list[bytes]:
    """The body of the message of each event. A job that is gone has no labels and no times but the event's."""
    with redis.pipeline(transaction=False) as pipe:
        for event in events:
            pipe.hmget(_JOB + event.job, "labels", "created", "started")
        found = pipe.execute()
    return [
        message(event.type, event.at, _data(event, *values))
        for event, values in zip(events, found, strict=True)
    ]


def _data(event: Event, labels: bytes | None, created: bytes | None, started: bytes | None) -> dict[str, Any]:
    """The job as it was at the event, even where it has moved on since."""
    begun = {EventType.QUEUED: None, EventType.RUNNING: event.at.isoformat()}
    return {
        "id": event.job,
        "state": event.type.removeprefix("job."),
        "outcome": event.outcome,
        "labels": json.loads(labels) if labels else {},
        "attempt": event.attempt,
        "created_at": _time(created),
        "started_at": begun[event.type] if event.type in begun else _time(started),
        "finished_at": event.at.isoformat() if event.type is EventType.FINISHED else None,
    }


def _time(milliseconds: bytes | None) -> str | None:
    return instant(milliseconds).isoformat() if milliseconds else None
