"""Tenants in Redis: a tree of organisations and their projects.

`stockade:tenant_names` (hash) has each tenant's id by its name, so that a name stands once;
`stockade:tenant_projects:ID` (set) the ids of an organisation's projects. A tenant is one hash, `stockade:tenant:ID`:

    id, name    what it is called: "acme", or "acme/grader" for a project
    parent      id of its organisation; "" for an organisation
    created     ms since the epoch, by the server's clock
    weight      number
    bounds      JSON of `policies.bounds.Bounds`
    and one field for each of `Budgets` that is set, a number

Each change is one Lua script, `jobs/lua/tenant_NAME.lua`.
"""

import json
import re
import secrets
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from pydantic import ValidationError
from redis import Redis

from jobs.budgets import Budgets as Budgets
from jobs.clock import instant
from jobs.job import Tenant
from jobs.scripts import script
from policies.bounds import Bounds
from policies.violation import violations

DEFAULT = "default"
"""The name of the project that every organisation begins with."""
TENANT = "stockade:tenant:"
"""Before a tenant's id, the key of its hash."""

KEY, KEYS = "stockade:key:", "stockade:keys:"
"""Before the id of an API key, its hash; before a tenant's id, the set of its keys' ids (see `jobs.keys`)."""

_NAMES, _PROJECTS = "stockade:tenant_names", "stockade:tenant_projects:"
_LOAD = "stockade:load:"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_BATCH = 500
_AGAINST = {
    "jobs": "{name} has jobs that are queued or running: cancel them, or wait for their end",
    "keys": "{name} has API keys: revoke them, or remove them along with it (--force)",
    "project": "there is the project {name}: remove it first, or along with its organisation (--force)",
}


class Load(NamedTuple):
    """A tenant's jobs that are not finished."""

    queued: int
    running: int


class TenantError(Exception):
    """What was asked about tenants cannot be done; the message says why."""


def create_tenant(redis: Redis, name: str) -> Tenant:
    """Make an organisation ("acme") with its project "acme/default", or one project ("acme/grader").

    Returns:
        The project.

    Raises:
        TenantError: the name is taken or is none, or the project's organisation is not there.
    """
    organisation, slash, project = name.partition("/")
    if not _NAME.fullmatch(organisation) or (slash and not _NAME.fullmatch(project)):
        form = "1 to 64 of A-Z, a-z, 0-9, '.', '_', '-'"
        raise TenantError(
            f"{name[:200]!r} is no name for a tenant: use ORGANISATION or ORGANISATION/PROJECT, {form}"
        )
    parent = _find_id(redis, organisation) if slash else _new_id()
    full, made = f"{organisation}/{project or DEFAULT}", _new_id()
    created = -1
    if parent is not None:
        keys = [_NAMES, _PROJECTS + parent, TENANT + parent, TENANT + made]
        created = script(redis, "tenant_create")(keys, [parent, "" if slash else name, made, full, TENANT])
    if created == -1:
        raise TenantError(
            f"there is no organisation {organisation}. Make it with: stockade tenant create {organisation}"
        )
    if created == -2:
        raise TenantError(f"there is a tenant {name} already")
    return Tenant(id=made, name=full, parent=parent, created_at=instant(created))


def list_tenants(redis: Redis) -> list[Tenant]:
    """All tenants by name, each organisation before its projects."""
    ids: Any = redis.hvals(_NAMES)
    return sorted(_load(redis, ids), key=lambda tenant: tenant.name.split("/"))


def find_tenant(redis: Redis, name: str) -> Tenant | None:
    """The tenant of exactly this name; None when there is none."""
    tenant_id = _find_id(redis, name)
    return None if tenant_id is None else get_tenant(redis, tenant_id)


def find_project(redis: Redis, name: str) -> Tenant | None:
    """The project that a name means: "acme" is "acme/default". None when there is none."""
    return find_tenant(redis, name if "/" in name else f"{name}/{DEFAULT}")


def get_tenant(redis: Redis, tenant_id: str) -> Tenant | None:
    """The tenant of this id; None when there is none."""
    stored: Any = redis.hgetall(TENANT + tenant_id)
    return read_tenant(stored)


