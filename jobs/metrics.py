"""Metrics: what this process has counted, on its way to the sum of all processes in Redis.

A process counts in memory and adds what is new to the hash `stockade:metrics` every few seconds (`flush`), so
that counting costs no round trip and one scrape of any API process tells about the whole installation. What a
killed process had not added yet, a few seconds' worth, is lost. Counting never fails for a reason of Redis'.

A field of the hash is the name of the measure and the values of its labels, joined by `|`; for a histogram also
the bound of the bucket, or `sum`: `jobs_finished_total|exited|default`, `queue_wait_seconds|default|0.5`. Lua
scripts of the store may add to it in the same form.
"""

import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from threading import Lock
from time import perf_counter
from typing import Any

from redis import Redis
from redis.exceptions import RedisError

from jobs.measures import MEASURES, Kind, Measure

KEY = "stockade:metrics"
FLUSH = 4.0
"""Seconds between two flushes of a process."""
OTHER = "other"
"""What stands for a label's value that is no plain word, or one too many."""
SERIES_MAX = 2000
"""Combinations of labels that one process counts apart, of all measures together."""

_SEPARATOR = "|"
_VALUE = re.compile(r"[A-Za-z0-9_.:/{}*-]{1,100}")

Series = dict[tuple[str, ...], dict[str, float]]
"""By the values of the labels: for a histogram, number by bucket, and the `sum`; for a counter, number by ""."""


class Metrics:
    """What one process has counted since it last flushed. Safe for threads."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._held: dict[str, float] = {}
        self._series: set[str] = set()

    def count(self, name: str, amount: float = 1, /, **labels: str) -> None:
        """Add to a counter. Raises ValueError when there is no such counter with these labels."""
        series = _series(name, Kind.COUNTER, labels)
        with self._lock:
            self._add(self._admitted(series, len(labels)), amount)

    def observe(self, name: str, value: float, /, **labels: str) -> None:
        """Add one value to a histogram; one below 0 counts as 0. Raises ValueError as `count` does."""
        series = _series(name, Kind.HISTOGRAM, labels)
        if not math.isfinite(value):
            return
        value = max(0.0, value)
        with self._lock:
            series = self._admitted(series, len(labels))
            self._add(series + _SEPARATOR + MEASURES[name].bucket(value), 1)
            self._add(series + _SEPARATOR + "sum", value)

    @contextmanager
    def timed(self, name: str, /, **labels: str) -> Iterator[None]:
        """Add the seconds that the block takes to a histogram, also when it raises."""
        begun = perf_counter()
        try:
            yield
        finally:
            self.observe(name, perf_counter() - begun, **labels)

    def flush(self, redis: Redis) -> bool:
        """Add what was counted to the sum in Redis, all or nothing; False when Redis did not take it.

        Then it is kept for the next time. (An answer that got lost makes it count twice: a sum that is too
        high by seconds' worth is better than one that misses a whole failure.)
        """
        with self._lock:
            held, self._held = self._held, {}
        if not held:
            return True
        try:
            with redis.pipeline() as pipe:
                for field, amount in held.items():
                    pipe.hincrbyfloat(KEY, field, amount)
                pipe.execute(raise_on_error=False)  # a field that holds no number loses its own count only
        except RedisError:
            with self._lock:
                for field, amount in held.items():
                    self._add(field, amount)
            return False
        return True

    def _add(self, field: str, amount: float) -> None:
        self._held[field] = self._held.get(field, 0) + amount

    def _admitted(self, series: str, labels: int) -> str:
        """The series itself; once there are `SERIES_MAX`, the one of its measure for all others."""
        if series not in self._series:
            if len(self._series) >= SERIES_MAX:
                return _SEPARATOR.join([series.partition(_SEPARATOR)[0], *[OTHER] * labels])
            self._series.add(series)
        return series


metrics = Metrics()
"""Those of this process."""


def stored(redis: Redis) -> Mapping[Measure, Series]:
    """The sums of all processes, measure by measure; what no measure explains is left out."""
    fields: Any = redis.hgetall(KEY)
    found: dict[Measure, Series] = {}
    for field, amount in fields.items():
        name, *values = field.decode("utf-8", "replace").split(_SEPARATOR)
        measure = MEASURES.get(name)
        if measure is None or measure.kind is Kind.GAUGE:
            continue
        part = values.pop() if measure.kind is Kind.HISTOGRAM and values else ""
        number = _number(amount)
        if len(values) == len(measure.labels) and number is not None:
            found.setdefault(measure, {}).setdefault(tuple(values), {})[part] = number
    return found


def _number(text: bytes) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _series(name: str, kind: Kind, labels: Mapping[str, str]) -> str:
    measure = MEASURES.get(name)
    if measure is None or measure.kind is not kind or set(measure.labels) != set(labels):
        raise ValueError(f"there is no {kind} {name} with the labels {', '.join(labels) or 'none'}")
    values = (labels[label] for label in measure.labels)
    return _SEPARATOR.join([name, *(value if _VALUE.fullmatch(value) else OTHER for value in values)])
