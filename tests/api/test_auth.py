"""Who asks: keys are required, checked, and never shown."""

import asyncio
from collections.abc import Callable

import httpx
import pytest
import redis

from api.auth import Authenticator
from jobs import tenants
from jobs.job import Tenant

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


def test_a_revoked_key_stops_working(redis_client: redis.Redis, tenant: Tenant, key: str) -> None:
    """A good key is believed for a moment without asking Redis; then the revocation counts."""

    async def run() -> list[Tenant | None]:
        authenticator = Authenticator(redis_client, believed=0.2)
        seen = [await authenticator.tenant(key)]
        tenants.revoke_key(redis_client, key.split("_")[1])
        seen.append(await authenticator.tenant(key))
        await asyncio.sleep(0.25)
        seen.append(await authenticator.tenant(key))
        return seen

    assert asyncio.run(run()) == [tenant, tenant, None]


def test_a_bad_key_is_not_remembered(redis_client: redis.Redis, tenant: Tenant) -> None:
    """A key that is made after somebody tried it works at once: only good news is kept."""

    async def run() -> Tenant | None:
        authenticator = Authenticator(redis_client)
        key = tenants.create_key(redis_client, tenant)
        stored = redis_client.hgetall("stockade:keys")
        redis_client.delete("stockade:keys")
        assert await authenticator.tenant(key) is None
        redis_client.hset("stockade:keys", mapping=stored)  # type: ignore[arg-type]
        return await authenticator.tenant(key)

    assert asyncio.run(run()) == tenant


def test_keys_are_not_kept_in_memory(redis_client: redis.Redis, key: str) -> None:
    """What is remembered of a key cannot be used as one."""
    authenticator = Authenticator(redis_client)
    asyncio.run(authenticator.tenant(key))
    assert len(authenticator._known) == 1
    assert key.encode() not in authenticator._known
