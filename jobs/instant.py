"""Instant: a point in time as a caller writes it."""

from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import BeforeValidator, WithJsonSchema
from pydantic_core import PydanticCustomError

FORM = "a date (2026-11-23) or a time (2026-11-23T19:04:00Z)"
YEARS = range(1970, 9000)


def instant(text: str) -> datetime:
    """The time that `text` means: RFC 3339; a date is its beginning, and what names no zone is in UTC.

    Raises ValueError when it is none.
    """
    moment = datetime.fromisoformat(text)
    if moment.year not in YEARS:
        raise ValueError(f"the year {moment.year} is not in use here")
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


def _parsed(value: Any) -> Any:
    try:
        return instant(value)
    except (TypeError, ValueError):
        raise PydanticCustomError("instant", "must be {allowed}", {"allowed": FORM}) from None


Instant = Annotated[
    datetime, BeforeValidator(_parsed), WithJsonSchema({"type": "string", "examples": ["2026-11-23"]})
]
"""The same for fields and parameters of a request."""
