"""Filter: which jobs of the list are wanted."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime

from jobs.job import JobState


@dataclass(frozen=True)
class Filter:
    """Which jobs of the project are wanted; all of what is given must hold."""

    states: tuple[JobState, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    created_after: datetime | None = None
    created_before: datetime | None = None

    @property
    def query(self) -> Iterable[tuple[str, str]]:
        """The filter as parameters of a request."""
        for state in self.states:
            yield "state", state.value
        for name, value in self.labels.items():
            yield "label", f"{name}:{value}"
        for name in ("created_after", "created_before"):
            moment = getattr(self, name)
            if moment is not None:
                yield name, moment.isoformat()


def wanted(
    state: JobState | str | Iterable[JobState | str],
    labels: Mapping[str, str],
    created_after: datetime | None,
    created_before: datetime | None,
) -> Filter:
    """The filter that a caller means. Raises ValueError for a state that there is not."""
    states = (state,) if isinstance(state, str) else tuple(state)
    return Filter(tuple(map(JobState, states)), labels, created_after, created_before)
