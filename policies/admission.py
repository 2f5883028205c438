"""Admission: whether a policy lets a request in, and with what limits each of its steps will run.

`admit` takes any object shaped like `Request` (`jobs.spec.JobSpec` is one), because policies know nothing of
jobs. It finds everything that is wrong, not the first thing, and has no effects: the API asks it before a job
is stored and the worker asks it again before the job is run.
"""

from collections.abc import Iterator, Sequence
from typing import Protocol

from pydantic import Field

from policies.image_names import HOST_IMAGE, names_digest
from policies.isolation import OCI, Host
from policies.limits import Limits, LimitsRequest
from policies.model import Frozen
from policies.offered import Offered
from policies.policy import ImageDigest, Policy
from policies.priority import Priority
from policies.units import DURATION_MAX
from policies.violation import Violation, shown

TOLD_MAX = 100
"""Images that a refusal names."""
BLOCK = 4096
"""Bytes in which a file takes up the disk of a job: tmpfs stores pages."""


class StepRequest(Protocol):
    """What admission reads of one step."""

    @property
    def name(self) -> str | None: ...

    @property
    def limits(self) -> LimitsRequest: ...


class FileRequest(Protocol):
    """What admission reads of one inline file."""

    @property
    def path(self) -> str: ...

    @property
    def size(self) -> int: ...


class Request(Protocol):
    """What admission reads of a request."""

    @property
    def image(self) -> str: ...

    @property
    def command(self) -> StepRequest | None: ...

    @property
    def steps(self) -> Sequence[StepRequest] | None: ...

    @property
    def files(self) -> Sequence[FileRequest]: ...

    @property
    def pool(self) -> str | None: ...

    @property
    def priority(self) -> Priority | None: ...

    @property
    def max_queue_time(self) -> float | None: ...


class AdmittedStep(Frozen):
    """One step as it will run."""

    name: str = Field(description='The step\'s name; "step-1", "step-2", … where the request gave none.')
    limits: Limits = Field(description="The limits in force: what was asked, and the policy's defaults.")


class Admission(Frozen):
    """A policy's yes: everything that it decided about one request."""

    policy: str = Field(description="Name of the policy.")
    policy_digest: str = Field(
        description="Digest of the policy that was asked: the effective one, as the scopes above it leave it."
    )
    image: str = Field(description="The image that the job will run in, as the request names it.")
    steps: tuple[AdmittedStep, ...] = Field(description="The steps in order.")
    retention: float = Field(description="Seconds that the job is kept after its end.")
    # The defaults are for jobs that were stored before these fields were there.
    pool: str = Field(default="default", description="The pool of workers that it runs on.")
    priority: Priority = Field(
        default=Priority.NORMAL, description="Which of the project's own jobs go first."
    )
    image_digest: str | None = Field(
        default=None,
        description="The digest of that image when the job was admitted: the one that it runs in, whatever the name"
        " means later. Null for `host`.",
    )
    max_queue_time: float = Field(default=DURATION_MAX, description="Seconds that it may wait for its start.")

    @property
    def wall_time(self) -> float:
        """Seconds that all steps together may take."""
        return sum(step.limits.wall_time for step in self.steps)


class AdmissionError(Exception):
    """A policy's no.

    Attributes:
        violations: everything that the policy does not allow, in the order of the request.
    """

    def __init__(self, violations: Sequence[Violation]) -> None:
        super().__init__("; ".join(f"{found.field}: {found.message}" for found in violations))
        self.violations = tuple(violations)


def admit(
    request: Request,
    policy: Policy,
    *,
    host_image: bool = True,
    hosts: Sequence[Host] = (),
    images: Offered | None = None,
) -> Admission:
    """Return how `request` will run under `policy`.

    Args:
        request: what is asked, of valid shape.
        policy: the policy that the request names, as the scopes above it leave it.
        host_image: whether this installation offers the image `host` at all.
        hosts: the machines on which it could run, as far as they are known; with none it is left to the
            worker whether its host stands on the policy's isolation floor.
        images: what there is on the machines on which it could run; None: not asked, and no digest is found.

    Raises:
        AdmissionError: with every violation at once.
    """
    found = [
        *_image(request, policy, host_image, images),
        *_queueing(request, policy),
        *_hosts(policy, hosts),
        *_counts(request, policy),
    ]
    digest = None
    if images is not None and request.image != HOST_IMAGE:
        digest = images.digest_of(request.image)
    steps = []
    for index, (field, step) in enumerate(numbered(request)):
        found.extend(_over_ceiling(field, step.limits, policy.ceilings))
        name = step.name or default_name(index)
        admitted = AdmittedStep.model_construct(name=name, limits=step.limits.over(policy.defaults))
        found.extend(_files_on_disk(field, request.files, admitted.limits))
        steps.append(admitted)
    if found:
        raise AdmissionError(found)
    return Admission.model_construct(
        policy=policy.name,
        policy_digest=policy.digest,
        image=request.image,
        image_digest=digest,
        steps=tuple(steps),
        retention=policy.retention,
        pool=pool_of(request, policy),
        priority=request.priority or default_priority(policy),
        max_queue_time=policy.max_queue_time if request.max_queue_time is None else request.max_queue_time,
    )


def pool_of(request: Request, policy: Policy) -> str:
    """Return the pool that a request gets: the one that it names, else the policy's first."""
    return request.pool or policy.pools[0]


def default_priority(policy: Policy) -> Priority:
    """Return the priority of a request that names none: normal, or what the policy has below that."""
    return max(Priority.NORMAL, policy.priority_max, key=lambda priority: priority.rank)


def default_name(index: int) -> str:
    """Return the name of the step at `index` (from 0) when the request gives it none."""
    return f"step-{index + 1}"


