"""The usage export over HTTP."""

import csv
import io
from datetime import UTC, datetime, timedelta

import httpx
import pytest
from redis import Redis

from jobs.job import Tenant
from jobs.usage import Window, key


@pytest.fixture
def _used(redis_client: Redis, tenant: Tenant) -> None:
    """The tenant used something an hour ago, and somebody else did."""
    hour, day = (window.number(datetime.now(UTC)) for window in Window)
    fields = {"jobs": 2, "cpu_seconds": "1.5", "outcome:exited": 2}
    redis_client.hset(key(tenant.id, Window.HOUR, hour - 1), mapping=fields)
    redis_client.hset(key(tenant.id, Window.DAY, day - 1), mapping=fields)
    redis_client.hset(key("tenant_other", Window.DAY, day - 1), mapping={"jobs": 77})


@pytest.mark.usefixtures("_used")
@pytest.mark.parametrize("step", ["hour", "day"])
def test_the_own_usage_is_exported(client: httpx.Client, tenant: Tenant, step: str) -> None:
    """Windows, their sum, the time that they span; nothing of anyone else."""
    report = client.get(f"/v1/usage?step={step}").json()
    assert (report["tenant"], report["name"], report["step"]) == (tenant.id, tenant.name, step)
    [row] = report["rows"]
    assert (row["jobs"], row["cpu_seconds"], row["outcomes"]) == (2, 1.5, {"exited": 2})
    assert report["total"]["jobs"] == 2
    assert report["from"] <= row["start"] < report["to"]


@pytest.mark.usefixtures("_used")
def test_the_table_has_the_same(client: httpx.Client, tenant: Tenant) -> None:
    """format=csv is an attachment with one row for each window."""
    answer = client.get("/v1/usage?format=csv")
    assert answer.headers["content-type"].startswith("text/csv")
    assert "attachment" in answer.headers["content-disposition"]
    [row] = csv.DictReader(io.StringIO(answer.text))
    assert (row["tenant"], row["jobs"], row["exited"]) == (tenant.id, "2", "2")


@pytest.mark.usefixtures("_used")
def test_a_time_can_be_named(client: httpx.Client) -> None:
    """From and to, as dates or times; what lies outside is not shown."""
    today = datetime.now(UTC).date()
    day = timedelta(days=1)
    assert (
        client.get("/v1/usage", params={"from": f"{today - day}", "to": f"{today}"}).json()["total"]["jobs"]
        == 2
    )
    before = {"from": f"{today - 3 * day}", "to": f"{today - day}T00:00:00Z"}
    assert client.get("/v1/usage", params=before).json()["rows"] == []


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("from=yesterday", "from"),
        ("to=9999-12-31T23:59:59Z", "to"),
        ("from=2026-11-02&to=2026-11-01", "from"),
        ("from=2020-01-01", "from"),
        ("step=hour&from=2026-01-01&to=2026-02-01", "from"),
        ("step=week", "step"),
        ("format=xml", "format"),
    ],
)
def test_what_cannot_be_asked_is_named(client: httpx.Client, query: str, field: str) -> None:
    """422 with the parameter at fault and what is allowed."""
    answer = client.get(f"/v1/usage?{query}")
    assert answer.status_code == 422
    [error] = answer.json()["errors"]
    assert error["field"] == field
    assert error["allowed"]
