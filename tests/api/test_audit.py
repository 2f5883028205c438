"""The audit log over HTTP, and the refusals in it."""

from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from redis import Redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from api.auth import Identity
from api.problems import NOT_ADMITTED, ProblemError, invalid
from api.refusals import Refusals
from jobs import audit, keys, tenants
from jobs.job import Tenant
from jobs.keys import Scope
from policies.violation import Violation

OVER = {"command": {"argv": ["my-program"], "limits": {"memory": "1TiB", "pids": 100_000}}}


def test_a_refused_job_is_in_the_log(client: httpx.Client, tenant: Tenant) -> None:
    """Which fields broke which rules, and which key asked; nothing of what the request held."""
    assert client.post("/v1/jobs", json=OVER).status_code == 422
    [entry] = client.get("/v1/audit").json()["entries"]
    assert entry["action"] == "job.refused"
    assert entry["about"]["problem"] == "not-admitted"
    assert entry["about"]["rules"] == ["command.limits.memory", "command.limits.pids"]
    assert entry["about"]["fields"] == ["command.limits.memory", "command.limits.pids"]
    assert "my-program" not in str(entry)


def test_what_is_no_decision_about_a_job_is_not_in_it(client: httpx.Client) -> None:
    """A body of the wrong shape is nobody's refusal by policy."""
    assert client.post("/v1/jobs", json={"command": []}).status_code == 422
    assert client.get("/v1/audit").json() == {"entries": [], "next_cursor": None}


def test_another_tenants_log_is_not_shown(client: httpx.Client, served: Any, redis_client: Redis) -> None:
    """Each reads its own."""
    client.post("/v1/jobs", json=OVER)
    other_key = keys.create_key(redis_client, tenants.create_tenant(redis_client, "second"), scopes=Scope)
    with served.client(other_key) as other:
        assert other.get("/v1/audit").json()["entries"] == []


def test_pages_and_conditions(client: httpx.Client, redis_client: Redis, tenant: Tenant) -> None:
    """Limit, cursor, action and time, together."""
    for number in range(5):
        audit.record(redis_client, tenant.id, "operator", f"key.made_{'ab'[number % 2]}", number=number)
    first = client.get("/v1/audit?limit=2").json()
    assert [entry["about"]["number"] for entry in first["entries"]] == [4, 3]
    rest = client.get(f"/v1/audit?cursor={first['next_cursor']}").json()
    assert [entry["about"]["number"] for entry in rest["entries"]] == [2, 1, 0]
    assert len(client.get("/v1/audit?action=key.made_a").json()["entries"]) == 3
    assert len(client.get("/v1/audit?action=key").json()["entries"]) == 5
    soon = (datetime.now(UTC) + timedelta(hours=1)).isoformat().replace("+00:00", "Z")
    assert client.get("/v1/audit", params={"from": soon}).json()["entries"] == []
    assert len(client.get("/v1/audit", params={"to": soon}).json()["entries"]) == 5


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("cursor=x", "cursor"),
        ("cursor=0-0", "cursor"),
        ("cursor=", "cursor"),
        ("limit=0", "limit"),
        ("limit=501", "limit"),
        ("action=a*", "action"),
        ("from=x", "from"),
    ],
)
def test_what_cannot_be_asked_is_named(client: httpx.Client, query: str, field: str) -> None:
    """422 with the parameter at fault."""
    answer = client.get(f"/v1/audit?{query}")
    assert answer.status_code == 422
    assert [error["field"] for error in answer.json()["errors"]] == [field]


@pytest.fixture
def caller(tenant: Tenant) -> Identity:
    """Who submits a job."""
    return Identity(tenant, tenant, "0123456789abcdef", frozenset(Scope))


def test_changes_of_keys_are_in_the_log(client: httpx.Client) -> None:
    """Who made, rotated and revoked which key; never its secret."""
    made = client.post("/v1/keys", json={"name": "ci"}).json()
    rotated = client.post(f"/v1/keys/{made['id']}:rotate").json()
    client.delete(f"/v1/keys/{made['id']}")
    answer = client.get("/v1/audit?action=key")
    entries = answer.json()["entries"]
    assert [entry["action"] for entry in entries] == ["key.revoked", "key.rotated", "key.created"]
    assert {entry["about"]["key"] for entry in entries} == {made["id"]}
    assert {entry["actor"] for entry in entries} == {"key:" + client.headers["authorization"].split("_")[1]}
    for key in (made["key"], rotated["key"]):
        assert key.split("_", 2)[2] not in answer.text


def test_the_log_needs_its_scope(served: Any, redis_client: Redis, tenant: Tenant) -> None:
    """A key that may only submit and read does not see who did what."""
    with served.client(keys.create_key(redis_client, tenant)) as reader:
        assert reader.get("/v1/audit").status_code == 403


def refusal(field: str = "image") -> ProblemError:
    """A refusal by the policy."""
    return invalid((Violation(field=field, got=None, allowed=None, message="no"),), NOT_ADMITTED)


def recorded(redis: Redis, tenant: Tenant) -> list[object]:
    """How often each written refusal had come unwritten."""
    page = audit.page(redis, tenant.id, limit=100)
    return [(entry.about["rules"], entry.about["repeated"]) for entry in reversed(page.entries)]


def test_who_repeats_itself_does_not_flood_the_log(
    redis_client: Redis, tenant: Tenant, caller: Identity
) -> None:
    """The same refusal is written once in a while, another one at once; none goes uncounted."""
    refusals = Refusals(redis_client)
    for _ in range(100):
        refusals.note(caller, refusal())
    refusals.note(caller, refusal("policy"))
    refusals._quiet = 0
    refusals.note(caller, refusal())
    assert recorded(redis_client, tenant) == [(["image"], 0), (["policy"], 0), (["image"], 99)]


def test_a_refusal_needs_no_redis(caller: Identity) -> None:
    """When it cannot be written down, it is a refusal all the same."""
    refusals = Refusals(Redis(unix_socket_path="/nonexistent/redis.sock", retry=Retry(NoBackoff(), 0)))
    with pytest.raises(ProblemError) as caught, refusals.noted(caller):
        raise refusal()
    assert caught.value.kind is NOT_ADMITTED
