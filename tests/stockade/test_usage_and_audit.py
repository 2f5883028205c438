"""`stockade usage` and `stockade audit`."""

import csv
import io
import json
from datetime import UTC, datetime

import pytest
from click.testing import CliRunner, Result
from redis import Redis

from jobs import audit, tenants
from jobs.job import Tenant
from jobs.usage import Window, key
from stockade import audit_command
from stockade.cli import main


@pytest.fixture
def redis(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> Redis:
    monkeypatch.setenv("STOCKADE_REDIS", redis_url)
    return Redis.from_url(redis_url)


@pytest.fixture
def acme(redis: Redis) -> Tenant:
    """The project acme/default of the organisation acme."""
    return tenants.create_tenant(redis, "acme")


def stockade(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


def use(redis: Redis, tenant: str | None, days_ago: int, **fields: float) -> None:
    """Write what Lua writes."""
    assert tenant is not None
    number = Window.DAY.number(datetime.now(UTC)) - days_ago
    redis.hset(key(tenant, Window.DAY, number), mapping=fields)


def test_usage_of_a_tenant_is_a_table_with_a_sum(redis: Redis, acme: Tenant) -> None:
    """A line for each day of use, and one for all of them."""
    use(redis, acme.id, 1, jobs=2, cpu_seconds=1.5)
    use(redis, acme.id, 2, jobs=3, cpu_seconds=0.25)
    lines = [line.split() for line in stockade("usage", "acme/default").output.splitlines()]
    assert lines[0][:2] == ["TENANT", "FROM"]
    assert [line[-5:-3] for line in lines[1:]] == [["3", "0.25"], ["2", "1.50"], ["5", "1.75"]]


def test_usage_of_all_tenants_has_their_organisations(redis: Redis, acme: Tenant) -> None:
    """Unnamed, everyone: organisations, whose use is that of their projects, and projects."""
    use(redis, acme.id, 1, jobs=2)
    use(redis, acme.parent, 1, jobs=5)
    rows = list(csv.DictReader(io.StringIO(stockade("usage", "--csv").output)))
    assert [(row["name"], row["jobs"]) for row in rows] == [("acme", "5"), ("acme/default", "2")]
    reports = [json.loads(line) for line in stockade("usage", "--json").output.splitlines()]
    assert [report["total"]["jobs"] for report in reports] == [5, 2]


def test_usage_can_be_bounded(redis: Redis, acme: Tenant) -> None:
    """--from and --to; a time that is none, or too much of it, is an error of one line."""
    use(redis, acme.id, 1, jobs=2)
    assert (
        '"rows":[]'
        in stockade("usage", "acme", "--json", "--from", "2026-01-01", "--to", "2026-02-01").output
    )
    for arguments in (["--from", "soon"], ["--from", "2001-01-01"], ["--step", "week"]):
        result = stockade("usage", *arguments)
        assert result.exit_code == 2
        assert arguments[0] in result.output
    assert stockade("usage", "nobody").exit_code == 1


def test_the_audit_log_is_printed_oldest_first(redis: Redis, acme: Tenant) -> None:
    """A JSON object a line; conditions apply; the platform's log is another."""
    for number in range(4):
        audit.record(redis, acme.id, "operator", f"key.made_{'ab'[number % 2]}", number=number)
    audit.record(redis, audit.PLATFORM, "service", "policy.reloaded")
    lines = [json.loads(line) for line in stockade("audit", "acme", "--limit", "3").output.splitlines()]
    assert [line["about"]["number"] for line in lines] == [1, 2, 3]
    assert stockade("audit", "acme", "--action", "key.made_a").output.count("\n") == 2
    assert json.loads(stockade("audit").output)["action"] == "policy.reloaded"
    assert stockade("audit", "nobody").exit_code == 1


def test_what_the_operator_does_is_recorded(redis: Redis) -> None:
    """Keys in their project's log, without a secret; tenants in the platform's."""
    stockade("tenant", "create", "initech")
    stockade("tenant", "set", "initech", "--concurrent-jobs", "3")
    made = stockade("key", "create", "initech", "--name", "ci").output.strip()
    rotated = stockade("key", "rotate", made.split("_")[1]).output.strip()
    stockade("key", "revoke", made.split("_")[1])
    output = stockade("audit", "initech").output
    actions = [json.loads(line)["action"] for line in output.splitlines()]
    assert actions == ["key.created", "key.rotated", "key.revoked"]
    assert made.split("_", 2)[2] not in output
    assert rotated.split("_", 2)[2] not in output
    created, changed = (json.loads(line) for line in stockade("audit").output.splitlines())
    assert (created["action"], created["about"]["name"]) == ("tenant.created", "initech/default")
    assert (changed["actor"], changed["about"]["budgets"]) == ("operator", {"concurrent_jobs": 3})


def test_nothing_in_the_log_moves_the_terminal(redis: Redis, acme: Tenant) -> None:
    """What a caller managed to get into an entry is printed escaped."""
    audit.record(redis, acme.id, "service", "a.b", text="\x1b[2J\u202e\r\nforged")
    output = stockade("audit", "acme").output
    assert output.count("\n") == 1
    assert output.isascii()
    assert output[:-1].isprintable()


def test_follow_prints_what_comes(redis: Redis, acme: Tenant, monkeypatch: pytest.MonkeyPatch) -> None:
    """New entries of that action, each once, after those that were there."""
    audit.record(redis, acme.id, "operator", "key.created")
    rounds = iter(["key.revoked", "job.refused", "key.rotated"])

    def pause(_: float) -> None:
        action = next(rounds, None)
        if action is None:
            raise KeyboardInterrupt
        audit.record(redis, acme.id, "operator", action)

    monkeypatch.setattr(audit_command.time, "sleep", pause)
    output = stockade("audit", "acme", "--action", "key", "--follow").output
    actions = [json.loads(line)["action"] for line in output.splitlines() if line.startswith("{")]
    assert actions == ["key.created", "key.revoked", "key.rotated"]
