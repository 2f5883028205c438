"""``stockade policy``: look at policies, check them, try them, and see what a change would do.

All but ``shadow`` and ``diff --tenant`` need no running service: they read the built-in policies and those of
``--policies`` (or ``STOCKADE_POLICIES``).
"""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from pydantic import ValidationError

from jobs import shadow, tenants
from jobs.spec import JobSpec
from policies import schema as schemas
from policies.document import Resolved
from policies.finding import PolicyError
from policies.lint import lint
from policies.loader import BUILTIN, PolicySet, load, load_files, read_bounds
from policies.scopes import PLATFORM, ScopeError, fold
from policies.violation import violations
from stockade import policy_cases, policy_diff, policy_text
from stockade.connection import connected, where
from stockade.table import print_table

WRONG = 1

_DIRECTORY = click.Path(exists=True, file_okay=False, path_type=Path)
_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.group()
def policy() -> None:
    """Look at policies, check and test them, and see what a change would do."""


def _policies(command: Callable[..., None]) -> Callable[..., None]:
    return click.option(
        "--policies",
        "directory",
        envvar="STOCKADE_POLICIES",
        type=_DIRECTORY,
        help="Directory of the operator's policies, as in STOCKADE_POLICIES.",
    )(command)


def _tenant_bounds(command: Callable[..., None]) -> Callable[..., None]:
    command = click.option("--project", type=_FILE, help="Bounds (YAML) of a project, lower.")(command)
    return click.option("--tenant", type=_FILE, help="Bounds (YAML) of an organisation above the policy.")(
        command
    )


@contextmanager
def _told() -> Iterator[None]:
    """Show what is wrong with documents, a line each, and exit with 1."""
    try:
        yield
    except PolicyError as error:
        for finding in error.findings:
            click.echo(f"error: {finding}", err=True)
        sys.exit(WRONG)


@policy.command("list")
@_policies
def list_policies(directory: Path | None) -> None:
    """List the policies, with the digests that the platform leaves them."""
    with _told():
        found = load(directory)
    rows = []
    for name, resolved in found.resolved.items():
        try:
            digest = fold(resolved.policy, [(PLATFORM, found.platform)]).policy.digest
        except ScopeError:
            digest = "not let through by the platform"
        rows.append((name, resolved.policy.version, digest, resolved.policy.description))
    print_table(("NAME", "VERSION", "DIGEST", "DESCRIPTION"), rows)


@policy.command()
@click.argument("name")
@_policies
@_tenant_bounds
@click.option("--json", "as_json", is_flag=True, help="Print the effective policy as JSON.")
def show(name: str, directory: Path | None, tenant: Path | None, project: Path | None, as_json: bool) -> None:
    """Show the policy NAME as the scopes above it leave it, and where each value comes from."""
    with _told():
        found = load(directory)
        scopes = _scopes(found, tenant, project)
    resolved = _resolved(found, name)
    try:
        narrow = fold(resolved.policy, scopes)
    except ScopeError as error:
        raise click.ClickException(str(error)) from None
    if as_json:
        click.echo(narrow.policy.model_dump_json(indent=2))
    else:
        click.echo(f"{name}, digest {narrow.policy.digest}\n")
        print_table(("VALUE", "IS", "SET BY"), policy_text.values(narrow, resolved))


@policy.command()
@click.argument("paths", nargs=-1, envvar="STOCKADE_POLICIES", type=click.Path(exists=True, path_type=Path))
def check(paths: tuple[Path, ...]) -> None:
    """Check policy documents: a directory, or files. Errors exit with 1, warnings do not.

    Without PATHS the directory of STOCKADE_POLICIES is meant, else the built-in policies.
    """
    with _told():
        found = _loaded(paths)
    for finding in found.draft_findings:
        click.echo(f"error: {finding}", err=True)
    warnings = lint(found)
    for finding in warnings:
        click.echo(f"warning: {finding}")
    drafts = f" and {len(found.drafts)} drafts" if found.drafts else ""
    click.echo(f"{len(found.resolved)} policies{drafts}, {len(warnings)} warnings")
    sys.exit(WRONG if found.draft_findings else 0)


@policy.command()
@click.argument("directory", required=False, envvar="STOCKADE_POLICIES", type=_DIRECTORY)
@click.option("-v", "--verbose", is_flag=True, help="Show the cases that are as expected, too.")
def test(directory: Path | None, verbose: bool) -> None:
    """Run the cases in DIRECTORY/tests: requests and what is expected of them. Without DIRECTORY, the built-in ones."""
    with _told():
        at = directory or BUILTIN
        found = load(directory)
        ran = policy_cases.run_all(at, found)
    for each in ran:
        for finding in each.found:
            click.echo(f"failed: {each.name}: {finding}")
        if verbose and not each.found:
            click.echo(f"passed: {each.name}")
    failed = sum(bool(each.found) for each in ran)
    click.echo(f"{len(ran) - failed} passed, {failed} failed")
    if not ran:
        raise click.ClickException(f"there are no cases in {at / policy_cases.TESTS}")
    sys.exit(WRONG if failed else 0)


