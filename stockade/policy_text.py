"""What ``stockade policy`` prints for people."""

from collections import Counter
from collections.abc import Sequence

import click
from pydantic import JsonValue

from jobs.shadow import Report
from policies.document import Resolved
from policies.explain import ExplainedLimit, ExplainedValue, Explanation, value_sources
from policies.reference import shown_value
from policies.scopes import Effective, Rule
from stockade.policy_diff import Difference, JobDifference
from stockade.table import moment, print_table

JOBS_LISTED = 20
"""Jobs that are listed of each kind; all are counted."""


def values(narrow: Effective, resolved: Resolved) -> list[tuple[str, ...]]:
    """Every value of an effective policy, with who set it, as rows."""
    return [_row(each) for each in value_sources(narrow, resolved)]


def print_explanation(found: Explanation) -> None:
    """Print what would become of a request."""
    digest = f", digest {found.policy_digest}" if found.policy_digest else ""
    click.echo(f"{'admitted' if found.admitted else 'REFUSED'} by the policy {found.policy}{digest}")
    for each in found.violations:
        allowed = "" if each.allowed is None else f"; allowed: {_json(each.allowed)}"
        click.echo(f"  {each.field}: {each.message} (got {_json(each.got)}{allowed})")
    for step in found.steps:
        click.echo(f"\n{step.field} ({step.name})")
        limits = [(*_row(each), *_ceiling(each)) for each in step.limits]
        print_table(("LIMIT", "IS", "SET BY", "AT MOST", "SET BY"), limits)
    if found.values:
        click.echo("\nthe whole job")
        print_table(("VALUE", "IS", "SET BY"), [_row(each) for each in found.values])


def print_differences(found: Sequence[Difference]) -> None:
    """Print in what two policies differ."""
    if not found:
        click.echo("the two allow exactly the same")
        return
    rows = [(each.path, shown_value(each.path, each.a), shown_value(each.path, each.b)) for each in found]
    print_table(("VALUE", "A", "B"), rows)


def print_jobs(found: Sequence[JobDifference | None]) -> None:
    """Print what would have changed for jobs."""
    changed = [each for each in found if each is not None]
    counts = Counter(each.change for each in changed)
    click.echo(
        f"\nof the last {len(found)} jobs under A, under B: {counts['refused']} refused,"
        f" {counts['changed']} with other values, {len(found) - len(changed)} the same"
    )
    for change in ("refused", "changed"):
        for each in [each for each in changed if each.change == change][:JOBS_LISTED]:
            click.echo(f"  {each.job} {change}: {'; '.join(_reasons(each))}")
        if counts[change] > JOBS_LISTED:
            click.echo(f"  … and {counts[change] - JOBS_LISTED} more {change}")


def print_shadow(found: Report) -> None:
    """Print what a draft would have done."""
    click.echo(
        f"draft {found.digest}\nsince {moment(found.since)}: {found.evaluated} submissions,"
        f" {found.refused} would be refused, {found.newly_refused} of them admitted now;"
        f" {found.newly_admitted} refused now would be admitted"
    )
    if found.rules:
        click.echo()
        print_table(("RULE", "REFUSALS"), [(rule, str(count)) for rule, count in found.rules.items()])
    if found.refusals:
        click.echo()
        rows = [
            (moment(each.at), each.job or "-", each.tenant, ", ".join(one.field for one in each.violations))
            for each in found.refusals
        ]
        print_table(("AT", "JOB", "PROJECT", "FIELDS"), rows)


def _reasons(found: JobDifference) -> list[str]:
    told = [f"{each.field}: {each.message}" for each in found.violations]
    return told + [
        f"{each.path} {shown_value(each.path, each.a)} → {shown_value(each.path, each.b)}"
        for each in found.differences
    ]


def _row(found: ExplainedValue) -> tuple[str, str, str]:
    return found.field, shown_value(found.field, found.value), _by(found)


def _by(found: ExplainedValue) -> str:
    """Who set a value, in a few words."""
    if found.rule is Rule.CLAMPED:
        return f"{found.scope} (clamped)"
    if found.rule is Rule.INHERITED:
        return f"{found.scope} (inherited)"
    return found.scope


def _ceiling(limit: ExplainedLimit) -> tuple[str, str]:
    by = ExplainedValue(
        field=limit.field, value=limit.ceiling, scope=limit.ceiling_scope, rule=limit.ceiling_rule
    )
    return shown_value(limit.field, limit.ceiling), _by(by)


def _json(value: JsonValue) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
