"""``stockade usage``: what tenants used, for bills and spreadsheets."""

from datetime import UTC, datetime
from pathlib import Path

import click

from jobs import tenants
from jobs.instant import FORM, instant
from jobs.usage import SpanError, UsageReport, Window, as_csv, span, used
from stockade.connection import connected, where
from stockade.table import print_table


def moment_of(ctx: click.Context, param: click.Parameter, value: str | None) -> datetime | None:
    """The time that an option's text means."""
    try:
        return None if value is None else instant(value)
    except ValueError:
        raise click.BadParameter(f"{value!r} must be {FORM}") from None


@click.command()
@click.argument("tenant", required=False)
@click.option(
    "--from",
    "since",
    callback=moment_of,
    metavar="TIME",
    help="Begin. [default: a day ago for hours, 30 days for days]",
)
@click.option("--to", "until", callback=moment_of, metavar="TIME", help="End. [default: now]")
@click.option(
    "--step",
    type=click.Choice([window.value for window in Window]),
    default=Window.DAY.value,
    show_default=True,
    help="Length of a row: hours reach 8 days back, days 400.",
)
@click.option("--csv", "form", flag_value="csv", help="Print a CSV table.")
@click.option("--json", "form", flag_value="json", help="Print one JSON object a line, for each tenant.")
@where
def usage(
    tenant: str | None,
    since: datetime | None,
    until: datetime | None,
    step: str,
    form: str | None,
    redis: str | None,
    state: Path,
) -> None:
    """Say what TENANT used, or every tenant: jobs, CPU seconds, GB-seconds of memory, artifacts.

    An organisation's usage is that of all its projects together. Times are UTC; a row in which nothing was used
    is left out.
    """
    try:
        asked = span(Window(step), since, until, datetime.now(UTC))
    except SpanError as error:
        raise click.BadParameter(f"must be {error}", param_hint=f"--{error.field}") from None
    with connected(redis, state) as client:
        found = tenants.find_tenant(client, tenant) if tenant else None
        if tenant and found is None:
            raise click.ClickException(f"there is no tenant {tenant!r}. See: stockade tenant list")
        chosen = [found] if found else tenants.list_tenants(client)
        reports = [used(client, each.id, each.name, asked) for each in chosen]
    if form == "csv":
        click.echo(as_csv(reports), nl=False)
    elif form == "json":
        for report in reports:
            click.echo(report.model_dump_json(by_alias=True))
    else:
        print_table(_HEAD, [row for report in reports for row in _rows(report)])


_HEAD = ("TENANT", "FROM", "JOBS", "CPU S", "GB S", "WALL S", "ARTIFACTS")


def _rows(report: UsageReport) -> list[tuple[str, ...]]:
    """The rows of a report, and their sum where there are several."""
    rows = [(f"{row.start:%Y-%m-%d %H:%M}", row) for row in report.rows]
    total = [("total", report.total)] if len(rows) != 1 else []
    return [
        (
            report.name,
            when,
            str(row.jobs),
            f"{row.cpu_seconds:.2f}",
            f"{row.memory_gb_seconds:.2f}",
            f"{row.wall_seconds:.2f}",
            str(row.artifact_bytes),
        )
        for when, row in [*rows, *total]
    ]