def set_tenant(
    redis: Redis,
    tenant: Tenant,
    *,
    weight: float | None = None,
    budgets: Mapping[str, float | None] | None = None,
    bounds: str | None = None,
) -> Tenant:
    """Change what is given of a tenant, and leave the rest as it is.

    Args:
        redis: where.
        tenant: whom.
        weight: its new weight.
        budgets: new value by the name of a budget; None takes that budget away.
        bounds: the JSON of `policies.bounds.Bounds`.

    Returns:
        The tenant as it is with these changes.

    Raises:
        TenantError: a value cannot be used, or the tenant is gone.
    """
    given: dict[str, Any] = {} if weight is None else {"weight": weight}
    if bounds is not None:
        given["bounds"] = _bounds(bounds)
    changed = _checked(tenant, given, budgets or {})
    written = {name: str(getattr(changed, name)) for name in given}
    written |= {
        name: json.dumps(value)
        for name in budgets or {}
        if (value := getattr(changed.budgets, name)) is not None
    }
    unset = [name for name in budgets or {} if name not in written]
    pairs = [part for pair in written.items() for part in pair]
    if not script(redis, "tenant_set")([TENANT + tenant.id], [len(written), *pairs, *unset]):
        raise TenantError(f"there is no tenant {tenant.name} any more")
    return changed


def remove_tenant(redis: Redis, tenant: Tenant, *, force: bool = False) -> None:
    """Remove a project, or an organisation with its projects; with `force` also their API keys.

    Without `force` an organisation may have no project but "default". Records of jobs stay until their retention
    is over; nobody has a key to read them.

    Raises:
        TenantError: it has jobs that are not finished, or something that only `force` takes along, or is gone.
    """
    keys = [_NAMES, TENANT + tenant.id, _PROJECTS + tenant.id]
    prefixes = [TENANT, _LOAD, KEYS, KEY, _PROJECTS]
    arguments = [tenant.id, "force" if force else "", DEFAULT, *prefixes]
    against = script(redis, "tenant_remove")(keys, arguments)
    if against == [b"gone"]:
        raise TenantError(f"there is no tenant {tenant.name} any more")
    if against:
        reason, name = (part.decode() for part in against)
        raise TenantError(_AGAINST[reason].format(name=name))


def loads(redis: Redis, tenants: Sequence[Tenant]) -> list[Load]:
    """How many jobs each of these tenants has that wait and that run."""
    with redis.pipeline(transaction=False) as pipe:
        for tenant in tenants:
            pipe.hmget(_LOAD + tenant.id, "queued", "running")
        return [Load(int(queued or 0), int(running or 0)) for queued, running in pipe.execute()]


def read_tenant(stored: Mapping[bytes, bytes]) -> Tenant | None:
    """The tenant of its hash's fields and values; None when there are none."""
    fields = {name.decode(): value.decode() for name, value in stored.items()}
    if "created" not in fields:
        return None
    return Tenant(
        id=fields["id"],
        name=fields["name"],
        parent=fields["parent"] or None,
        weight=float(fields["weight"]),
        budgets=Budgets(
            **{name: json.loads(fields[name]) for name in Budgets.model_fields if name in fields}
        ),
        bounds=fields["bounds"],
        created_at=instant(fields["created"]),
    )


def _checked(tenant: Tenant, given: dict[str, Any], budgets: Mapping[str, Any]) -> Tenant:
    """The tenant with these changes, each of them checked and in its final form."""
    values = tenant.model_dump() | given
    values["budgets"] |= budgets
    try:
        return Tenant.model_validate(values)
    except ValidationError as error:
        wrong = (
            f"{found['loc'][-1]}: {found['msg']}, got {str(found['input'])[:40]!r}"
            for found in error.errors()
        )
        raise TenantError("; ".join(wrong)) from None


def _bounds(text: str) -> str:
    """The bounds that `text` says, as they are stored: what cannot be read later would stop all jobs."""
    try:
        return Bounds.model_validate_json(text).model_dump_json(exclude_unset=True, exclude_none=True)
    except ValidationError as error:
        wrong = (f"bounds: {each.field or 'the whole'}: {each.message}" for each in violations(error, Bounds))
        raise TenantError("; ".join(wrong)) from None


def _load(redis: Redis, ids: list[bytes]) -> Iterable[Tenant]:
    for start in range(0, len(ids), _BATCH):
        with redis.pipeline(transaction=False) as pipe:
            for each in ids[start : start + _BATCH]:
                pipe.hgetall(TENANT + each.decode())
            for stored in pipe.execute():
                if (tenant := read_tenant(stored)) is not None:
                    yield tenant


def _find_id(redis: Redis, name: str) -> str | None:
    found: Any = redis.hget(_NAMES, name)
    return found.decode() if found else None


def _new_id() -> str:
    return "tenant_" + secrets.token_hex(8)
