"""What was measured, and how it is summed up and printed."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class Samples:
    """One contender's runs over all rounds; times in seconds."""

    took: list[float] = field(default_factory=list)
    elapsed: float = 0.0
    cpu: float | None = 0.0

    def add(self, took: Sequence[float], elapsed: float, cpu: float | None) -> None:
        """Add a round; cpu None means that nobody can tell what it used."""
        self.took.extend(took)
        self.elapsed += elapsed
        self.cpu = None if cpu is None or self.cpu is None else self.cpu + cpu

    def summary(self) -> "Summary":
        """The figures of the table."""
        runs = len(self.took)
        return Summary(
            runs=runs,
            p50_ms=percentile(self.took, 50) * 1e3,
            p99_ms=percentile(self.took, 99) * 1e3,
            per_second=runs / self.elapsed,
            cpu_ms=None if self.cpu is None else self.cpu / runs * 1e3,
        )


@dataclass(frozen=True)
class Summary:
    """Milliseconds per run, runs per second, CPU milliseconds per run."""

    runs: int
    p50_ms: float
    p99_ms: float
    per_second: float
    cpu_ms: float | None

    def as_json(self) -> dict[str, Any]:
        """For the JSON report, rounded to what the clock can tell."""
        return {
            key: round(value, 3) if isinstance(value, float) else value for key, value in asdict(self).items()
        }


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that `percent` of the values do not exceed (nearest rank)."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


def number(value: float | int | None) -> str:
    """Three digits that matter, or a dash for what was not measured."""
    if value is None:
        return "-"
    if isinstance(value, int) or value >= 100:
        return f"{value:.0f}"
    return f"{value:.2f}" if value < 10 else f"{value:.1f}"


def table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A plain text table: the first column to the left, the others to the right."""
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        first = cells[0].ljust(widths[0])
        return "  ".join(
            (first, *(cell.rjust(w) for cell, w in zip(cells[1:], widths[1:], strict=True)))
        ).rstrip()

    rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
    return "\n".join((title, rule, line(header), rule, *map(line, rows), rule))
