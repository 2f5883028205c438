"""A key is shown once, stored hashed, and speaks for its project until it expires, is rotated or revoked."""

import time
from datetime import UTC, datetime, timedelta

import pytest
from redis import Redis

from jobs import keys, tenants
from jobs.job import Tenant
from jobs.keys import Scope


@pytest.fixture
def tenant(redis: Redis) -> Tenant:
    """A project."""
    return tenants.create_tenant(redis, "acme")


def owner(redis: Redis, key: str) -> Tenant | None:
    """The project that a key speaks for."""
    found = keys.authenticate(redis, key)
    return found and found.tenant


def test_key_speaks_for_its_project(redis: Redis, tenant: Tenant) -> None:
    """Each key finds the project that it was made for, and that project's organisation."""
    grader = tenants.create_tenant(redis, "acme/grader")
    assert owner(redis, keys.create_key(redis, tenant)) == tenant
    found = keys.authenticate(redis, keys.create_key(redis, grader))
    assert found is not None
    assert (found.tenant, found.organisation.name) == (grader, "acme")


def test_key_has_what_was_said_of_it(redis: Redis, tenant: Tenant) -> None:
    """Name, scopes and expiry are kept; without scopes a key may submit and read."""
    expires_at = datetime(2100, 1, 1, tzinfo=UTC)
    key = keys.create_key(redis, tenant, name="ci", scopes=[Scope.ADMIN, Scope.READ], expires_at=expires_at)
    plain = keys.create_key(redis, tenant)
    about = keys.find_key(redis, keys.key_id_of(key))
    assert about is not None
    assert (about.name, about.scopes, about.expires_at) == ("ci", (Scope.READ, Scope.ADMIN), expires_at)
    assert about.last_used_at is None
    found = keys.authenticate(redis, plain)
    assert found is not None
    assert found.key.scopes == (Scope.SUBMIT, Scope.READ)


@pytest.mark.parametrize(
    "key", ["", "sk_", "sk_0011223344556677_short", "Bearer x", "sk_é", "sk_\n", "x" * 10_000]
)
def test_what_is_no_key_speaks_for_nobody(redis: Redis, key: str) -> None:
    """Anything that is not exactly a key is refused."""
    assert owner(redis, key) is None


def test_key_with_another_secret_is_refused(redis: Redis, tenant: Tenant) -> None:
    """The id of a key is not enough, nor is the secret of another."""
    first, second = keys.create_key(redis, tenant), keys.create_key(redis, tenant)
    forged = "_".join([*first.split("_")[:2], second.split("_", 2)[2]])
    assert owner(redis, forged) is None
    assert owner(redis, "sk_" + "0" * 16 + "_" + second.split("_", 2)[2]) is None


def commands_of(redis: Redis, key: str) -> dict[str, int]:
    """How often each command runs, in scripts too, when this key is looked at."""
    redis.config_resetstat()
    assert owner(redis, key) is None
    return {name: about["calls"] for name, about in redis.info("commandstats").items()}


def test_unknown_id_costs_what_a_wrong_secret_costs(redis: Redis, tenant: Tenant) -> None:
    """Guessing ids by time learns nothing: the same commands run for both."""
    known = keys.key_id_of(keys.create_key(redis, tenant))
    wrong, unknown = (commands_of(redis, f"sk_{key_id}_{'A' * 43}") for key_id in (known, "0" * 16))
    assert wrong == unknown
    assert wrong["cmdstat_hgetall"] == 3


def test_secret_is_stored_nowhere(redis: Redis, tenant: Tenant) -> None:
    """Who reads the whole store learns no key, and what is known of a key has no hash."""
    key = keys.create_key(redis, tenant)
    rotated = keys.rotate_key(redis, keys.key_id_of(key), grace=60)
    assert rotated is not None
    owner(redis, rotated)
    stored = b"".join(redis.dump(name) or b"" for name in redis.scan_iter())
    for secret in (key.split("_", 2)[2], rotated.split("_", 2)[2]):
        assert secret.encode() not in stored
    [about] = keys.list_keys(redis, tenant.id)
    digest = redis.hget(f"stockade:key:{about.id}", "sha256")
    assert digest is not None
    assert digest.decode() not in repr(about) + repr(keys.authenticate(redis, rotated))


def test_revoked_key_is_worthless(redis: Redis, tenant: Tenant) -> None:
    """A key that was revoked is refused; the tenant's others are not."""
    gone, kept = keys.create_key(redis, tenant), keys.create_key(redis, tenant)
    assert keys.revoke_key(redis, keys.key_id_of(gone))
    assert not keys.revoke_key(redis, keys.key_id_of(gone))
    assert owner(redis, gone) is None
    assert owner(redis, kept) == tenant
    assert [key.id for key in keys.list_keys(redis, tenant.id)] == [keys.key_id_of(kept)]


def test_expired_key_is_refused(redis: Redis, tenant: Tenant) -> None:
    """It works until its time, is still listed after it, and cannot be rotated back to life."""
    key = keys.create_key(redis, tenant, expires_at=datetime.now(UTC) + timedelta(seconds=0.4))
    found = keys.authenticate(redis, key)
    assert found is not None
    assert 0 < found.seconds <= 0.4
    time.sleep(found.seconds + 0.01)
    assert owner(redis, key) is None
    assert [each.id for each in keys.list_keys(redis, tenant.id)] == [keys.key_id_of(key)]
    with pytest.raises(keys.ApiKeyError, match="expired"):
        keys.rotate_key(redis, keys.key_id_of(key))
    kept = redis.pttl(f"stockade:key:{keys.key_id_of(key)}")
    assert 0 < kept <= keys.KEPT_EXPIRED * 1000


