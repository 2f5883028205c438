"""API keys over HTTP: a project's own, shown once, and never worth more than the key that made them."""

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
import redis
from structlog.testing import capture_logs

from jobs import keys
from jobs.job import Tenant
from jobs.keys import Scope

FORM = re.compile(r"sk_[0-9a-f]{16}_[A-Za-z0-9_-]{43}")


@pytest.fixture
def admin(served: Any, redis_client: redis.Redis, tenant: Tenant) -> Iterator[httpx.Client]:
    """A client whose key can manage keys and read, and nothing else."""
    key = keys.create_key(redis_client, tenant, scopes=[Scope.ADMIN, Scope.READ])
    with served.client(key) as client:
        yield client


def test_a_key_is_shown_once(client: httpx.Client, served: Any) -> None:
    """The key of the answer works for what it was made; afterwards everything but the key is told."""
    answer = client.post("/v1/keys", json={"name": "ci", "scopes": ["read"], "expires_in": "12h"})
    assert answer.status_code == 201
    made = answer.json()
    key = made.pop("key")
    assert FORM.fullmatch(key)
    assert made["scopes"] == ["read"]
    lasts = datetime.fromisoformat(made["expires_at"]) - datetime.fromisoformat(made["created_at"])
    assert abs(lasts - timedelta(hours=12)) < timedelta(seconds=5)
    assert client.get(answer.headers["location"]).json() == made
    assert made in client.get("/v1/keys").json()["keys"]
    with served.client(key) as other:
        assert other.get("/v1/jobs/job_1").status_code == 404
        assert other.post("/v1/jobs", json={"command": ["true"]}).status_code == 403
    assert client.get(answer.headers["location"]).json()["last_used_at"] is not None


def test_without_scopes_a_key_submits_and_reads(client: httpx.Client) -> None:
    """Who manages keys is said, never assumed."""
    made = client.post("/v1/keys", json={"name": "plain"}).json()
    assert (made["scopes"], made["expires_at"]) == (["submit", "read"], None)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "name"),
        ({"name": ""}, "name"),
        ({"name": "a\nb"}, "name"),
        ({"name": "<script>"}, "name"),
        ({"name": "x" * 65}, "name"),
        ({"name": "a", "scopes": []}, "scopes"),
        ({"name": "a", "scopes": ["root"]}, "scopes[0]"),
        ({"name": "a", "scopes": "read"}, "scopes"),
        ({"name": "a", "expires_in": 0}, "expires_in"),
        ({"name": "a", "expires_in": "3 fortnights"}, "expires_in"),
        ({"name": "a", "expires_in": 1e9}, "expires_in"),
        ({"name": "a", "expires_at": "2020-01-01T00:00:00Z"}, "expires_at"),
        ({"name": "a", "expires_at": "2999-01-01T00:00:00Z"}, "expires_at"),
        ({"name": "a", "expires_at": "2030-01-01T00:00:00"}, "expires_at"),
        ({"name": "a", "expires_at": "2030-01-01T00:00:00Z", "expires_in": 60}, "expires_at"),
        ({"name": "a", "tenant": "tenant_0"}, "tenant"),
        ({"name": "a", "key": "sk_0_0"}, "key"),
    ],
)
def test_what_cannot_be_meant_is_refused(client: httpx.Client, body: dict[str, Any], field: str) -> None:
    """422 names the field; no key is made."""
    before = len(client.get("/v1/keys").json()["keys"])
    answer = client.post("/v1/keys", json=body)
    assert answer.status_code == 422
    assert [error["field"] for error in answer.json()["errors"]] == [field]
    assert len(client.get("/v1/keys").json()["keys"]) == before


def test_a_key_hands_on_no_more_than_it_has(admin: httpx.Client, client: httpx.Client) -> None:
    """Neither by making a key nor by rotating one, which shows its secret, does a key get a scope that it lacks."""
    stronger = client.post("/v1/keys", json={"name": "a", "scopes": ["submit"]}).json()
    for answer in (
        admin.post("/v1/keys", json={"name": "b", "scopes": ["read", "submit"]}),
        admin.post("/v1/keys", json={"name": "b"}),
        admin.post(f"/v1/keys/{stronger['id']}:rotate"),
    ):
        assert answer.status_code == 403
        assert answer.json()["type"] == "urn:stockade:problem:forbidden"
        assert "`submit`" in answer.json()["detail"]
        assert not FORM.search(answer.text)
    assert admin.post("/v1/keys", json={"name": "b", "scopes": ["read"]}).status_code == 201
    assert admin.delete(f"/v1/keys/{stronger['id']}").status_code == 200


