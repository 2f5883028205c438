"""``stockade tenant`` and ``stockade key``: who may use the service.

They talk to Redis directly, so they need no running API: to the Redis of ``--redis`` (or
``STOCKADE_REDIS``), else to the embedded Valkey of the ``stockade up`` that runs on ``--state``.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from redis import Redis, RedisError

from jobs import tenants
from jobs.job import Tenant
from jobs.settings import Settings, SettingsError
from jobs.store import connect
from stockade import valkey

DEFAULT_TENANT = "default"
"""The tenant that exists without being made."""


def _where(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options that say which Redis is meant."""
    state = click.Path(file_okay=False, path_type=Path)
    command = click.option(
        "--state",
        type=state,
        default=Path("/var/lib/stockade"),
        show_default=True,
        help="State directory of the running `stockade up`, when --redis is not given.",
    )(command)
    return click.option("--redis", envvar="STOCKADE_REDIS", help="Address of Redis, as in STOCKADE_REDIS.")(
        command
    )


@contextmanager
def _connected(redis: str | None, state: Path) -> Iterator[Redis]:
    """A connection to the Redis that is meant; its failures as messages for people."""
    try:
        settings = Settings(redis=redis or valkey.url((state / "valkey").absolute()))
        with connect(settings) as client:
            yield client
    except (SettingsError, ValueError) as error:
        raise click.ClickException(f"--redis: {error}") from None
    except tenants.TenantError as error:
        raise click.ClickException(str(error)) from None
    except RedisError as error:
        hint = "" if redis else f" Is `stockade up` running on {state}? Else name the Redis with --redis"
        reason = str(error).rstrip(".")
        raise click.ClickException(f"cannot use Redis at {settings.redis_shown}: {reason}.{hint}") from None


def _tenant(redis: Redis, name: str) -> Tenant:
    tenant = tenants.find_tenant(redis, name)
    if tenant is None and name == DEFAULT_TENANT:
        tenant = tenants.create_tenant(redis, name)
    if tenant is None:
        raise click.ClickException(
            f"there is no tenant {name!r}. Make it with: stockade tenant create {name}"
        )
    return tenant


def development_key(redis_url: str, path: Path) -> str:
    """The default tenant's key that ``path`` holds, made anew when the file or the key is gone."""
    with connect(Settings(redis=redis_url)) as redis:
        key = path.read_text().strip() if path.exists() else ""
        if tenants.authenticate(redis, key) is None:
            key = tenants.create_key(redis, _tenant(redis, DEFAULT_TENANT))
            with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
                file.write(key + "\n")
        return key


@click.group()
def tenant() -> None:
    """Make and list tenants: who is charged, limited and kept apart from others."""


@tenant.command("create")
@click.argument("name")
@_where
def tenant_create(name: str, redis: str | None, state: Path) -> None:
    """Make the tenant NAME."""
    with _connected(redis, state) as client:
        click.echo(f"made the tenant {tenants.create_tenant(client, name).name}")


@tenant.command("list")
@_where
def tenant_list(redis: str | None, state: Path) -> None:
    """List the tenants: name, when it was made, number of keys."""
    with _connected(redis, state) as client:
        rows = [
            (each.name, _when(each.created_at), str(len(tenants.list_keys(client, each))))
            for each in tenants.list_tenants(client)
        ]
    _print(("TENANT", "CREATED", "KEYS"), rows)


@click.group()
def key() -> None:
    """Make, list and revoke API keys."""


@key.command("create")
@click.argument("tenant_name", metavar="TENANT", default=DEFAULT_TENANT)
@_where
def key_create(tenant_name: str, redis: str | None, state: Path) -> None:
    """Make an API key for TENANT [default: default] and print it. It cannot be shown again."""
    with _connected(redis, state) as client:
        click.echo(tenants.create_key(client, _tenant(client, tenant_name)))


@key.command("list")
@click.argument("tenant_name", metavar="TENANT", default=DEFAULT_TENANT)
@_where
def key_list(tenant_name: str, redis: str | None, state: Path) -> None:
    """List the ids of TENANT's keys [default: default]; an id is the middle part of its key."""
    with _connected(redis, state) as client:
        keys = tenants.list_keys(client, _tenant(client, tenant_name))
    _print(("KEY ID", "CREATED"), [(each.id, _when(each.created_at)) for each in keys])


@key.command("revoke")
@click.argument("key_id")
@_where
def key_revoke(key_id: str, redis: str | None, state: Path) -> None:
    """Make the key with KEY_ID worthless, within five seconds everywhere."""
    with _connected(redis, state) as client:
        if not tenants.revoke_key(client, key_id):
            raise click.ClickException(f"there is no key with the id {key_id!r}. See: stockade key list")
    click.echo(f"revoked the key {key_id}")


def _when(moment: Any) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S} UTC"


def _print(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    for row in (head, *rows):
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
