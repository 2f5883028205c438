"""Usage over time: what each tenant used, by hour and by day, and what one job is charged.

Windows are those of UTC, numbered from 1970. `stockade:usage:ID:h:N` (hours) and `stockade:usage:ID:d:N` (days)
are hashes of `jobs`, `cpu_seconds`, `memory_gb_seconds`, `wall_seconds`, `artifact_bytes` and `outcome:KIND`.
Lua adds to those of a job's project and of its organisation when the job ends, so a job counts in the window of
its end; hours are kept for 8 days, days for 400.
"""

import csv
import io
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import ConfigDict, Field

from jobs.job import JobResult
from jobs.outcome import OutcomeKind
from policies.admission import Admission
from policies.model import Frozen

if TYPE_CHECKING:  # a client of the API reads these models, and needs no Redis
    from redis import Redis

GB = 10**9
"""Bytes in the GB of GB-seconds."""

_DIGITS = 6  # after the point: sums of binary fractions have noise below that
_OUTCOME = "outcome:"


class Window(StrEnum):
    """The lengths of time over which usage is summed."""

    HOUR = "hour"
    DAY = "day"

    @property
    def seconds(self) -> int:
        """Its length."""
        return 3600 if self is Window.HOUR else 86_400

    @property
    def most(self) -> int:
        """How many windows are kept, the running one included."""
        return 8 * 24 if self is Window.HOUR else 400

    def number(self, moment: datetime) -> int:
        """The number of the window that holds `moment`."""
        return int(moment.timestamp() // self.seconds)

    def start(self, number: int) -> datetime:
        """When the window of this number begins."""
        return datetime.fromtimestamp(number * self.seconds, UTC)


class Charge(NamedTuple):
    """What one job adds to its tenant's usage."""

    cpu_seconds: float
    memory_gb_seconds: float
    wall_seconds: float
    artifact_bytes: int


class Used(Frozen):
    """What was used in some time."""

    jobs: int = Field(default=0, description="Jobs that ended.")
    cpu_seconds: float = Field(default=0, description="CPU seconds of all their steps.")
    memory_gb_seconds: float = Field(
        default=0,
        description="10^9 bytes of the memory limit in force times seconds that the step ran, of all their steps.",
    )
    wall_seconds: float = Field(default=0, description="Seconds that all their steps ran.")
    artifact_bytes: int = Field(default=0, description="Bytes of the artifacts that they left.")
    outcomes: dict[OutcomeKind, int] = Field(
        default_factory=dict, description="The jobs by their outcome; one that did not happen is left out."
    )

    def __add__(self, other: "Used") -> "Used":
        kinds = (kind for kind in OutcomeKind if kind in self.outcomes or kind in other.outcomes)
        return Used(
            jobs=self.jobs + other.jobs,
            cpu_seconds=round(self.cpu_seconds + other.cpu_seconds, _DIGITS),
            memory_gb_seconds=round(self.memory_gb_seconds + other.memory_gb_seconds, _DIGITS),
            wall_seconds=round(self.wall_seconds + other.wall_seconds, _DIGITS),
            artifact_bytes=self.artifact_bytes + other.artifact_bytes,
            outcomes={kind: self.outcomes.get(kind, 0) + other.outcomes.get(kind, 0) for kind in kinds},
        )


class UsageRow(Used):
    """What was used in one window."""

    start: datetime = Field(description="When the window begins.")


class UsageReport(Frozen):
    """What one tenant used, window by window."""

    model_config = ConfigDict(populate_by_name=True)

    tenant: str = Field(description="Identifier of the tenant.")
    name: str = Field(description="Its name.")
    step: Window = Field(description="The length of each window.")
    since: datetime = Field(alias="from", description="When the first window begins.")
    until: datetime = Field(alias="to", description="When the last window ends.")
    rows: tuple[UsageRow, ...] = Field(
        description="The windows in which something was used, oldest first; the others are left out."
    )
    total: Used = Field(description="The sum of the rows.")


class Span(NamedTuple):
    """Some windows in a row: their length, the number of the first, and that after the last."""

    window: Window
    first: int
    end: int


class SpanError(ValueError):
    """A time that cannot be asked about. `field` is `from` or `to`."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


def charge_of(result: JobResult, admission: Admission) -> Charge:
    """What a job that ended with `result` is charged: its steps that ran, and its artifacts.

    Memory is charged by the limit, which is what nobody else could have, not by the peak.
    """
    steps = list(zip(result.steps, admission.steps, strict=False))
    return Charge(
        cpu_seconds=sum(ran.usage.cpu_time for ran, _ in steps),
        memory_gb_seconds=sum(limits.limits.memory / GB * ran.usage.wall_time for ran, limits in steps),
        wall_seconds=sum(ran.usage.wall_time for ran, _ in steps),
        artifact_bytes=sum(artifact.size for artifact in result.artifacts),
    )


def span(window: Window, since: datetime | None, until: datetime | None, now: datetime) -> Span:
    """The windows that touch the time from `since` to `until`.

    By default `until` is `now`, and `since` a day (of hours) or 30 days (of days) before that.

    Raises:
        SpanError: the time is empty, or longer than what is kept.
    """
    until = until or now
    if since is None:
        usual = timedelta(days=1) if window is Window.HOUR else timedelta(days=30)
        since = until - min(usual, until - datetime.min.replace(tzinfo=UTC))
    if since >= until:
        raise SpanError("from", f"a time before {until.isoformat()}, where it ends")
    first, end = window.number(since), -int(-until.timestamp() // window.seconds)
    if end - first > window.most:
        raise SpanError("from", f"at most {window.most} windows of one {window} before the end")
    return Span(window, first, end)


def key(tenant: str, window: Window, number: int) -> str:
    """The key of what a tenant used in one window."""
    return f"stockade:usage:{tenant}:{window[0]}:{number}"


def used(redis: "Redis", tenant: str, name: str, asked: Span) -> UsageReport:
    """What a tenant, a project or an organisation, used in these windows."""
    window, numbers = asked.window, range(asked.first, asked.end)
    with redis.pipeline(transaction=False) as pipe:
        for number in numbers:
            pipe.hgetall(key(tenant, window, number))
        found = pipe.execute()
    rows = tuple(
        _row(window.start(number), fields) for number, fields in zip(numbers, found, strict=True) if fields
    )
    return UsageReport(
        tenant=tenant,
        name=name,
        step=window,
        since=window.start(asked.first),
        until=window.start(asked.end),
        rows=rows,
        total=sum(rows, Used()),
    )


def _row(start: datetime, fields: Mapping[bytes, bytes]) -> UsageRow:
    def number(name: str) -> float:
        return round(float(fields.get(name.encode(), 0)), _DIGITS)

    outcomes = {kind: int(number(_OUTCOME + kind)) for kind in OutcomeKind}
    return UsageRow(
        start=start,
        jobs=int(number("jobs")),
        cpu_seconds=number("cpu_seconds"),
        memory_gb_seconds=number("memory_gb_seconds"),
        wall_seconds=number("wall_seconds"),
        artifact_bytes=int(number("artifact_bytes")),
        outcomes={kind: count for kind, count in outcomes.items() if count},
    )


def as_csv(reports: Iterable[UsageReport]) -> str:
    """The rows of these reports as one table (RFC 4180) with a fixed head; outcomes are a column each."""
    amounts = [name for name in Used.model_fields if name != "outcomes"]
    text = io.StringIO()
    table = csv.writer(text)
    table.writerow(["tenant", "name", "step", "start", *amounts, *map(str, OutcomeKind)])
    for report in reports:
        for row in report.rows:
            cells: list[Any] = [report.tenant, report.name, report.step, row.start.isoformat()]
            cells += [getattr(row, name) for name in amounts]
            cells += [row.outcomes.get(kind, 0) for kind in OutcomeKind]
            table.writerow([_inert(cell) for cell in cells])
    return text.getvalue()


def _inert(cell: Any) -> Any:
    """A cell that no spreadsheet takes for a formula (OWASP, CSV injection)."""
    return (
        "'" + cell
        if isinstance(cell, str) and cell.startswith(("=", "+", "-", "@", "\t", "\r", "\n"))
        else cell
    )
