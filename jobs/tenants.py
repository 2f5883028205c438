"""Tenants and their API keys, in Redis.

`stockade:tenants` (hash) has each tenant's JSON by id; `stockade:tenant_names` (hash) its id by name, so
that a name stands once; `stockade:keys` (hash) each key's JSON by the key's id. A key is shown once, when it
is made: `sk_ID_SECRET`. Its secret, 256 random bits, is stored as SHA-256: a fast hash will do.
"""

import hashlib
import hmac
import json
import re
import secrets
from datetime import UTC, datetime
from typing import Any

from pydantic import AwareDatetime, Field
from redis import Redis

from jobs.job import Tenant
from policies.model import Frozen

_TENANTS, _NAMES, _KEYS = "stockade:tenants", "stockade:tenant_names", "stockade:keys"
_KEY = re.compile(r"sk_([0-9a-f]{16})_([A-Za-z0-9_-]{43})")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_NOBODY = hashlib.sha256(b"").hexdigest()


class TenantError(Exception):
    """What was asked about tenants cannot be done; the message says why."""


class Key(Frozen):
    """What is known of an API key, which is not the key."""

    id: str = Field(description="Identifier: the middle part of the key.")
    tenant: str = Field(description="Identifier of the tenant that it speaks for.")
    sha256: str = Field(description="SHA-256 of its secret, hexadecimal.", repr=False)
    created_at: AwareDatetime = Field(description="When it was made.")


def create_tenant(redis: Redis, name: str) -> Tenant:
    """Make a tenant.

    Raises TenantError when the name is taken, or is not 1 to 64 letters, digits, `.`, `_`, `-`.
    """
    if not _NAME.fullmatch(name):
        raise TenantError(f"{name!r} is no name for a tenant: use 1 to 64 of A-Z, a-z, 0-9, '.', '_', '-'")
    tenant = Tenant(id="tenant_" + secrets.token_hex(8), name=name, created_at=datetime.now(UTC))
    redis.hset(_TENANTS, tenant.id, tenant.model_dump_json())  # before its name: a name must lead somewhere
    if not redis.hsetnx(_NAMES, name, tenant.id):
        redis.hdel(_TENANTS, tenant.id)
        raise TenantError(f"there is a tenant {name} already")
    return tenant


def list_tenants(redis: Redis) -> list[Tenant]:
    """All tenants, by name."""
    stored: Any = redis.hvals(_TENANTS)
    return sorted((Tenant.model_validate_json(each) for each in stored), key=lambda tenant: tenant.name)


def find_tenant(redis: Redis, name: str) -> Tenant | None:
    """The tenant of this name; None when there is none."""
    tenant_id: Any = redis.hget(_NAMES, name)
    stored: Any = redis.hget(_TENANTS, tenant_id) if tenant_id else None
    return Tenant.model_validate_json(stored) if stored else None


def create_key(redis: Redis, tenant: Tenant) -> str:
    """Make an API key for a tenant and return it. It cannot be shown again."""
    key_id, secret = secrets.token_hex(8), secrets.token_urlsafe(32)
    key = Key(id=key_id, tenant=tenant.id, sha256=_digest(secret), created_at=datetime.now(UTC))
    redis.hset(_KEYS, key_id, key.model_dump_json())
    return f"sk_{key_id}_{secret}"


def list_keys(redis: Redis, tenant: Tenant) -> list[Key]:
    """A tenant's keys, oldest first."""
    stored: Any = redis.hvals(_KEYS)
    keys = (Key.model_validate_json(each) for each in stored)
    return sorted((key for key in keys if key.tenant == tenant.id), key=lambda key: key.created_at)


def revoke_key(redis: Redis, key_id: str) -> bool:
    """Make a key worthless, given its id; False when there is none."""
    return bool(redis.hdel(_KEYS, key_id))


def authenticate(redis: Redis, key: str) -> Tenant | None:
    """The tenant that a key speaks for; None when it is no key. Compares in constant time."""
    parts = _KEY.fullmatch(key)
    if parts is None:
        return None
    key_id, secret = parts.groups()
    stored: Any = redis.hget(_KEYS, key_id)
    about = json.loads(stored) if stored else {"sha256": _NOBODY, "tenant": ""}
    if not hmac.compare_digest(about["sha256"], _digest(secret)) or stored is None:
        return None
    tenant: Any = redis.hget(_TENANTS, about["tenant"])
    return Tenant.model_validate_json(tenant) if tenant else None


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
