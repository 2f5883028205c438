"""``stockade run``: one command in a sandbox of its own, at once, without queue, Redis or API.

It starts a launcher for itself alone, connected by a socket pair, and is that launcher's only
peer. Without ``--json`` the command's standard streams are ours; with it they are captured.

Exit status: the command's own; 128 plus the signal that ended it, which is 137 when a limit did; 125 when we
failed or refused; 126 when the command could not be started, 127 when there is no such command.
"""

import os
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import click
from pydantic import ValidationError

from jobs.spec import JobSpec
from policies.admission import AdmissionError, admit
from policies.finding import PolicyError
from policies.image_names import HOST_IMAGE
from policies.limits import Limits
from policies.loader import load
from policies.policy import Policy
from policies.scopes import PLATFORM, ScopeError, effective
from policies.violation import violations
from stockade import host
from stockade.children import Child
from stockade.job_options import environment, file, given, limit_options, refusal
from stockade.verdict import OURS, say, status_of
from worker import memfile
from worker.admission import NotAdmittedError
from worker.attempt import Planned, plan_of, result_of, stand_on_floor
from worker.images.chosen import choose
from worker.outcome import outcome_of
from worker.sandbox.client import Session
from worker.sandbox.errors import SandboxError
from worker.stop import Reason, Stop
from worker.supervise import supervise

_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True)
class Run:
    """One admitted command."""

    spec: JobSpec
    policy: Policy
    step: Planned

    @property
    def limits(self) -> Limits:
        """The limits in force."""
        return self.step.admitted.limits


@click.command(
    context_settings={"allow_interspersed_args": False},
    epilog='Sizes are written as "64MiB", times as "500ms" or "10s"; plain numbers are bytes and seconds.',
)
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@click.option("--policy", default="default", show_default=True, help="Policy: defaults and ceilings.")
@click.option(
    "--policies",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Directory of policies (YAML) beside the built-in ones.",
)
@click.option(
    "--image",
    default=HOST_IMAGE,
    show_default=True,
    help="Image to run in; one of `stockade image list`, whatever images the policy names.",
)
@limit_options(output="Only with --json.")
@click.option(
    "--file",
    "files",
    multiple=True,
    metavar="LOCAL[:PATH]",
    help="Copy a local file into the workspace, as PATH. May be repeated.",
)
@click.option("--env", multiple=True, metavar="NAME=VALUE", help="Environment variable. May be repeated.")
@click.option("--cwd", help="Directory to start in, below the workspace /work.")
@click.option(
    "--json", "as_json", is_flag=True, help="Capture the output; print it, outcome and usage as JSON."
)
@host.state_option("Directory to work in, on a file system with idmapped mounts.")
def run(
    command: tuple[str, ...],
    policy: str,
    policies: Path | None,
    image: str,
    files: tuple[str, ...],
    env: tuple[str, ...],
    cwd: str | None,
    as_json: bool,
    state: Path,
    **limits: str | None,
) -> None:
    """Run COMMAND in a fresh sandbox, now.

    The exit status is the command's; 128 + N when signal N ended it, 137 when a limit did, 125 when we
    failed or refused, 126 when COMMAND could not be started, 127 when there is no such command.
    """
    try:
        host.require_root("run")
        if limits["output"] is not None and not as_json:
            raise click.ClickException("--output needs --json: else the output is not ours to count")
        step: dict[str, Any] = {"argv": command, "env": environment(env), "limits": given(limits)}
        if cwd is not None:
            step["cwd"] = cwd
        asked = {"image": image, "policy": policy, "command": step, "files": [file(each) for each in files]}
        admitted = _admitted(asked, policies)
        with _session(state, image) as session:
            stand_on_floor(admitted.policy, session)
            status = (_run_captured if as_json else _run_straight)(session, admitted)
    except (click.ClickException, SandboxError, PolicyError, NotAdmittedError) as error:
        message = error.format_message() if isinstance(error, click.ClickException) else str(error)
        click.echo(f"stockade run: {message}", err=True)
        status = OURS
    sys.exit(status)


# ---- what is asked


