"""Priority: which of one tenant's own jobs go first. Between tenants weights decide, never priorities."""

from enum import StrEnum


class Priority(StrEnum):
    """The classes, first to last."""

    HIGH = "high"
    NORMAL = "normal"
    LOW = "low"

    @property
    def rank(self) -> int:
        """0 for the class that goes first."""
        return list(Priority).index(self)
