"""``stockade tenant``: organisations and their projects, their shares and budgets."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from pydantic import ValidationError
from redis import Redis

from jobs import audit, tenants
from jobs.budgets import Budgets
from jobs.job import Tenant
from jobs.keys import list_keys
from policies.bounds import Bounds
from policies.document import validated
from policies.finding import PolicyError
from policies.marked_yaml import parse
from stockade.connection import connected, where
from stockade.table import moment, print_table

DEFAULT_TENANT = tenants.DEFAULT
"""The organisation that exists without being made, with its project of the same name."""


def _budget(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[Any] | None:
    """A budget's value, None for `none`, in a tuple of one; None when the option is not given."""
    if value is None or value == "none":
        return None if value is None else (None,)
    try:
        number = json.loads(value)
    except ValueError:
        number = value  # a size such as 10GiB
    try:
        return (getattr(Budgets.model_validate({param.name: number}), str(param.name)),)
    except ValidationError as error:
        raise click.BadParameter(f"{value!r}: {error.errors()[0]['msg']}") from None


def _budgets(command: Callable[..., None]) -> Callable[..., None]:
    """Add an option for each budget."""
    for name, field in reversed(Budgets.model_fields.items()):
        form = "SIZE|none" if name.endswith("bytes") else "NUMBER|none"
        option = f"--{name.replace('_', '-')}"
        command = click.option(option, name, metavar=form, callback=_budget, help=field.description)(command)
    return command


def project_named(redis: Redis, name: str) -> Tenant:
    """The project that a name means ("acme" is "acme/default"); an error with its fix when there is none."""
    return _made(redis, name, tenants.find_project)


def _tenant_named(redis: Redis, name: str) -> Tenant:
    return _made(redis, name, tenants.find_tenant)


def _made(redis: Redis, name: str, find: Callable[[Redis, str], Tenant | None]) -> Tenant:
    found = find(redis, name)
    if found is None and name in (DEFAULT_TENANT, f"{DEFAULT_TENANT}/{tenants.DEFAULT}"):
        tenants.create_tenant(redis, DEFAULT_TENANT)
        found = find(redis, name)
    if found is None:
        raise click.ClickException(
            f"there is no tenant {name!r}. Make it with: stockade tenant create {name}"
        )
    return found


@click.group()
def tenant() -> None:
    """Manage tenants: who is charged, limited and kept apart from others.

    A tenant is an organisation (acme) or a project of one (acme/grader). API keys and jobs belong to projects;
    what is set for an organisation bounds all of its projects together.
    """


@tenant.command("create")
@click.argument("name", metavar="ORGANISATION[/PROJECT]")
@where
def tenant_create(name: str, redis: str | None, state: Path) -> None:
    """Make an organisation with its project `default`, or a further project of one."""
    with connected(redis, state) as client:
        made = tenants.create_tenant(client, name)
        _record(client, "tenant.created", made)
    click.echo(f"made the project {made.name}")


def _record(redis: Redis, action: str, about: Tenant, **changes: Any) -> None:
    """Write into the platform's audit log; what is None was not changed."""
    changed = {name: value for name, value in changes.items() if value is not None}
    audit.record(redis, audit.PLATFORM, audit.OPERATOR, action, id=about.id, name=about.name, **changed)


@tenant.command("list")
@where
def tenant_list(redis: str | None, state: Path) -> None:
    """List organisations and, below each, its projects: weight, jobs that run and wait, budgets."""
    with connected(redis, state) as client:
        found = tenants.list_tenants(client)
        loads = tenants.loads(client, found)
    rows = [
        (
            f"  {each.name}" if each.parent else each.name,
            f"{each.weight:g}",
            str(load.running),
            str(load.queued),
            " ".join(f"{name}={value:.15g}" for name, value in each.budgets if value is not None) or "-",
        )
        for each, load in zip(found, loads, strict=True)
    ]
    print_table(("TENANT", "WEIGHT", "RUNNING", "QUEUED", "BUDGETS"), rows)


@tenant.command("show")
@click.argument("name", metavar="TENANT", default=DEFAULT_TENANT)
@where
def tenant_show(name: str, redis: str | None, state: Path) -> None:
    """Show what is set for TENANT, an organisation or a project [default: default]."""
    with connected(redis, state) as client:
        found = _tenant_named(client, name)
        (load,) = tenants.loads(client, [found])
        keys = list_keys(client, found.id)
    lines = {"name": found.name, "id": found.id, "created": moment(found.created_at)}
    lines |= {"weight": f"{found.weight:g}"}
    lines |= {budget: "-" if value is None else f"{value:.15g}" for budget, value in found.budgets}
    lines |= {"bounds": found.bounds, "running": str(load.running), "queued": str(load.queued)}
    if found.parent:
        lines["keys"] = str(len(keys))
    width = max(map(len, lines))
    for label, text in lines.items():
        click.echo(f"{label.ljust(width)}  {text}")


@tenant.command("set")
@click.argument("name", metavar="TENANT")
@click.option(
    "--weight", type=float, help="Share of the slots while others want them too, relative to theirs."
)
@_budgets
@click.option(
    "--bounds", type=click.File(), help="File (YAML or JSON) with bounds: what policies may allow at most."
)
@click.option("--no-bounds", is_flag=True, help="Take the bounds away.")
@where
def tenant_set(
    name: str,
    weight: float | None,
    bounds: Any,
    no_bounds: bool,
    redis: str | None,
    state: Path,
    **budgets: tuple[Any] | None,
) -> None:
    """Change weight, budgets or bounds of TENANT, an organisation or a project. `none` takes a budget away."""
    if weight is None and bounds is None and not no_bounds and not any(budgets.values()):
        raise click.ClickException("nothing to change: name a weight, a budget or bounds")
    given = {budget: value[0] for budget, value in budgets.items() if value is not None}
    text = "{}" if no_bounds else None if bounds is None else _bounds(bounds)
    with connected(redis, state) as client:
        found = _tenant_named(client, name)
        tenants.set_tenant(client, found, weight=weight, budgets=given, bounds=text)
        _record(client, "tenant.changed", found, weight=weight, budgets=given, bounds=text)
    click.echo(f"changed {found.name}")


def _bounds(file: Any) -> str:
    """The bounds in a file, as JSON; all that is wrong with them as a message, with lines."""
    try:
        found = validated(parse(file.read(), file.name), Bounds)
    except PolicyError as error:
        raise click.ClickException(str(error)) from None
    return found.model_dump_json(exclude_unset=True, exclude_none=True)


@tenant.command("remove")
@click.argument("name", metavar="TENANT")
@click.option("--force", is_flag=True, help="Take its API keys, and an organisation's projects, along.")
@where
def tenant_remove(name: str, force: bool, redis: str | None, state: Path) -> None:
    """Remove a project, or an organisation with its projects. Refused while a job waits or runs."""
    with connected(redis, state) as client:
        found = tenants.find_tenant(client, name)
        if found is None:
            raise click.ClickException(f"there is no tenant {name!r}. See: stockade tenant list")
        tenants.remove_tenant(client, found, force=force)
        _record(client, "tenant.removed", found, force=force)
    click.echo(f"removed {found.name}")
