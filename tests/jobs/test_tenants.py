"""Tenants own keys; a key is shown once, stored hashed, and speaks for its tenant until it is revoked."""

import pytest
from redis import Redis

from jobs import tenants


def test_key_speaks_for_its_tenant(redis: Redis) -> None:
    """Each key finds the tenant that it was made for."""
    one, other = tenants.create_tenant(redis, "one"), tenants.create_tenant(redis, "other")
    assert tenants.authenticate(redis, tenants.create_key(redis, one)) == one
    assert tenants.authenticate(redis, tenants.create_key(redis, other)) == other
    assert tenants.list_tenants(redis) == [one, other]
    assert tenants.find_tenant(redis, "other") == other
    assert tenants.find_tenant(redis, "nobody") is None


@pytest.mark.parametrize(
    "key", ["", "sk_", "sk_0011223344556677_short", "Bearer x", "sk_é", "sk_\n", "x" * 10_000]
)
def test_what_is_no_key_speaks_for_nobody(redis: Redis, key: str) -> None:
    """Anything that is not exactly a key is refused."""
    assert tenants.authenticate(redis, key) is None


def test_key_with_another_secret_is_refused(redis: Redis) -> None:
    """The id of a key is not enough, nor is the secret of another."""
    tenant = tenants.create_tenant(redis, "one")
    first, second = tenants.create_key(redis, tenant), tenants.create_key(redis, tenant)
    forged = "_".join([*first.split("_")[:2], second.split("_", 2)[2]])
    assert tenants.authenticate(redis, forged) is None
    assert tenants.authenticate(redis, "sk_" + "0" * 16 + "_" + second.split("_", 2)[2]) is None


def test_secret_is_stored_nowhere(redis: Redis) -> None:
    """Who reads the whole store learns no key, and no repr shows a hash."""
    tenant = tenants.create_tenant(redis, "one")
    secret = tenants.create_key(redis, tenant).split("_", 2)[2]
    stored = b"".join(value for name in redis.scan_iter() for value in redis.hgetall(name).values())
    assert secret.encode() not in stored
    [key] = tenants.list_keys(redis, tenant)
    assert key.sha256 not in repr(key)


def test_revoked_key_is_worthless(redis: Redis) -> None:
    """A key that was revoked is refused; the tenant's others are not."""
    tenant = tenants.create_tenant(redis, "one")
    gone, kept = tenants.create_key(redis, tenant), tenants.create_key(redis, tenant)
    assert tenants.revoke_key(redis, gone.split("_")[1])
    assert not tenants.revoke_key(redis, gone.split("_")[1])
    assert tenants.authenticate(redis, gone) is None
    assert tenants.authenticate(redis, kept) == tenant
    assert [key.id for key in tenants.list_keys(redis, tenant)] == [kept.split("_")[1]]


def test_name_stands_once(redis: Redis) -> None:
    """Two tenants of one name cannot be made."""
    tenants.create_tenant(redis, "one")
    with pytest.raises(tenants.TenantError, match="already"):
        tenants.create_tenant(redis, "one")
    assert len(tenants.list_tenants(redis)) == 1


@pytest.mark.parametrize("name", ["", " ", "a b", "é", "a\n", "-a", "x" * 65])
def test_odd_names_are_refused(redis: Redis, name: str) -> None:
    """A name that would not print well is no name."""
    with pytest.raises(tenants.TenantError):
        tenants.create_tenant(redis, name)
