"""``stockade key``: API keys, made, listed, rotated and revoked."""

import os
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import click
from redis import Redis

from jobs import audit, keys
from jobs.job import Tenant
from jobs.keys import DEFAULT_SCOPES, Scope
from jobs.settings import Settings
from jobs.store import connect
from policies.units import parse_duration
from stockade.connection import connected, where
from stockade.table import moment, print_table
from stockade.tenants import DEFAULT_TENANT, project_named

_DAYS = re.compile(r"([0-9]{1,5})d")


def _lapse(ctx: click.Context, param: click.Parameter, value: str | None) -> timedelta | None:
    """The time that text such as `90m`, `12h` or `30d` means."""
    if value is None:
        return None
    days = _DAYS.fullmatch(value)
    try:
        return timedelta(days=int(days[1])) if days else timedelta(seconds=parse_duration(value))
    except (ValueError, OverflowError):
        raise click.BadParameter(f"{value!r} must be a time such as 90m, 12h or 30d") from None


def development_key(redis_url: str, path: Path) -> str:
    """The default project's key, with every scope, that ``path`` holds; made anew when it is not good for all."""
    with connect(Settings(redis=redis_url)) as redis:
        key = path.read_text().strip() if path.exists() else ""
        known = keys.authenticate(redis, key)
        if known is None or set(known.key.scopes) != set(Scope):
            project = project_named(redis, DEFAULT_TENANT)
            key = _create(redis, project, "development", list(Scope), None)
            with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
                file.write(key + "\n")
        return key


@click.group()
def key() -> None:
    """Make, list, rotate and revoke API keys."""


@key.command("create")
@click.argument("tenant_name", metavar="TENANT", default=DEFAULT_TENANT)
@click.option("--name", default="", help="What it is for.")
@click.option(
    "--scope",
    "scopes",
    type=click.Choice([scope.value for scope in Scope]),
    multiple=True,
    default=[scope.value for scope in DEFAULT_SCOPES],
    show_default=True,
    help="What it is good for; may be given again. admin: manage the project's keys and webhooks.",
)
@click.option(
    "--expires",
    metavar="TIME",
    callback=_lapse,
    help="When it stops working: a time from now, such as 12h or 30d.",
)
@where
def key_create(
    tenant_name: str,
    name: str,
    scopes: tuple[str, ...],
    expires: timedelta | None,
    redis: str | None,
    state: Path,
) -> None:
    """Make an API key for the project TENANT [default: default] and print it. It cannot be shown again."""
    if name and not re.fullmatch(keys.NAME_PATTERN, name):
        raise click.BadParameter(f"{name!r} must match {keys.NAME_PATTERN}", param_hint="--name")
    until = None if expires is None else datetime.now(UTC) + expires
    with connected(redis, state) as client:
        project = project_named(client, tenant_name)
        click.echo(_create(client, project, name, [Scope(scope) for scope in scopes], until))


@key.command("list")
@click.argument("tenant_name", metavar="TENANT", default=DEFAULT_TENANT)
@where
def key_list(tenant_name: str, redis: str | None, state: Path) -> None:
    """List the keys of the project TENANT [default: default]; an id is the middle part of its key."""
    with connected(redis, state) as client:
        found = keys.list_keys(client, project_named(client, tenant_name).id)
    rows = [
        (
            each.id,
            each.name or "-",
            ",".join(each.scopes),
            moment(each.created_at),
            moment(each.expires_at),
            moment(each.last_used_at),
        )
        for each in found
    ]
    print_table(("KEY ID", "NAME", "SCOPES", "CREATED", "EXPIRES", "LAST USED"), rows)


@key.command("rotate")
@click.argument("key_id")
@click.option(
    "--grace",
    metavar="TIME",
    callback=_lapse,
    default="0s",
    help="How long the old secret works on. [default: not at all]",
)
@where
def key_rotate(key_id: str, grace: timedelta, redis: str | None, state: Path) -> None:
    """Give the key with KEY_ID a new secret and print it. It cannot be shown again."""
    with connected(redis, state) as client:
        known = keys.find_key(client, key_id)
        made = keys.rotate_key(client, key_id, grace=grace.total_seconds())
        if known is None or made is None:
            raise _no_key(key_id)
        _record(client, known.tenant, "key.rotated", key_id)
    click.echo(made)


@key.command("revoke")
@click.argument("key_id")
@where
def key_revoke(key_id: str, redis: str | None, state: Path) -> None:
    """Make the key with KEY_ID worthless, within five seconds everywhere."""
    with connected(redis, state) as client:
        known = keys.find_key(client, key_id)
        if not keys.revoke_key(client, key_id):
            raise _no_key(key_id)
        if known is not None:
            _record(client, known.tenant, "key.revoked", key_id)
    click.echo(f"revoked the key {key_id}")


def _create(
    redis: Redis, project: Tenant, name: str, scopes: list[Scope], expires_at: datetime | None
) -> str:
    made = keys.create_key(redis, project, name=name, scopes=scopes, expires_at=expires_at)
    _record(redis, project.id, "key.created", keys.key_id_of(made), name=name, scopes=scopes)
    return made


def _record(redis: Redis, tenant_id: str, action: str, key_id: str, **about: Any) -> None:
    audit.record(redis, tenant_id, audit.OPERATOR, action, key=key_id, **about)


def _no_key(key_id: str) -> click.ClickException:
    return click.ClickException(f"there is no key with the id {key_id!r}. See: stockade key list")