def _admitted(asked: dict[str, Any], directory: Path | None) -> Run:
    """The command as its policy admits it; everything wrong with it at once as one message."""
    try:
        spec = JobSpec.model_validate(asked)
        found = load(directory)
        if spec.policy not in found.policies:
            known = ", ".join(found.policies)
            raise click.ClickException(f"there is no policy {spec.policy!r}, there are {known}")
        policy = effective(found.policies[spec.policy], [(PLATFORM, found.platform)])
        # Who may import an image may run it: `images` is about callers of the service.
        policy = policy.model_copy(update={"images": (spec.image,)})
        admission = admit(spec, policy)
    except ValidationError as error:
        raise click.ClickException(refusal(violations(error, JobSpec))) from None
    except (AdmissionError, ScopeError) as error:
        raise click.ClickException(refusal(error.violations)) from None
    step = Planned(spec.sequence[0], admission.steps[0], index=0, last=True)
    return Run(spec, policy, step)


# ---- how it is run


@contextmanager
def _session(state: Path, image: str) -> Iterator[Session]:
    """A launcher of our own and the session with it; both, and all their files, are gone afterwards."""
    with ExitStack() as stack:
        try:
            state.mkdir(parents=True, exist_ok=True)
            scratch = Path(tempfile.mkdtemp(prefix="run-", dir=state))
        except OSError as error:
            raise click.ClickException(f"--state {state}: {error.strerror}") from None
        stack.callback(shutil.rmtree, scratch)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        connection = ("--connection", str(theirs.fileno()), "--state", str(scratch / "launcher"))
        argv = [sys.executable, "-I", "-m", "worker.sandbox.launcher", *connection, "--prepared", "0"]
        if image != HOST_IMAGE:
            argv += ["--images", str(state.absolute() / host.IMAGES)]
        launcher = Child("launcher", argv, scratch / "log", pass_fds=(theirs.fileno(),))
        stack.callback(launcher.stop, 20)
        launcher.start()
        theirs.close()
        try:
            with Session(ours) as session:
                yield session
        except SandboxError as error:
            if error.step != "launcher":
                raise
            said = (scratch / "log").read_text(errors="replace").strip()
            raise click.ClickException(f"{error}\nthe launcher said:\n{said}") from None


@contextmanager
def _cancelled_by_signals(cancel: Callable[[], None]) -> Iterator[list[int]]:
    """Have signals that should end us end the command instead; the list has the first of them."""
    got: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if not got:
            got.append(number)
            cancel()

    old = {number: signal.signal(number, note) for number in _STOP_SIGNALS}
    try:
        yield got
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def _run_straight(session: Session, run: Run) -> int:
    """Run it on our own standard streams; say on standard error what stopped it, if something did."""
    image = choose(session, run.spec.image)
    with _files(run) as files, _cancelled_by_signals(lambda: session.kill("cancelled")) as got:
        session.run(plan_of(run.step, image, run.policy), 0, 1, 2, files)
        report = session.receive()
    if report["op"] == "failed":
        raise SandboxError(report["step"], report["errno"], report["subject"], report["hint"])
    outcome = outcome_of(report, run.limits)
    say(outcome, "stockade run")
    return 128 + got[0] if got else status_of(outcome)


def _run_captured(session: Session, run: Run) -> int:
    """Run it on no input, or on what is piped to us; print its result as one line of JSON."""
    stop = Stop()
    with _files(run) as files, _cancelled_by_signals(lambda: stop.ask(Reason.CANCELLED)) as got:
        plan = plan_of(run.step, choose(session, run.spec.image), run.policy)
        ended = supervise(session, plan, (0, files), run.limits.output, False, stop)
    result = result_of(run.step, ended)
    click.echo(result.model_dump_json())
    return 128 + got[0] if got else status_of(result.outcome)


@contextmanager
def _files(run: Run) -> Iterator[int | None]:
    if not run.spec.files:
        yield None
        return
    descriptor = memfile.sealed("files", memfile.packed(run.spec.files))
    try:
        yield descriptor
    finally:
        os.close(descriptor)
