"""Places: how many requests that last may be open at once, in all and for one project."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from api.problems import RETRY_AFTER, Kind, ProblemError, unavailable


class Places:
    """The places that one process has for requests of one sort. Belongs to one event loop."""

    def __init__(self, what: str, component: str, kind: Kind, most: int, most_each: int) -> None:
        """`what` is open, for people; without a place the answer is `kind`, or names the `component`."""
        self._what, self._component, self._kind = what, component, kind
        self.most, self.most_each = most, most_each
        self._taken: Counter[str] = Counter()

    @property
    def taken(self) -> int:
        """How many are taken."""
        return self._taken.total()

    @contextmanager
    def hold(self, tenant: str) -> Iterator[None]:
        """A place for one more request of this tenant while the block runs.

        Raises:
            ProblemError: 429 when the tenant has as many as it may, 503 when the process has.
        """
        if self._taken[tenant] >= self.most_each:
            detail = f"{self.most_each} {self._what} are open for this project; that is the most."
            raise ProblemError(self._kind, detail, headers={"Retry-After": RETRY_AFTER})
        if self.taken >= self.most:
            raise unavailable(self._component, f"{self.most} {self._what} are open; that is the most.")
        self._taken[tenant] += 1
        try:
            yield
        finally:
            self._taken[tenant] -= 1
            if not self._taken[tenant]:
                del self._taken[tenant]
