"""Usage: what a job is charged, and what a tenant used when."""

import csv
import io
from datetime import UTC, datetime, timedelta

import pytest
from redis import Redis

from jobs.instant import instant
from jobs.job import JobResult
from jobs.outcome import Artifact, Outcome, OutcomeKind
from jobs.spec import JobSpec
from jobs.usage import SpanError, UsageReport, Used, Window, as_csv, charge_of, key, span, used
from policies.admission import admit
from policies.loader import load_policies
from tests.jobs.results import step_result

NOW = datetime(2026, 11, 23, 19, 4, 37, tzinfo=UTC)
NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)


def test_a_job_is_charged_for_the_steps_that_ran() -> None:
    """CPU time as used, memory by its limit times the time, the bytes of its artifacts; a step not run is free."""
    steps = [{"argv": ["a"], "limits": {"memory": size}} for size in (500_000_000, 250_000_000, 10**9)]
    spec = JobSpec.model_validate({"steps": steps})
    admission = admit(spec, load_policies()["default"])
    ran = (step_result(cpu_time=1.5, wall_time=4.0), step_result(cpu_time=0.25, wall_time=2.0))
    artifacts = tuple(
        Artifact(path=name, size=size, sha256="0" * 64, mode="0644") for name, size in (("a", 10), ("b", 5))
    )
    charge = charge_of(JobResult(outcome=ran[-1].outcome, steps=ran, artifacts=artifacts), admission)
    assert charge == (1.75, 0.5 * 4 + 0.25 * 2, 6.0, 15)


def test_a_job_that_never_ran_is_free() -> None:
    """Cancelled while it waited: nothing."""
    admission = admit(JobSpec.model_validate({"command": ["a"]}), load_policies()["default"])
    cancelled = JobResult(outcome=Outcome(kind=OutcomeKind.CANCELLED, message="It was cancelled."))
    assert charge_of(cancelled, admission) == (0, 0, 0, 0)


def test_the_usual_time_ends_with_the_running_window() -> None:
    """Unasked: the last 24 hours, or 30 days, and what runs on."""
    hours, days = span(Window.HOUR, None, None, NOW), span(Window.DAY, None, None, NOW)
    assert Window.HOUR.start(hours.end) == datetime(2026, 11, 23, 20, tzinfo=UTC)
    assert hours.end - hours.first == 25
    assert Window.DAY.start(days.end) == datetime(2026, 11, 24, tzinfo=UTC)
    assert days.end - days.first == 31


def test_whole_windows_need_no_neighbour() -> None:
    """From midnight to midnight is one day."""
    asked = span(Window.DAY, NOON.replace(hour=0), NOON.replace(hour=0) + timedelta(days=1), NOW)
    assert asked.end - asked.first == 1


@pytest.mark.parametrize(
    ("window", "since", "until"),
    [
        (Window.DAY, NOON, NOON),
        (Window.DAY, NOON, NOON - timedelta(seconds=1)),
        (Window.DAY, NOON - timedelta(days=401), NOON),
        (Window.HOUR, NOON - timedelta(days=9), NOON),
        (Window.HOUR, instant("1970-01-01"), instant("8999-12-31")),
    ],
)
def test_time_that_is_empty_or_too_long_is_refused(window: Window, since: datetime, until: datetime) -> None:
    """One question reads no more windows than are kept."""
    with pytest.raises(SpanError) as caught:
        span(window, since, until, NOW)
    assert caught.value.field == "from"


def put(redis: Redis, tenant: str, window: Window, moment: datetime, **fields: float) -> None:
    """Write what Lua writes."""
    redis.hset(
        key(tenant, window, window.number(moment)),
        mapping={k.replace("__", ":"): v for k, v in fields.items()},
    )


def report(redis: Redis, tenant: str = "tenant_a") -> UsageReport:
    """The hours of the day."""
    return used(redis, tenant, "acme/default", span(Window.HOUR, NOON - timedelta(hours=12), NOW, NOW))


def test_windows_come_in_order_with_their_sum(redis: Redis) -> None:
    """Each window that had use, by its beginning; those of other tenants, lengths and times are not in it."""
    put(
        redis,
        "tenant_a",
        Window.HOUR,
        NOON,
        jobs=2,
        cpu_seconds=1.25,
        outcome__exited=1,
        outcome__cancelled=1,
    )
    put(
        redis,
        "tenant_a",
        Window.HOUR,
        NOON + timedelta(hours=2),
        jobs=1,
        cpu_seconds=0.1,
        artifact_bytes=7,
        outcome__exited=1,
    )
    put(redis, "tenant_a", Window.DAY, NOON, jobs=99)
    put(redis, "tenant_b", Window.HOUR, NOON, jobs=99)
    put(redis, "tenant_a", Window.HOUR, NOON - timedelta(days=1), jobs=99)
    found = report(redis)
    assert [row.start.hour for row in found.rows] == [12, 14]
    assert found.total == Used(
        jobs=3,
        cpu_seconds=1.35,
        artifact_bytes=7,
        outcomes={OutcomeKind.EXITED: 2, OutcomeKind.CANCELLED: 1},
    )


def test_the_key_is_that_of_the_store() -> None:
    """Hours and days since 1970."""
    assert (
        key("t", Window.HOUR, Window.HOUR.number(NOON))
        == f"stockade:usage:t:h:{int(NOON.timestamp()) // 3600}"
    )
    assert (
        key("t", Window.DAY, Window.DAY.number(NOON))
        == f"stockade:usage:t:d:{int(NOON.timestamp()) // 86400}"
    )


def test_a_table_has_one_head_whatever_happened(redis: Redis) -> None:
    """Every amount and every outcome is a column, used or not; one row for each window."""
    put(redis, "tenant_a", Window.HOUR, NOON, jobs=2, wall_seconds=3.5, outcome__exited=2)
    [row] = csv.DictReader(io.StringIO(as_csv([report(redis), report(redis, "tenant_b")])))
    assert (row["tenant"], row["start"], row["jobs"]) == ("tenant_a", "2026-11-23T12:00:00+00:00", "2")
    assert (row["wall_seconds"], row["cpu_seconds"]) == ("3.5", "0.0")
    assert {kind: row[kind] for kind in OutcomeKind} == dict.fromkeys(OutcomeKind, "0") | {
        OutcomeKind.EXITED: "2"
    }


@pytest.mark.parametrize("name", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", '=HYPERLINK("x"),y'])
def test_a_name_is_no_formula(redis: Redis, name: str) -> None:
    """A spreadsheet that opens the table calculates nothing of what a tenant is called."""
    put(redis, "tenant_a", Window.HOUR, NOON, jobs=1)
    [row] = csv.DictReader(io.StringIO(as_csv([report(redis).model_copy(update={"name": name})]), newline=""))
    assert row["name"] == "'" + name


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2026-11-23", NOON.replace(hour=0)),
        ("2026-11-23T12:00:00Z", NOON),
        ("2026-11-23T13:00:00+01:00", NOON),
        ("2026-11-23 12:00", NOON),
    ],
)
def test_a_time_may_be_written_short(text: str, moment: datetime) -> None:
    """A date is its beginning; without a zone it is UTC."""
    assert instant(text) == moment


@pytest.mark.parametrize(
    "text",
    ["", "yesterday", "1764000000", "0001-01-01", "9999-12-31", "2026-13-01", "2026-11-23T12:00:00+99:00"],
)
def test_what_is_no_time_is_none(text: str) -> None:
    """Nothing is guessed, and nothing is so far away that reckoning with it fails."""
    with pytest.raises(ValueError, match=r".+"):
        instant(text)
