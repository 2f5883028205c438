"""One attempt: a job's steps, one after the other over one workspace, each in a sandbox of its own."""

import os
import time
from collections.abc import Iterable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jobs.job import Attempt, JobResult
from jobs.job_event import Stream
from jobs.metrics import metrics
from jobs.outcome import Isolation, Outcome, OutcomeKind, StepResult, Usage
from jobs.spec import JobSpec, Step
from jobs.store import Store
from jobs.workers import HostFacts
from policies.admission import Admission, AdmittedStep
from policies.policy import Policy
from worker import memfile
from worker.admission import Policies, admitted_again, demand_floor
from worker.artifacts import collect
from worker.images.chosen import Chosen, admitted_image
from worker.live import Broadcast, Live
from worker.outcome import outcome_of, output_passed
from worker.sandbox.client import Session
from worker.sandbox.errors import SandboxError
from worker.stop import Reason, Stop, StoppedError
from worker.supervise import Ended, supervise

ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/work",
    "LANG": "C.UTF-8",
}
"""What every program finds in its environment, unless its image or its step says otherwise."""
HOSTNAME = "sandbox"
LAUNCHER_PATIENCE = 10.0
"""Seconds to wait for a launcher that does not answer: one that is restarted."""


@dataclass(frozen=True)
class Workshop:
    """What attempts are made with: the store, the policies, this machine's launcher, and who watches."""

    store: Store
    policies: Policies
    launcher: Path
    image_host: bool = True
    live: Live = field(default_factory=Live)


@dataclass(frozen=True)
class Planned:
    """One step: what was asked, what was admitted, and where in the job it is."""

    asked: Step
    admitted: AdmittedStep
    index: int
    last: bool


def run_attempt(attempt: Attempt, workshop: Workshop, stop: Stop) -> JobResult:
    """Run the job's steps and say how it went.

    Raises:
        worker.admission.NotAdmittedError: this worker does not let the job in.
        SandboxError: a sandbox failed, which says nothing about the job.
        StoppedError: the attempt is to stop, for a reason of ours.
        redis.RedisError: artifacts could not be stored.
    """
    with _phase("admit"):
        policy, admission, steps = _admitted(attempt, workshop)
    results: list[StepResult] = []
    try:
        with _session(workshop.launcher, stop) as session, workshop.live.of(attempt) as broadcast:
            stand_on_floor(policy, session)
            image = admitted_image(session, admission, policy)
            for step in steps:
                plan = plan_of(step, image, policy)
                ended = _run(session, step, plan, attempt.job.spec, stop, broadcast)
                results.append(result_of(step, ended))
                if not results[-1].outcome.succeeded:
                    break
                if not step.last:
                    broadcast.end_step(step.index, results[-1])
            outcome = results[-1].outcome
            if outcome.kind is OutcomeKind.CANCELLED:
                return _stopped(stop, results, len(steps))
            with _phase("collect"):
                artifacts, errors = collect(session, attempt, policy, workshop.store)
            return JobResult(
                outcome=outcome, steps=tuple(results), artifacts=artifacts, artifact_errors=errors
            )
    except StoppedError as stopped:
        if stopped.reason.ours:
            raise
        return _stopped(stop, results, len(steps))


def _stopped(stop: Stop, results: list[StepResult], steps: int) -> JobResult:
    """The end of a job that was cancelled, or whose deadline came, while it ran or between two steps."""
    late = stop.reason is Reason.DEADLINE
    kind = OutcomeKind.DEADLINE_EXCEEDED if late else OutcomeKind.CANCELLED
    why = "Its deadline came" if late else "It was cancelled"
    if results and results[-1].outcome.kind is OutcomeKind.CANCELLED:
        outcome = results[-1].outcome.model_copy(update={"kind": kind, "message": f"{why} while it ran."})
        results = [*results[:-1], results[-1].model_copy(update={"outcome": outcome})]
    else:
        outcome = Outcome(kind=kind, message=f"{why} after {len(results)} of its {steps} steps.")
    return JobResult(outcome=outcome, steps=tuple(results))


