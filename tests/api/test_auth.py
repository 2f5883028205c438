"""Who asks: keys are required, checked, and never shown."""

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
import redis

from api.auth import BELIEVED, Authenticator
from jobs import keys
from jobs.job import Tenant
from jobs.keys import Scope

PROTECTED = [
    ("POST", "/v1/jobs"),
    ("GET", "/v1/jobs/job_1"),
    ("POST", "/v1/jobs/job_1:cancel"),
    ("GET", "/v1/jobs/job_1/steps/0/stdout"),
    ("GET", "/v1/jobs/job_1/steps/0/stderr"),
    ("GET", "/v1/jobs/job_1/artifacts"),
    ("GET", "/v1/jobs/job_1/artifacts/a"),
    ("GET", "/v1/policies"),
    ("GET", "/v1/policies/default"),
    ("POST", "/v1/keys"),
    ("GET", "/v1/keys"),
    ("GET", "/v1/keys/0000000000000000"),
    ("POST", "/v1/keys/0000000000000000:rotate"),
    ("DELETE", "/v1/keys/0000000000000000"),
]


@pytest.mark.parametrize(("method", "path"), PROTECTED)
def test_without_a_key_nothing_is_told(stranger: httpx.Client, method: str, path: str) -> None:
    """Every address under /v1 answers 401 with a challenge, whether or not there is something."""
    answer = stranger.request(method, path)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"].startswith("Bearer ")
    assert answer.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize(
    "change",
    [
        lambda key: f"Bearer {key}x",
        lambda key: f"Bearer {key[:-1]}",
        lambda key: f"Bearer {key.swapcase()}",
        lambda key: f"Basic {key}",
        lambda key: key,
        lambda key: "Bearer",
        lambda key: f"Bearer sk_{'0' * 16}_{key[-43:]}",
        lambda key: "Bearer " + "x" * 4000,
    ],
)
def test_what_is_not_exactly_a_key_is_refused(
    stranger: httpx.Client, key: str, change: Callable[[str], str]
) -> None:
    """Cut, longer, other-case and wrong-scheme keys are 401, and the answer does not repeat them."""
    answer = stranger.get("/v1/policies", headers={"Authorization": change(key)})
    assert answer.status_code == 401
    assert key[3:19] not in answer.text


def test_a_key_in_the_address_is_no_key(stranger: httpx.Client, key: str) -> None:
    """Addresses end up in logs, so a key is taken from the header alone."""
    assert stranger.get("/v1/policies", params={"key": key, "access_token": key}).status_code == 401


def test_with_the_key_the_tenant_is_let_in(client: httpx.Client) -> None:
    """The key that was made works."""
    assert client.get("/v1/policies").status_code == 200


async def seen(authenticator: Authenticator, key: str) -> str | None:
    """The project that a key speaks for, as the authenticator sees it."""
    identity = await authenticator.identity(key)
    return identity and identity.id


def revoke(redis_client: redis.Redis, key_id: str) -> None:
    """Take the key away."""
    keys.revoke_key(redis_client, key_id)


def rotate(redis_client: redis.Redis, key_id: str) -> None:
    """Give it another secret."""
    keys.rotate_key(redis_client, key_id)


@pytest.mark.parametrize("end", [revoke, rotate])
def test_a_revoked_or_rotated_key_stops_working(
    redis_client: redis.Redis, tenant: Tenant, key: str, end: Callable[[redis.Redis, str], None]
) -> None:
    """A good key is believed for a moment without asking Redis; then its end counts."""

    async def run() -> list[str | None]:
        authenticator = Authenticator(redis_client, believed=0.2)
        found = [await seen(authenticator, key)]
        end(redis_client, key.split("_")[1])
        found.append(await seen(authenticator, key))
        await asyncio.sleep(0.25)
        found.append(await seen(authenticator, key))
        return found

    assert asyncio.run(run()) == [tenant.id, tenant.id, None]


def test_a_key_is_believed_for_five_seconds_at_most() -> None:
    """So long, and no longer, a revoked key may work."""
    assert BELIEVED <= 5


def test_an_expired_key_is_not_believed(redis_client: redis.Redis, tenant: Tenant) -> None:
    """Its expiry counts at its time, however long it would have been believed."""

    async def run() -> list[str | None]:
        authenticator = Authenticator(redis_client, believed=60)
        expires_at = datetime.now(UTC) + timedelta(seconds=0.5)
        key = keys.create_key(redis_client, tenant, expires_at=expires_at)
        found = [await seen(authenticator, key)]
        await asyncio.sleep(0.6)
        found.append(await seen(authenticator, key))
        return found

    assert asyncio.run(run()) == [tenant.id, None]


def test_a_bad_key_is_not_remembered(redis_client: redis.Redis, tenant: Tenant) -> None:
    """A key that is made after somebody tried it works at once: only good news is kept."""

    async def run() -> str | None:
        authenticator = Authenticator(redis_client)
        key = keys.create_key(redis_client, tenant)
        name = f"stockade:key:{key.split('_')[1]}"
        stored = redis_client.hgetall(name)
        redis_client.delete(name)
        assert await seen(authenticator, key) is None
        redis_client.hset(name, mapping=stored)  # type: ignore[arg-type]
        return await seen(authenticator, key)

    assert asyncio.run(run()) == tenant.id


def test_keys_are_not_kept_in_memory(redis_client: redis.Redis, key: str) -> None:
    """What is remembered of a key cannot be used as one."""
    authenticator = Authenticator(redis_client)
    asyncio.run(authenticator.identity(key))
    assert len(authenticator._known) == 1
    assert key.encode() not in authenticator._known
    assert key.split("_", 2)[2] not in repr(authenticator._known)


@pytest.mark.parametrize(("method", "path"), [each for each in PROTECTED if each[1][:12] != "/v1/policies"])
@pytest.mark.parametrize("scope", list(Scope))
def test_a_key_is_good_for_its_scopes_alone(
    served: Any, redis_client: redis.Redis, tenant: Tenant, scope: Scope, method: str, path: str
) -> None:
    """403 that names the missing scope, whether or not there is something at the address; no scope includes another."""
    needed = Scope.SUBMIT if method == "POST" else Scope.READ
    if path.startswith("/v1/keys"):
        needed = Scope.ADMIN
    with served.client(keys.create_key(redis_client, tenant, scopes=[scope])) as client:
        answer = client.request(method, path)
    assert (answer.status_code == 403) == (scope is not needed)
    if scope is not needed:
        assert answer.json()["type"] == "urn:stockade:problem:forbidden"
        assert f"`{needed}`" in answer.json()["detail"]


@pytest.mark.parametrize("scope", list(Scope))
def test_policies_are_for_every_key(
    served: Any, redis_client: redis.Redis, tenant: Tenant, scope: Scope
) -> None:
    """Whoever has a key may know what jobs may ask for."""
    with served.client(keys.create_key(redis_client, tenant, scopes=[scope])) as client:
        assert client.get("/v1/policies").status_code == 200
