"""API keys in Redis: each speaks for one project, for some purposes, until it expires or is revoked.

A key is shown once, when it is made or rotated: `sk_ID_SECRET`. Its secret, 256 random bits, is stored as SHA-256
(a fast hash will do), in one hash, `stockade:key:ID`:

    tenant      the project's id
    name        what it is for, in the words of whoever made it
    scopes      separated by spaces
    sha256      of the secret
    created     ms since the epoch, by the server's clock
    expires     the same, or ""
    used        when it was last used, to the minute; not there before
    old_sha256, old_until       after a rotation with a grace time: the secret before, and how long it still works

`stockade:keys:TENANT` (set) has the ids of a project's keys. An expired key is listed for `KEPT_EXPIRED` and then
gone. Each change is one Lua script, `jobs/lua/key_NAME.lua`.
"""

import hashlib
import hmac
import re
import secrets
from collections.abc import Iterable, Mapping
from datetime import datetime
from enum import StrEnum
from typing import Any, NamedTuple

from pydantic import AwareDatetime, Field
from redis import Redis

from jobs.clock import instant
from jobs.job import Tenant
from jobs.scripts import script
from jobs.tenants import KEY, KEYS, TENANT, read_tenant
from policies.model import Frozen

KEYS_MAX = 1000
"""Keys of one project."""
KEPT_EXPIRED = 7 * 24 * 3600
"""Seconds that a key is listed after its expiry."""
USED_RESOLUTION = 60
"""Seconds between two notes of when a key was used."""
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9 ._:/@+-]{0,63}$"
"""What a name may hold: plain characters only, so that it is inert wherever it is shown."""

_FORM = re.compile(r"sk_([0-9a-f]{16})_([A-Za-z0-9_-]{43})")
_ID = re.compile(r"[0-9a-f]{16}")
_NOBODY = hashlib.sha256(b"").hexdigest()


class Scope(StrEnum):
    """What a key is good for. None of them includes another."""

    SUBMIT = "submit"
    """Hand in jobs, cancel and delete them."""
    READ = "read"
    """See jobs and what became of them, usage, quota."""
    ADMIN = "admin"
    """Manage the project's keys and webhooks."""


DEFAULT_SCOPES = (Scope.SUBMIT, Scope.READ)
"""What a key is good for unless it is said."""


class ApiKeyError(Exception):
    """What was asked about keys cannot be done; the message says why."""


class Key(Frozen):
    """What is known of an API key, which is not the key."""

    id: str = Field(description="Identifier: the middle part of the key.")
    tenant: str = Field(description="Identifier of the project that it speaks for.")
    name: str = Field(description="What it is for.")
    scopes: tuple[Scope, ...] = Field(description="What it is good for.")
    created_at: AwareDatetime = Field(description="When it was made.")
    expires_at: AwareDatetime | None = Field(default=None, description="When it stops working by itself.")
    last_used_at: AwareDatetime | None = Field(
        default=None, description="When it was last used, to the minute; null if never."
    )
    old_secret_until: AwareDatetime | None = Field(
        default=None, description="How long the secret before the last rotation works on."
    )


class Authenticated(NamedTuple):
    """Who a key speaks for."""

    key: Key
    tenant: Tenant
    organisation: Tenant
    seconds: float
    """For how long this is so unless the key is revoked or rotated; infinite when it does not expire."""


def create_key(
    redis: Redis,
    tenant: Tenant,
    *,
    name: str = "",
    scopes: Iterable[Scope] = DEFAULT_SCOPES,
    expires_at: datetime | None = None,
) -> str:
    """Make an API key for a project and return it. It cannot be shown again.

    Raises:
        ApiKeyError: the tenant is no project, or gone; or it has `KEYS_MAX` keys.
    """
    key_id, secret = secrets.token_hex(8), _secret()
    expires = "" if expires_at is None else int(expires_at.timestamp() * 1000)
    about: list[str | int] = [key_id, tenant.id, name, " ".join(_ordered(scopes)), _digest(secret), expires]
    bounds: list[str | int] = [KEPT_EXPIRED * 1000, KEYS_MAX, KEY, TENANT + tenant.id]
    created = script(redis, "key_create")([KEY + key_id, KEYS + tenant.id], [*about, *bounds])
    if created == -1:
        raise ApiKeyError(f"there is no project {tenant.name}: keys belong to projects")
    if created == -2:
        raise ApiKeyError(f"{tenant.name} has {KEYS_MAX} keys, the most that a project may have: revoke some")
    return _whole(key_id, secret)


