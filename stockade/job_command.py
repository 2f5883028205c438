"""``stockade job``: jobs of a running service, by the API: hand in, see, follow, cancel, list, fetch, delete.

Exit status: 0; 125 when the service refused or could not be reached; of what follows a job to its end, the status
that `stockade run` would have.
"""

import json
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, cast

import click
from pydantic import BaseModel, TypeAdapter, ValidationError

from jobs.instant import FORM, instant
from jobs.job import JobState
from jobs.job_event import Event, FinishedEvent, GapEvent, OutputEvent, StateEvent, Stream
from jobs.outcome import Outcome
from jobs.spec import RelativePath
from policies.priority import Priority
from stockade.client import Client
from stockade.client.job_body import JobFields, JobLike
from stockade.job_options import environment, file, given, limit_options
from stockade.service import ServiceError, connected, where
from stockade.table import moment, print_table
from stockade.verdict import say, status_of

NAME = "stockade job"
INTERRUPTED = 130  # 128 + SIGINT


@click.group()
def job() -> None:
    """Hand jobs in to a running service, follow them, and fetch what they leave."""


@job.command(
    context_settings={"allow_interspersed_args": False},
    epilog='Sizes are written as "64MiB", times as "500ms" or "10s"; plain numbers are bytes and seconds.',
)
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
@click.option("--spec", type=click.File("rb"), help="The whole job as JSON, - for standard input.")
@click.option("--follow", is_flag=True, help="Show what it prints, while it does; end as it ends.")
@click.option("--policy", help="Policy: defaults and ceilings.")
@click.option("--image", help="Image to run in.")
@click.option("--pool", help="Kind of worker to run on.")
@click.option(
    "--priority",
    type=click.Choice([each.value for each in Priority]),
    help="Which of one's own jobs go first.",
)
@limit_options()
@click.option(
    "--file", "files", multiple=True, metavar="LOCAL[:PATH]", help="Copy a local file into the workspace."
)
@click.option("--env", multiple=True, metavar="NAME=VALUE", help="Environment variable. May be repeated.")
@click.option("--stdin", is_flag=True, help="Send our standard input as that of the command.")
@click.option("--cwd", help="Directory to start in, below the workspace /work.")
@click.option("--keep", "outputs", multiple=True, metavar="GLOB", help="Keep these files as artifacts.")
@click.option(
    "--label", "labels", multiple=True, metavar="NAME=VALUE", help="Label to find it by. May be repeated."
)
@click.option("--idempotency-key", metavar="KEY", help="The same key and job give the same job again.")
@where
def submit(
    command: tuple[str, ...],
    spec: Any,
    follow: bool,
    idempotency_key: str | None,
    url: str | None,
    key: str | None,
    state: Path,
    **options: Any,
) -> None:
    """Hand in COMMAND; print the job's id, or with --follow what it prints."""
    if bool(command) == (spec is not None):
        raise click.UsageError("give either a COMMAND or --spec")
    whole: JobLike = list(command) if command else _document(spec)
    fields = _fields(options)
    with connected(url, key, state) as client:
        accepted = client.submit(whole, idempotency_key=idempotency_key, **fields)
        if not follow:
            click.echo(accepted.id)
            return
        status = _follow(client, accepted.id)
    sys.exit(status)


@job.command()
@click.argument("job_id", metavar="ID")
@where
def get(job_id: str, url: str | None, key: str | None, state: Path) -> None:
    """Print job ID as JSON."""
    with connected(url, key, state) as client:
        _print(client.get(job_id))


@job.command()
@click.argument("job_id", metavar="ID")
@click.option("--timeout", type=click.FloatRange(0), help="Seconds to wait at most.")
@where
def wait(job_id: str, timeout: float | None, url: str | None, key: str | None, state: Path) -> None:
    """Wait for the end of job ID and print it as JSON."""
    with connected(url, key, state) as client:
        _print(client.wait(job_id, timeout=timeout))