def test_rotated_key_keeps_its_id_and_loses_its_secret(redis: Redis, tenant: Tenant) -> None:
    """The new secret works, the old one does not from that moment on; name and scopes stay."""
    old = keys.create_key(redis, tenant, name="ci", scopes=[Scope.READ])
    new = keys.rotate_key(redis, keys.key_id_of(old))
    assert new is not None
    assert keys.key_id_of(new) == keys.key_id_of(old)
    assert owner(redis, old) is None
    assert owner(redis, new) == tenant
    [about] = keys.list_keys(redis, tenant.id)
    assert (about.name, about.scopes) == ("ci", (Scope.READ,))


def test_old_secret_works_for_its_grace(redis: Redis, tenant: Tenant) -> None:
    """With a grace time both work, and after it the new one alone; a second rotation ends the grace."""
    old = keys.create_key(redis, tenant)
    new = keys.rotate_key(redis, keys.key_id_of(old), grace=0.4)
    assert new is not None
    assert owner(redis, new) == tenant
    found = keys.authenticate(redis, old)
    assert found is not None
    assert 0 < found.seconds <= 0.4
    time.sleep(found.seconds + 0.01)
    assert owner(redis, old) is None
    newest = keys.rotate_key(redis, keys.key_id_of(old), grace=60)
    assert owner(redis, new) == tenant
    assert keys.rotate_key(redis, keys.key_id_of(old)) is not None
    assert [owner(redis, key) for key in (old, new, newest or "")] == [None, None, None]


def test_keys_of_others_are_not_there(redis: Redis, tenant: Tenant) -> None:
    """With a tenant named, another's key is not found, rotated or revoked."""
    other = tenants.create_tenant(redis, "other")
    key = keys.create_key(redis, other)
    key_id = keys.key_id_of(key)
    assert keys.find_key(redis, key_id, tenant.id) is None
    assert keys.rotate_key(redis, key_id, tenant.id) is None
    assert not keys.revoke_key(redis, key_id, tenant.id)
    assert keys.list_keys(redis, tenant.id) == []
    assert owner(redis, key) == other


def test_use_is_noted_once_a_minute(redis: Redis, tenant: Tenant) -> None:
    """The first use is noted; those of the same minute write nothing; a wrong secret is no use."""
    key = keys.create_key(redis, tenant)
    name = f"stockade:key:{keys.key_id_of(key)}"
    owner(redis, f"sk_{keys.key_id_of(key)}_{'A' * 43}")
    assert redis.hget(name, "used") is None
    owner(redis, key)
    first = redis.hget(name, "used")
    assert first is not None
    time.sleep(0.002)
    owner(redis, key)
    assert redis.hget(name, "used") == first
    redis.hset(name, "used", int(first) - keys.USED_RESOLUTION * 1000 - 1)
    owner(redis, key)
    assert int(redis.hget(name, "used") or 0) >= int(first)
    [about] = keys.list_keys(redis, tenant.id)
    assert about.last_used_at is not None


def test_keys_belong_to_projects(redis: Redis, tenant: Tenant) -> None:
    """An organisation, or a tenant that is gone, gets no key."""
    organisation = tenants.find_tenant(redis, "acme")
    assert organisation is not None
    with pytest.raises(keys.ApiKeyError, match="belong to projects"):
        keys.create_key(redis, organisation)
    tenants.remove_tenant(redis, tenant)
    with pytest.raises(keys.ApiKeyError, match="no project"):
        keys.create_key(redis, tenant)
    assert list(redis.scan_iter("stockade:key*")) == []


def test_number_of_keys_is_bounded(redis: Redis, tenant: Tenant, monkeypatch: pytest.MonkeyPatch) -> None:
    """One more than the most is refused; those that are long expired do not count."""
    monkeypatch.setattr(keys, "KEYS_MAX", 2)
    first = keys.create_key(redis, tenant)
    keys.create_key(redis, tenant)
    with pytest.raises(keys.ApiKeyError, match="2 keys"):
        keys.create_key(redis, tenant)
    redis.delete(f"stockade:key:{keys.key_id_of(first)}")  # as its expiry would
    assert owner(redis, keys.create_key(redis, tenant)) == tenant


def test_data_of_an_older_version_does_no_harm(redis: Redis) -> None:
    """Tenants and keys that were stored as JSON in one hash are not found, and are in nobody's way."""
    redis.hset("stockade:tenants", "tenant_0", '{"id": "tenant_0", "name": "acme"}')
    redis.hset("stockade:tenant_names", "acme", "tenant_0")
    redis.hset("stockade:keys", "0" * 16, '{"id": "0000000000000000", "tenant": "tenant_0"}')
    assert tenants.list_tenants(redis) == []
    assert tenants.find_project(redis, "acme") is None
    assert owner(redis, f"sk_{'0' * 16}_{'A' * 43}") is None
    project = tenants.create_tenant(redis, "acme")
    assert owner(redis, keys.create_key(redis, project)) == project
