"""One attempt: a job's steps, one after the other over one workspace, each in a sandbox of its own."""

import os
import time
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.job import Attempt, JobResult
from jobs.outcome import Isolation, Outcome, OutcomeKind, StepResult, Usage
from jobs.spec import JobSpec, Step
from jobs.store import Store
from policies.admission import AdmissionError, AdmittedStep, admit
from policies.policy import Policy
from worker import memfile
from worker.artifacts import collect
from worker.images.chosen import Chosen, choose
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


class NotAdmittedError(Exception):
    """The policy no longer lets the job in; trying again would not help."""


@dataclass(frozen=True)
class Workshop:
    """What attempts are made with: the store, the policies, and the launcher of this machine."""

    store: Store
    policies: Mapping[str, Policy]
    launcher: Path
    image_host: bool = True


@dataclass(frozen=True)
class Planned:
    """One step: what was asked, what was admitted, and where in the job it is."""

    asked: Step
    admitted: AdmittedStep
    first: bool
    last: bool


def run_attempt(attempt: Attempt, workshop: Workshop, stop: Stop) -> JobResult:
    """Run the job's steps and say how it went.

    Raises:
        NotAdmittedError: the policy of this worker does not allow the job.
        SandboxError: a sandbox failed, which says nothing about the job.
        StoppedError: the attempt is to stop, for a reason of ours.
        redis.RedisError: artifacts could not be stored.
    """
    policy, steps = _admitted(attempt, workshop)
    results: list[StepResult] = []
    try:
        with _session(workshop.launcher, stop) as session:
            image = choose(session, attempt.job.spec.image)
            for step in steps:
                ended = _run(session, step, image, policy, attempt.job.spec, stop)
                results.append(result_of(step, ended))
                if not results[-1].outcome.succeeded:
                    break
            outcome = results[-1].outcome
            if outcome.kind is OutcomeKind.CANCELLED:
                return JobResult(outcome=outcome, steps=tuple(results))
            artifacts, errors = collect(session, attempt, policy, workshop.store)
            return JobResult(
                outcome=outcome, steps=tuple(results), artifacts=artifacts, artifact_errors=errors
            )
    except StoppedError as stopped:
        if stopped.reason is not Reason.CANCELLED:
            raise
        message = f"It was cancelled after {len(results)} of its {len(steps)} steps."
        between = Outcome(kind=OutcomeKind.CANCELLED, message=message)
        return JobResult(outcome=between, steps=tuple(results))


def _admitted(attempt: Attempt, workshop: Workshop) -> tuple[Policy, list[Planned]]:
    """The policy and the limits in force: the worker asks again, and trusts nothing that it was sent."""
    name = attempt.job.spec.policy
    policy = workshop.policies.get(name)
    if policy is None:
        raise NotAdmittedError(f"This worker has no policy {name}.")
    try:
        admission = admit(attempt.job.spec, policy, host_image=workshop.image_host)
    except AdmissionError as error:
        raise NotAdmittedError(f"The policy {name} no longer allows this job: {error}.") from error
    pairs = zip(attempt.job.spec.sequence, admission.steps, strict=True)
    count = len(admission.steps)
    return policy, [Planned(*pair, first=n == 0, last=n == count - 1) for n, pair in enumerate(pairs)]


def _session(launcher: Path, stop: Stop) -> Session:
    """A connection to the launcher; waits a while for one that is being restarted."""
    deadline, pause = time.monotonic() + LAUNCHER_PATIENCE, 0.05
    while True:
        try:
            return Session(str(launcher))
        except SandboxError:
            if time.monotonic() > deadline:
                raise
        stop.guard()
        time.sleep(pause)
        pause = min(2 * pause, 1.0)


def _run(session: Session, step: Planned, image: Chosen, policy: Policy, spec: JobSpec, stop: Stop) -> Ended:
    """Run one step; the first one brings the job's files into the workspace."""
    with ExitStack() as stack:

        def memory(name: str, parts: Iterable[bytes]) -> int:
            descriptor = memfile.sealed(name, parts)
            stack.callback(os.close, descriptor)
            return descriptor

        stdin = memory("stdin", [step.asked.stdin.data])
        files = memory("files", memfile.packed(spec.files)) if spec.files and step.first else None
        plan = plan_of(step, image, policy)
        kill = step.asked.on_output_limit == "kill"
        return supervise(session, plan, (stdin, files), step.admitted.limits.output, kill, stop)


def plan_of(step: Planned, image: Chosen, policy: Policy) -> dict[str, Any]:
    """The step as the launcher takes it; the limit `output` is the worker's own to keep."""
    user, group = image.ids(policy)
    return {
        "image": image.digest,
        "argv": list(step.asked.argv),
        "env": ENVIRONMENT | image.env | step.asked.env,
        "cwd": image.cwd(step.asked),
        "user": user,
        "group": group,
        "hostname": HOSTNAME,
        "syscalls": policy.syscalls,
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