def _admitted(attempt: Attempt, workshop: Workshop) -> tuple[Policy, Admission, list[Planned]]:
    """The policy and the limits in force: the worker asks again, and trusts nothing that it was sent."""
    policy, admission = admitted_again(attempt.job, workshop.policies, workshop.image_host)
    pairs = zip(attempt.job.spec.sequence, admission.steps, strict=True)
    count = len(admission.steps)
    steps = [Planned(*pair, index=n, last=n == count - 1) for n, pair in enumerate(pairs)]
    return policy, admission, steps


def stand_on_floor(policy: Policy, session: Session) -> None:
    """See that this host stands on the policy's isolation floor; the launcher knows its host."""
    if policy.isolation.asks_of_hosts:
        about = session.about(LAUNCHER_PATIENCE)
        demand_floor(policy, HostFacts(cgroup=about["cgroup"], kernel=about["kernel"]))


def _session(launcher: Path, stop: Stop) -> Session:
    """A connection to the launcher; waits a while for one that is being restarted."""
    deadline, pause = time.monotonic() + LAUNCHER_PATIENCE, 0.05
    while True:
        try:
            with _phase("session"):
                return Session(str(launcher))
        except SandboxError:
            if time.monotonic() > deadline:
                raise
        stop.guard()
        time.sleep(pause)
        pause = min(2 * pause, 1.0)


def _run(
    session: Session, step: Planned, plan: dict[str, Any], spec: JobSpec, stop: Stop, broadcast: Broadcast
) -> Ended:
    """Run one step; the first one brings the job's files into the workspace."""
    with ExitStack() as stack:

        def memory(name: str, parts: Iterable[bytes]) -> int:
            descriptor = memfile.sealed(name, parts)
            stack.callback(os.close, descriptor)
            return descriptor

        stdin = memory("stdin", [step.asked.stdin.data])
        files = memory("files", memfile.packed(spec.files)) if spec.files and step.index == 0 else None
        kill = step.asked.on_output_limit == "kill"

        def heard(stream: Stream, chunk: bytes) -> None:
            broadcast.feed(step.index, stream, chunk)

        begun = time.monotonic()
        ended = supervise(session, plan, (stdin, files), step.admitted.limits.output, kill, stop, heard)
        ran = ended.report["usage"]["wall_time"]
        metrics.observe("sandbox_phase_seconds", ran, phase="run")
        metrics.observe("sandbox_phase_seconds", time.monotonic() - begun - ran, phase="sandbox")
        return ended


def _phase(name: str) -> AbstractContextManager[None]:
    return metrics.timed("sandbox_phase_seconds", phase=name)


def plan_of(step: Planned, image: Chosen, policy: Policy) -> dict[str, Any]:
    """The step as the launcher takes it; the limit `output` is the worker's own to keep."""
    user, group = image.ids(policy)
    return {
        "image": image.digest,
        "argv": list(step.asked.argv),
        "env": ENVIRONMENT | image.env | policy.environment | step.asked.env,
        "cwd": image.cwd(step.asked),
        "user": user,
        "group": group,
        "hostname": HOSTNAME,
        "syscalls": str(policy.syscalls),
        "capabilities": [str(capability) for capability in policy.capabilities],
        "limits": step.admitted.limits.model_dump(exclude={"output"}),
        "keep": not step.last,
    }


def result_of(step: Planned, ended: Ended) -> StepResult:
    """How the step went, from the launcher's report and what was captured."""
    report, limits = ended.report, step.admitted.limits
    passed = output_passed(limits.output, ended.stdout, ended.stderr)
    kill = step.asked.on_output_limit == "kill"
    streams = {"stdout_bytes": ended.stdout.total, "stderr_bytes": ended.stderr.total}
    return StepResult(
        name=step.admitted.name,
        outcome=outcome_of(report, limits, passed if kill else ()),
        usage=Usage(**report["usage"], **streams),
        stdout=ended.stdout.output(),
        stderr=ended.stderr.output(),
        isolation=Isolation(**report["isolation"]),
    )