def numbered(request: Request) -> Iterator[tuple[str, StepRequest]]:
    """Yield the steps of a request, each with its path in it."""
    if request.command is not None:
        yield "command", request.command
    for index, step in enumerate(request.steps or ()):
        yield f"steps[{index}]", step


def _image(request: Request, policy: Policy, host_image: bool, images: Offered | None) -> Iterator[Violation]:
    image = request.image
    if image == HOST_IMAGE and policy.isolation.image == OCI:
        message = f"the policy {policy.name} demands an image of its own, not {HOST_IMAGE}"
        yield Violation(field="image", got=image, allowed=[*policy.images], message=message)
    elif not policy.allows_image(image):
        allowed = list(policy.images)
        message = f"the policy {policy.name} does not allow this image"
        yield Violation(field="image", got=shown(image), allowed=[*allowed], message=message)
    elif image == HOST_IMAGE and not host_image:
        message = "the image host is switched off on this installation"
        yield Violation(field="image", got=image, allowed=None, message=message)
    elif image != HOST_IMAGE:
        yield from _digest(request, policy, host_image, images)


def _digest(
    request: Request, policy: Policy, host_image: bool, images: Offered | None
) -> Iterator[Violation]:
    """Yield what is wrong with an image that the policy allows: then alone it is told what there is."""
    image = request.image
    digest = None if images is None else images.digest_of(image)
    if policy.image_digest is ImageDigest.REQUIRED and not names_digest(image):
        message = f"the policy {policy.name} demands the digest of the image"
        allowed = f"{image}@{digest}" if digest else f"{image}@sha256:…"
        yield Violation(field="image", got=shown(image), allowed=shown(allowed), message=message)
    elif images is not None and digest is None:
        there = [name for name, _ in images.under(policy)]
        if host_image and policy.allows_image(HOST_IMAGE):
            there.append(HOST_IMAGE)
        message = images.trouble(image, pool_of(request, policy))
        yield Violation(field="image", got=shown(image), allowed=[*there[:TOLD_MAX]], message=message)


def _queueing(request: Request, policy: Policy) -> Iterator[Violation]:
    if request.pool is not None and request.pool not in policy.pools:
        message = f"the policy {policy.name} does not allow this pool"
        yield Violation(field="pool", got=request.pool, allowed=[*policy.pools], message=message)
    if request.priority is not None and request.priority.rank < policy.priority_max.rank:
        message = f"the priority {request.priority} is over the policy's highest, {policy.priority_max}"
        allowed = [str(each) for each in Priority if each.rank >= policy.priority_max.rank]
        yield Violation(field="priority", got=str(request.priority), allowed=[*allowed], message=message)
    if request.max_queue_time is not None and request.max_queue_time > policy.max_queue_time:
        most = policy.max_queue_time
        message = f"max_queue_time of {request.max_queue_time} is over the policy's ceiling of {most}"
        yield Violation(field="max_queue_time", got=request.max_queue_time, allowed=most, message=message)


def _hosts(policy: Policy, hosts: Sequence[Host]) -> Iterator[Violation]:
    """Yield what the best of the hosts does not give, unless one of them gives all."""
    falling_short = [list(policy.isolation.shortfalls(host)) for host in hosts]
    if falling_short and all(falling_short):
        for field, got, needed in min(falling_short, key=len):
            message = f"the policy {policy.name} needs {field} of {needed}; no worker of the pool has a host with it"
            yield Violation(field=field, got=got, allowed=needed, message=message)


def _counts(request: Request, policy: Policy) -> Iterator[Violation]:
    if request.steps is not None and len(request.steps) > policy.steps_max:
        yield _too_many("steps", len(request.steps), policy.steps_max, "steps")
    if len(request.files) > policy.files_max:
        yield _too_many("files", len(request.files), policy.files_max, "files")
    total = sum(file.size for file in request.files)
    if total > policy.files_bytes:
        yield _too_many("files", total, policy.files_bytes, "bytes in all files together")


def _too_many(field: str, got: int, allowed: int, noun: str) -> Violation:
    return Violation(
        field=field, got=got, allowed=allowed, message=f"{got} {noun}; the policy allows {allowed}"
    )


def _files_on_disk(field: str, files: Sequence[FileRequest], limits: Limits) -> Iterator[Violation]:
    """Yield what keeps the workspace from holding the request's files: else setting up would run into it."""
    if not files:
        return
    size = sum(-(-file.size // BLOCK) * BLOCK for file in files)
    if size > limits.disk:
        message = f"the files of the request need {size} bytes of disk"
        yield Violation(
            field=f"{field}.limits.disk", got=limits.disk, allowed=f"at least {size}", message=message
        )
    inodes = len(files) + len(_directories(files))
    if inodes > limits.disk_inodes:
        message = f"the files of the request and their directories need {inodes} inodes"
        where = f"{field}.limits.disk_inodes"
        yield Violation(field=where, got=limits.disk_inodes, allowed=f"at least {inodes}", message=message)


def _directories(files: Sequence[FileRequest]) -> set[str]:
    """Return every directory that has to be made for `files`."""
    found: set[str] = set()
    for file in files:
        parent = file.path.rpartition("/")[0]
        while parent and parent not in found:
            found.add(parent)
            parent = parent.rpartition("/")[0]
    return found


def _over_ceiling(field: str, asked: LimitsRequest, ceilings: Limits) -> Iterator[Violation]:
    for name, got in asked:
        most = getattr(ceilings, name)
        if got is not None and got > most:
            message = f"{name} of {got} is over the policy's ceiling of {most}"
            yield Violation(field=f"{field}.limits.{name}", got=got, allowed=most, message=message)
