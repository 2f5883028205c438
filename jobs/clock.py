"""The clock of Redis, by which everything in it is dated: milliseconds since the epoch."""

from datetime import UTC, datetime
from typing import Any


def instant(milliseconds: Any) -> datetime:
    """The moment that a number, or its text, of Redis means."""
    return datetime.fromtimestamp(int(milliseconds) / 1000, UTC)