@policy.command()
@click.argument("job", type=click.File("rb"))
@_policies
@_tenant_bounds
@click.option("--json", "as_json", is_flag=True, help="Print what POST /v1/jobs:explain answers.")
def explain(
    job: Any, directory: Path | None, tenant: Path | None, project: Path | None, as_json: bool
) -> None:
    """Explain what would become of the request in the file JOB ("-" is standard input). Exits with 1 if refused."""
    with _told():
        found = load(directory)
        scopes = _scopes(found, tenant, project)
    explanation = policy_cases.explained(_request(job.read()), found, scopes)
    if as_json:
        click.echo(explanation.model_dump_json(indent=2))
    else:
        policy_text.print_explanation(explanation)
    sys.exit(0 if explanation.admitted else WRONG)


@policy.command()
@click.argument("a")
@click.argument("b")
@_policies
@click.option("--tenant", help="Also say what B would have changed for the last jobs of this project.")
@click.option(
    "--last", type=click.IntRange(1, 100_000), default=1000, show_default=True, help="How many jobs."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@where
def diff(
    a: str,
    b: str,
    directory: Path | None,
    tenant: str | None,
    last: int,
    as_json: bool,
    redis: str | None,
    state: Path,
) -> None:
    """Compare two policies, each a name, a draft ("drafts/NAME") or a YAML file."""
    with _told():
        found = load(directory)
        one, other = _one(found, a), _one(found, b)
    differing = policy_diff.differences(one.policy, other.policy)
    jobs: list[policy_diff.JobDifference | None] = []
    if tenant is not None:
        with connected(redis, state) as client:
            project = tenants.find_project(client, tenant)
            if project is None:
                raise click.ClickException(f"there is no tenant {tenant!r}")
            jobs = list(
                policy_diff.jobs_under(client, project.id, last, one.policy, other.policy, found.platform)
            )
    if as_json:
        changed = [each.model_dump(mode="json") for each in jobs if each is not None]
        about = {"jobs": len(jobs), "jobs_changed": changed} if tenant is not None else {}
        values = [each.model_dump(mode="json") for each in differing]
        click.echo(json.dumps({"differences": values, **about}, indent=2))
        return
    policy_text.print_differences(differing)
    if tenant is not None:
        policy_text.print_jobs(jobs)


@policy.command("shadow")
@click.argument("name")
@click.option(
    "--last", type=click.IntRange(0, shadow.LISTED_MAX), default=20, show_default=True, help="Refusals."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@where
def show_shadow(name: str, last: int, as_json: bool, redis: str | None, state: Path) -> None:
    """Show what the draft of the policy NAME would have refused of what really came."""
    with connected(redis, state) as client:
        found = shadow.report(client, name, last)
    if found is None:
        raise click.ClickException(f"nothing came yet for which there was a draft of {name}")
    if as_json:
        click.echo(found.model_dump_json(indent=2))
    else:
        policy_text.print_shadow(found)


@policy.command()
@click.option("--bounds", is_flag=True, help="Of platform.yaml and tenants' bounds, instead of policies.")
def schema(bounds: bool) -> None:
    """Print the JSON Schema of policy documents, for editors."""
    click.echo(schemas.text("bounds" if bounds else "policy"), nl=False)


def _loaded(paths: tuple[Path, ...]) -> PolicySet:
    """The policies of one directory, or of files beside the built-in ones."""
    if len(paths) == 1 and paths[0].is_dir():
        return load(paths[0])
    if any(path.is_dir() for path in paths):
        raise click.UsageError("give one directory, or files")
    return load_files(paths)


def _scopes(found: PolicySet, tenant: Path | None, project: Path | None) -> list[tuple[str, Any]]:
    scopes = [(PLATFORM, found.platform)]
    for scope, path in (("organisation", tenant), ("project", project)):
        if path is not None:
            scopes.append((f"{scope} {path.stem}", read_bounds(path)[0]))
    return scopes


def _resolved(found: PolicySet, name: str) -> Resolved:
    if name not in found.resolved:
        raise click.ClickException(f"there is no policy {name!r}, there are {', '.join(found.resolved)}")
    return found.resolved[name]


def _one(found: PolicySet, given: str) -> Resolved:
    """The policy that a name, a draft or a file means."""
    draft = given.removeprefix("drafts/")
    if given != draft and draft in found.drafts:
        return found.drafts[draft]
    if given.endswith(".yaml"):
        path = Path(given)
        others = [
            Path(each.chain[-1].marked.file) for name, each in found.resolved.items() if name != path.stem
        ]
        return load_files([*others, path]).resolved[path.stem]
    return _resolved(found, given)


def _request(body: bytes) -> JobSpec:
    try:
        return JobSpec.model_validate_json(body)
    except ValidationError as error:
        told = (f"  {each.field or 'the body'}: {each.message}" for each in violations(error, JobSpec))
        raise click.ClickException("the request is not valid:\n" + "\n".join(told)) from None