@job.command()
@click.argument("job_ids", metavar="ID...", nargs=-1, required=True)
@where
def cancel(job_ids: tuple[str, ...], url: str | None, key: str | None, state: Path) -> None:
    """Have jobs stopped; print the state of each."""
    with connected(url, key, state) as client:
        for job_id in job_ids:
            click.echo(f"{job_id} {client.cancel(job_id).state}")


@job.command()
@click.argument("job_ids", metavar="ID...", nargs=-1, required=True)
@where
def delete(job_ids: tuple[str, ...], url: str | None, key: str | None, state: Path) -> None:
    """Delete finished jobs, with their outputs and artifacts."""
    with connected(url, key, state) as client:
        for job_id in job_ids:
            client.delete(job_id)


def _moment(ctx: click.Context, param: click.Parameter, value: str | None) -> Any:
    try:
        return None if value is None else instant(value)
    except ValueError:
        raise click.BadParameter(f"{value!r} must be {FORM}") from None


@job.command("list")
@click.option(
    "--in", "states", multiple=True, type=click.Choice([each.value for each in JobState]),
    help="Only jobs in this state. May be repeated.",
)  # fmt: skip
@click.option("--label", "labels", multiple=True, metavar="NAME=VALUE", help="Only jobs with this label.")
@click.option("--after", callback=_moment, metavar="TIME", help="Only jobs created then or later.")
@click.option("--before", callback=_moment, metavar="TIME", help="Only jobs created before.")
@click.option("--limit", type=click.IntRange(1), default=50, show_default=True, help="How many at the most.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line.")
@where
def list_(
    states: tuple[str, ...],
    labels: tuple[str, ...],
    after: Any,
    before: Any,
    limit: int,
    as_json: bool,
    url: str | None,
    key: str | None,
    state: Path,
) -> None:
    """List the project's jobs, newest first."""
    wanted = _pairs("--label", labels)
    with connected(url, key, state) as client:
        found = client.list(state=states, labels=wanted, created_after=after, created_before=before)
        jobs = list(islice(found, limit))
    if as_json:
        for each in jobs:
            click.echo(each.model_dump_json())
        return
    rows = [
        (
            each.id,
            moment(each.created_at),
            each.state.value,
            "-" if each.outcome is None else _shown(each.outcome),
            " ".join(f"{name}={value}" for name, value in each.labels.items()) or "-",
        )
        for each in jobs
    ]
    print_table(("ID", "CREATED", "STATE", "OUTCOME", "LABELS"), rows)


@job.command()
@click.argument("job_id", metavar="ID")
@click.option("--after", metavar="EVENT", help="Go on after the event of this id.")
@click.option("--output", "raw", is_flag=True, help="Print what the job prints, and end as it ends.")
@where
def events(job_id: str, after: str | None, raw: bool, url: str | None, key: str | None, state: Path) -> None:
    """Follow job ID: print each event as one JSON object a line."""
    status = 0
    with connected(url, key, state) as client:
        following = client.events(job_id, after=after)
        if raw:
            status = _passed_on(following)
        else:
            for event in following:
                data = event.data.model_dump(mode="json")
                click.echo(json.dumps({"id": event.id, "event": event.name, "data": data}))
    sys.exit(status)


@job.command()
@click.argument("job_id", metavar="ID")
@click.argument("paths", metavar="[PATH]...", nargs=-1)
@click.option(
    "--to", type=click.Path(file_okay=False, path_type=Path), help="Directory to write the files into."
)
@where
def artifacts(
    job_id: str, paths: tuple[str, ...], to: Path | None, url: str | None, key: str | None, state: Path
) -> None:
    """List the artifacts of job ID; with --to write them, or those of PATH alone, into a directory."""
    with connected(url, key, state) as client:
        found = client.artifacts(job_id)
        if to is None:
            wanted = [each for each in found.artifacts if not paths or each.path in paths]
            rows = [(str(each.size), each.mode, each.sha256, _inert(each.path)) for each in wanted]
            print_table(("BYTES", "MODE", "SHA256", "PATH"), rows)
        else:
            for path in paths or [each.path for each in found.artifacts]:
                click.echo(_fetched(client, job_id, path, to))
    for missed in found.artifact_errors:
        click.echo(f"{NAME}: not kept: {_inert(missed.path)}: {missed.message}", err=True)