def list_keys(redis: Redis, tenant_id: str) -> list[Key]:
    """A project's keys, oldest first."""
    ids: Any = redis.smembers(KEYS + tenant_id)
    names = [each.decode() for each in ids]
    with redis.pipeline(transaction=False) as pipe:
        for name in names:
            pipe.hgetall(KEY + name)
        found = [_key(*pair) for pair in zip(names, pipe.execute(), strict=True) if pair[1]]
    return sorted(found, key=lambda key: (key.created_at, key.id))


def find_key(redis: Redis, key_id: str, tenant_id: str | None = None) -> Key | None:
    """The key of this id; None when there is none, or it is not that tenant's."""
    stored: Any = redis.hgetall(KEY + key_id) if _ID.fullmatch(key_id) else {}
    key = _key(key_id, stored) if stored else None
    return None if key is None or (tenant_id is not None and key.tenant != tenant_id) else key


def rotate_key(redis: Redis, key_id: str, tenant_id: str | None = None, *, grace: float = 0) -> str | None:
    """Give a key a new secret and return the whole key; None when there is no such key (of that tenant).

    Args:
        redis: where.
        key_id: which.
        tenant_id: whose it must be; None for anybody's.
        grace: seconds that the secret before works on. None by default: a key is often rotated because it leaked.

    Raises:
        ApiKeyError: it has expired.
    """
    if not _ID.fullmatch(key_id):
        return None
    secret = _secret()
    arguments: list[str | int] = [tenant_id or "", _digest(secret), int(grace * 1000)]
    done = script(redis, "key_rotate")([KEY + key_id], arguments)
    if done == -1:
        raise ApiKeyError(f"the key {key_id} has expired: make another")
    return _whole(key_id, secret) if done else None


def revoke_key(redis: Redis, key_id: str, tenant_id: str | None = None) -> bool:
    """Make a key worthless, given its id; False when there is none (of that tenant)."""
    if not _ID.fullmatch(key_id):
        return False
    return bool(script(redis, "key_revoke")([KEY + key_id], [key_id, tenant_id or "", KEYS]))


def authenticate(redis: Redis, key: str) -> Authenticated | None:
    """Who a key speaks for; None when it is no key, or no longer. Compares in constant time.

    An id that is not known takes the same calls and comparisons as a wrong secret.
    """
    parts = _FORM.fullmatch(key)
    if parts is None:
        return None
    key_id, secret = parts.groups()
    now, *stored = script(redis, "key_read")([KEY + key_id], [TENANT])
    about, tenant, organisation = (dict(zip(each[::2], each[1::2], strict=True)) for each in stored)
    until = _good_until(about, _digest(secret))
    if until is None or until <= now:
        return None
    project, parent = read_tenant(tenant), read_tenant(organisation)
    if project is None or parent is None:
        return None
    if now - int(about.get(b"used", 0)) >= USED_RESOLUTION * 1000:
        script(redis, "key_used")([KEY + key_id], [now])
    return Authenticated(_key(key_id, about), project, parent, (until - now) / 1000)


def key_id_of(key: str) -> str:
    """The id of a key of ours: its middle part."""
    return key.split("_", 2)[1]


def _good_until(about: Mapping[bytes, bytes], digest: str) -> float | None:
    """When the secret of this digest stops working, ms; None when it is not the key's."""
    current, previous = (
        hmac.compare_digest(about.get(field, _NOBODY.encode()), digest.encode())
        for field in (b"sha256", b"old_sha256")
    )
    if not (current or previous):
        return None
    expires = float(about[b"expires"] or "inf")
    return expires if current else min(expires, float(about[b"old_until"]))


def _key(key_id: str, stored: Mapping[bytes, bytes]) -> Key:
    fields = {name.decode(): value.decode() for name, value in stored.items()}
    return Key(
        id=key_id,
        tenant=fields["tenant"],
        name=fields["name"],
        scopes=tuple(_ordered(fields["scopes"].split())),
        created_at=instant(fields["created"]),
        expires_at=instant(fields["expires"]) if fields["expires"] else None,
        last_used_at=instant(fields["used"]) if "used" in fields else None,
        old_secret_until=instant(fields["old_until"]) if "old_until" in fields else None,
    )


def _ordered(scopes: Iterable[str]) -> list[Scope]:
    given = set(scopes)
    return [scope for scope in Scope if scope in given]


def _secret() -> str:
    return secrets.token_urlsafe(32)


def _whole(key_id: str, secret: str) -> str:
    return f"sk_{key_id}_{secret}"


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
