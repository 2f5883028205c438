"""Events: every change of a job's state, as the store's scripts write it to the stream `stockade:events`.

An entry has the fields job, tenant, state, outcome, attempt and at (ms, the server's clock). The stream keeps about
the last 100,000. What webhooks are to be told of is in streams of their projects' own besides (`jobs.news`).
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from enum import StrEnum

from pydantic import AwareDatetime, Field

from policies.model import Frozen

STREAM = "stockade:events"
"""The Redis stream of all events."""
NEWS, MISSED = "stockade:news", "stockade:missed:"
"""Keys of what webhooks are still to be told of; see `jobs.news`."""


class EventType(StrEnum):
    """What can happen to a job that others are told of."""

    QUEUED = "job.queued"
    RUNNING = "job.running"
    CANCELLING = "job.cancelling"
    FINISHED = "job.finished"
    DELETED = "job.deleted"


class Event(Frozen):
    """One change of one job's state. A job has exactly one of type `job.finished`."""

    id: str = Field(description="Its place in the stream; the same whoever reads it, and how often.")
    type: EventType = Field(description="What happened.")
    job: str = Field(description="Identifier of the job.")
    tenant: str = Field(description="Identifier of the project whose it is.")
    outcome: str | None = Field(description="Why it ended, in one word; null while it has not.")
    attempt: int = Field(description="How often its execution had been begun.")
    at: AwareDatetime = Field(description="When it happened.")


def read(entry_id: bytes, fields: Mapping[bytes, bytes]) -> Event:
    """The event of a stream's entry. Raises ValueError when it is none."""
    try:
        return Event(
            id=entry_id.decode(),
            type=EventType("job." + fields[b"state"].decode()),
            job=fields[b"job"].decode(),
            tenant=fields[b"tenant"].decode(),
            outcome=fields[b"outcome"].decode() or None,
            attempt=int(fields[b"attempt"]),
            at=datetime.fromtimestamp(int(fields[b"at"]) / 1000, UTC),
        )
    except KeyError as error:
        raise ValueError(f"the entry {entry_id!r} has no field {error}") from None


def news_keys(project: str) -> list[str]:
    """The keys that a project's news are in: everybody's turns, its stream, and what it missed."""
    return [NEWS, f"{NEWS}:{project}", MISSED + project]
