"""``stockade audit``: who was let in or refused, and who changed keys and policies."""

import json
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import click
from redis import Redis

from jobs import audit as log
from jobs import tenants
from stockade.connection import connected, where
from stockade.usage_command import moment_of

PAUSE = 0.5  # seconds between two looks with --follow


@click.command()
@click.argument("tenant", default=log.PLATFORM)
@click.option("--action", help="Only this action, or those that begin with it and a point.")
@click.option("--from", "since", callback=moment_of, metavar="TIME", help="Only from then on.")
@click.option("--to", "until", callback=moment_of, metavar="TIME", help="Only before then.")
@click.option("--limit", type=click.IntRange(1, log.ENTRIES), default=50, show_default=True, help="How many.")
@click.option("--follow", is_flag=True, help="Go on with what happens, until Ctrl-C.")
@where
def audit(
    tenant: str,
    action: str | None,
    since: datetime | None,
    until: datetime | None,
    limit: int,
    follow: bool,
    redis: str | None,
    state: Path,
) -> None:
    """Print the latest entries of TENANT's audit log, or of the platform's, oldest first, a JSON object a line.

    A project's log has its jobs and keys, the platform's what concerns all.
    """
    with connected(redis, state) as client:
        tenant_id = _id(client, tenant)
        known = log.position(client, tenant_id)
        entries = _entries(client, tenant_id, limit, action, since, until)
        for entry in reversed(entries):
            _say(entry)
        if follow:
            said = {entry.id for entry in entries}  # some may have come since the position was taken
            for entry in _news(client, tenant_id, known):
                if entry.id not in said and log.matches(entry, action):
                    _say(entry)


def _entries(
    redis: Redis,
    tenant_id: str,
    limit: int,
    action: str | None,
    since: datetime | None,
    until: datetime | None,
) -> list[log.Entry]:
    """The newest entries that meet all conditions, newest first, over as many pages as that takes."""
    found: list[log.Entry] = []
    cursor = None
    while len(found) < limit:
        page = log.page(
            redis,
            tenant_id,
            limit=limit - len(found),
            cursor=cursor,
            action=action,
            since=since,
            until=until,
        )
        found += page.entries
        cursor = page.next_cursor
        if cursor is None:
            break
    return found


def _id(redis: Redis, name: str) -> str:
    if name == log.PLATFORM:
        return name
    found = tenants.find_project(redis, name)
    if found is None:
        raise click.ClickException(f"there is no tenant {name!r}. See: stockade tenant list")
    return found.id


def _news(redis: Redis, tenant_id: str, known: log.Position) -> Iterator[log.Entry]:
    while True:
        entries, known = log.after(redis, tenant_id, known)
        yield from entries
        time.sleep(PAUSE)


def _say(entry: log.Entry) -> None:
    click.echo(json.dumps(entry.model_dump(mode="json")))  # ASCII: nothing in it moves a terminal's cursor