# ---- what is asked


def _document(spec: Any) -> dict[str, Any]:
    try:
        document = json.load(spec)
    except ValueError as error:
        raise click.ClickException(f"--spec: not JSON: {error}") from None
    if not isinstance(document, dict):
        raise click.ClickException("--spec: must be a JSON object")
    return document


def _fields(options: dict[str, Any]) -> JobFields:
    """What the options say, without those that say nothing."""
    said: dict[str, Any] = {
        name: options.pop(name) for name in ("policy", "image", "pool", "priority", "cwd")
    }
    said["files"] = [file(each) for each in options.pop("files")]
    said["env"] = environment(options.pop("env"))
    said["labels"] = _pairs("--label", options.pop("labels"))
    said["outputs"] = list(options.pop("outputs"))
    said["stdin"] = sys.stdin.buffer.read() if options.pop("stdin") else None
    said["limits"] = given(options)
    return cast(JobFields, {name: value for name, value in said.items() if value not in (None, [], {})})


def _pairs(option: str, texts: tuple[str, ...]) -> dict[str, str]:
    for text in texts:
        if "=" not in text:
            raise click.ClickException(f"{option} {text}: expected NAME=VALUE")
    return dict(text.split("=", 1) for text in texts)


# ---- what is shown


def _follow(client: Client, job_id: str) -> int:
    """Pass on what the job prints; its exit status. Ctrl-C has it cancelled."""
    try:
        return _passed_on(client.events(job_id))
    except KeyboardInterrupt:
        client.cancel(job_id)
        click.echo(f"{NAME}: {job_id} is cancelled", err=True)
        return INTERRUPTED


def _passed_on(events: Iterator[Event]) -> int:
    out = {Stream.STDOUT: sys.stdout.buffer, Stream.STDERR: sys.stderr.buffer}
    attempt = 0
    for event in events:
        match event.data:
            case OutputEvent() as output:
                out[output.stream].write(output.data)
                out[output.stream].flush()
            case GapEvent() as gap:
                click.echo(f"{NAME}: {gap.bytes} bytes of {gap.stream} were not kept", err=True)
            case StateEvent(state=JobState.RUNNING) as begun:
                if begun.attempt > max(attempt, 1):
                    click.echo(f"{NAME}: the service failed; the job begins anew", err=True)
                attempt = begun.attempt
            case FinishedEvent() as end:
                say(end.outcome, NAME)
                return status_of(end.outcome)
    raise ServiceError("the job had finished before the event to go on after")


def _fetched(client: Client, job_id: str, path: str, to: Path) -> str:
    """Write one artifact below a directory. A path that would lead out of it is refused."""
    try:
        plain = _PLAIN.validate_python(path)
    except ValidationError as error:
        raise ServiceError(f"{_inert(path)}: {error.errors()[0]['msg']}") from None
    target = to / plain
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        client.download(job_id, plain, target)
    except OSError as error:
        raise ServiceError(f"{_inert(str(target))}: {error.strerror}") from None
    return _inert(str(target))


_PLAIN: TypeAdapter[str] = TypeAdapter(RelativePath)


def _shown(outcome: Outcome) -> str:
    return outcome.kind.value if outcome.exit_code is None else f"{outcome.kind} {outcome.exit_code}"


def _inert(path: str) -> str:
    """A file name, which a job chose, as it cannot move a terminal's cursor."""
    return path if path.isprintable() else json.dumps(path)


def _print(model: BaseModel) -> None:
    click.echo(model.model_dump_json(indent=2))