def test_a_rotated_key_is_the_same_key(client: httpx.Client, redis_client: redis.Redis) -> None:
    """Id, name and scopes stay; the old secret is worthless, or works on for the grace that was asked for."""
    made = client.post("/v1/keys", json={"name": "ci"}).json()
    rotated = client.post(f"/v1/keys/{made['id']}:rotate").json()
    assert keys.authenticate(redis_client, made["key"]) is None
    assert keys.authenticate(redis_client, rotated["key"]) is not None
    again = client.post(f"/v1/keys/{made['id']}:rotate?grace=60").json()
    assert keys.authenticate(redis_client, rotated["key"]) is not None
    assert again["old_secret_until"] is not None
    assert {each["id"] for each in (made, rotated, again)} == {made["id"]}
    assert client.post(f"/v1/keys/{made['id']}:rotate?grace=1e9").status_code == 422


def test_keys_of_others_do_not_exist(client: httpx.Client, other_key: str, redis_client: redis.Redis) -> None:
    """Another project's key answers like one that nobody has, and is left alone."""
    other_id = keys.key_id_of(other_key)
    for method, path in (
        ("GET", "/v1/keys/{}"),
        ("POST", "/v1/keys/{}:rotate"),
        ("DELETE", "/v1/keys/{}"),
    ):
        theirs = client.request(method, path.format(other_id))
        nobodys = client.request(method, path.format("0" * 16))
        odd = client.request(method, path.format("no-id%0a"))
        assert theirs.status_code == nobodys.status_code == odd.status_code == 404
        assert theirs.content == nobodys.content == odd.content
        assert {**theirs.headers, "x-request-id": "", "date": ""} == {
            **nobodys.headers,
            "x-request-id": "",
            "date": "",
        }
    assert other_id not in client.get("/v1/keys").text
    assert keys.authenticate(redis_client, other_key) is not None


def test_a_revoked_key_is_gone(client: httpx.Client, redis_client: redis.Redis) -> None:
    """The answer tells what it was; a second time there is none."""
    made = client.post("/v1/keys", json={"name": "ci"}).json()
    gone = client.delete(f"/v1/keys/{made['id']}")
    assert (gone.status_code, gone.json()["name"]) == (200, "ci")
    assert client.delete(f"/v1/keys/{made['id']}").status_code == 404
    assert keys.authenticate(redis_client, made["key"]) is None


def test_no_secret_is_logged_or_repeated(client: httpx.Client, redis_client: redis.Redis) -> None:
    """Making, rotating, listing and misusing keys leaves no secret in the log, in an error or in Redis."""
    with capture_logs() as logs:
        made = client.post("/v1/keys", json={"name": "ci"}).json()
        rotated = client.post(f"/v1/keys/{made['id']}:rotate").json()
        secrets = [each["key"].split("_", 2)[2] for each in (made, rotated)]
        said = [
            client.get("/v1/keys").text,
            client.get(f"/v1/keys/{made['id']}").text,
            client.get(f"/v1/keys/{rotated['key']}").text,
            client.post("/v1/keys", json={"name": rotated["key"] + "\n", "scopes": ["x"]}, headers={}).text,
            client.get("/v1/keys", headers={"Authorization": f"Bearer {made['key']}"}).text,
        ]
    said[3] = said[3].replace(
        rotated["key"], "", 1
    )  # the caller's own words: the value at fault is shown back
    held = b"".join(redis_client.dump(name) or b"" for name in redis_client.scan_iter())
    for secret in secrets:
        assert secret not in "".join(said) + str(logs)
        assert secret.encode() not in held


def test_an_expired_key_is_listed_and_refused(client: httpx.Client, served: Any) -> None:
    """It opens nothing after its time, and the list says until when it worked."""
    expires_at = datetime.now(UTC) + timedelta(seconds=0.3)
    body = {"name": "short", "expires_at": expires_at.isoformat()}
    made = client.post("/v1/keys", json=body).json()
    with served.client(made["key"]) as short:
        assert short.get("/v1/policies").status_code == 200
        while datetime.now(UTC) < expires_at + timedelta(milliseconds=5):
            pass
        assert short.get("/v1/policies").status_code == 401
    assert made["id"] in [key["id"] for key in client.get("/v1/keys").json()["keys"]]


def test_a_body_of_keys_is_small(client: httpx.Client) -> None:
    """What asks for a key has 64 KiB at most, spaces included: more is 413 before any of it is looked at."""
    headers = {"Content-Type": "application/json"}
    body = '{"name": "a"}'
    assert client.post("/v1/keys", content=body.ljust(64 * 1024), headers=headers).status_code == 201
    assert client.post("/v1/keys", content=body.ljust(64 * 1024 + 1), headers=headers).status_code == 413
