"""Policy: what jobs under its name may ask for, and what they get when they do not ask.

A policy is data, named by people and versioned by the digest of its content: two policies with one digest
allow exactly the same. `policies.document` is how it is written down, `policies.loader` reads it, and
`policies.scopes` narrows it to what the platform and a tenant let through.
"""

import hashlib
import json
from enum import StrEnum
from functools import cached_property
from typing import Annotated, Self

from annotated_types import Ge, Gt, Le
from pydantic import AfterValidator, Field, Strict, StringConstraints, model_validator
from pydantic_core import PydanticCustomError

from policies.image_names import HOST_IMAGE, without_digest
from policies.images import PATTERNS_MAX, Pattern, matches, simplest
from policies.isolation import OCI, Graded, IsolationFloor, NetworkMode, SyscallProfile
from policies.limits import COUNT_MAX, LAUNCHER_MAX, Limits
from policies.model import Frozen
from policies.priority import Priority
from policies.units import AS_DURATION, AS_SIZE, DURATION_MAX, KIB, MIB

STEPS_MAX = 64
"""The most steps that any policy may allow."""
FILES_MAX = 10_000
"""The most inline files that any policy may allow."""
FILES_BYTES_MAX = 64 * MIB
"""The most bytes of inline files that any policy may allow."""
ENVIRONMENT_MAX = 64
"""The most variables that a policy may set."""
ENVIRONMENT_BYTES = 16 * KIB
"""The most bytes of all variables that a policy sets, as execve(2) counts them."""
POOLS_MAX = 32
"""The most pools that a policy may name."""
ID_MAX = 65_535
"""The largest uid of a job: its user namespace maps 65,536."""

NAME_PATTERN = r"^[a-z0-9][a-z0-9._-]{0,63}$"

Name = Annotated[str, StringConstraints(pattern=NAME_PATTERN)]
"""A name of a policy or a pool: lower case, digits, `.`, `_`, `-`; up to 64."""


class Capability(StrEnum):
    """The capabilities that a policy may grant; they hold in the job's own user namespace only."""

    CHOWN = "CHOWN"
    DAC_OVERRIDE = "DAC_OVERRIDE"
    FOWNER = "FOWNER"
    FSETID = "FSETID"
    KILL = "KILL"
    NET_BIND_SERVICE = "NET_BIND_SERVICE"
    SETFCAP = "SETFCAP"
    SETGID = "SETGID"
    SETUID = "SETUID"
    SYS_PTRACE = "SYS_PTRACE"


class ImageDigest(Graded):
    """Whether a request must say the digest of its image."""

    REQUIRED = "required"
    OPTIONAL = "optional"


def _sorted(capabilities: tuple[Capability, ...]) -> tuple[Capability, ...]:
    return tuple(sorted(set(capabilities)))


def _once(pools: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(pools))


def _fits(environment: dict[str, str]) -> dict[str, str]:
    size = sum(len(f"{name}={value}".encode()) + 1 for name, value in environment.items())
    if size > ENVIRONMENT_BYTES:
        allowed = f"at most {ENVIRONMENT_BYTES} bytes"
        message = f"the variables take {size} bytes together; {allowed} are allowed"
        raise PydanticCustomError("too_big", "{message}", {"message": message, "allowed": allowed})
    return dict(sorted(environment.items()))


Description = Annotated[
    str,
    StringConstraints(max_length=500),
    Field(description="One sentence for people: what this policy is meant for."),
]
Version = Annotated[
    str,
    StringConstraints(min_length=1, max_length=64),
    Field(description="The author's own label of this content; what counts is the digest."),
]
Images = Annotated[
    tuple[Pattern, ...],
    Field(
        min_length=1,
        max_length=PATTERNS_MAX,
        description="The images that a job may name: by exact name, by digest (`name@sha256:…`) or by"
        " pattern, in which `*` and `?` match as in file names.",
        json_schema_extra={"x-kernel": "lower layers of the root overlay"},
    ),
    AfterValidator(simplest),
]
DigestDemand = Annotated[
    ImageDigest,
    Field(
        description="`required`: a job must name its image by digest (`name@sha256:…`), so that it says itself"
        " what it runs in; `optional`: a name will do, and means what the workers have under it when the job is"
        " admitted. `host` has no digest, and none is asked of it; `isolation.image` can refuse it.",
    ),
]
Syscalls = Annotated[
    SyscallProfile,
    Field(
        description="The system call profile: which calls pass, and with what errno the others fail. From"
        " strictest: `strict`, `default`, `debug`.",
        json_schema_extra={"x-kernel": "seccomp(SECCOMP_SET_MODE_FILTER)"},
    ),
]
Network = Annotated[
    NetworkMode,
    Field(
        description="`none`, the only mode that there is: nothing but the job's own loopback.",
        json_schema_extra={"x-kernel": "CLONE_NEWNET"},
    ),
]
Capabilities = Annotated[
    tuple[Capability, ...],
    Field(
        description="The capabilities that root of the job may have, in its own user namespace only.",
        json_schema_extra={"x-kernel": "CapBnd (PR_CAPBSET_DROP of all others)"},
    ),
    AfterValidator(_sorted),
]
User = Annotated[
    int,
    Strict(),
    Ge(0),
    Le(ID_MAX),
    Field(
        description="The uid and gid that the job's program starts with, in the job's user namespace: 0 is a"
        " root without power outside. On the host they are some unused high number.",
        json_schema_extra={"x-kernel": "setresuid, /proc/PID/uid_map"},
    ),
]
Environment = Annotated[
    dict[
        Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,127}$")],
        Annotated[str, StringConstraints(max_length=4096, pattern=r"^[^\u0000]*$")],
    ],
    Field(
        max_length=ENVIRONMENT_MAX,
        description="Variables that every step gets: over the built-in PATH, HOME and LANG, under the"
        " request's own.",
        json_schema_extra={"x-kernel": "execve(2) envp"},
    ),
    AfterValidator(_fits),
]
Pools = Annotated[
    tuple[Name, ...],
    Field(
        min_length=1,
        max_length=POOLS_MAX,
        description="The pools of workers that a job may name; the first is where it runs unasked.",
    ),
    AfterValidator(_once),
]
PriorityMax = Annotated[
    Priority,
    Field(description="The highest priority that a job may ask for: `high`, `normal` or `low`."),
]
MaxQueueTime = Annotated[
    float,
    Strict(),
    Gt(0),
    Le(DURATION_MAX),
    AS_DURATION,
    Field(
        description="How long a job may wait for its start, unasked and at the most; after that it ends with"
        " `queue_time_exceeded`.",
        json_schema_extra={"x-unit": "seconds"},
    ),
]
Isolation = Annotated[
    IsolationFloor,
    Field(description="The least isolation: a job is refused where the host cannot give it."),
]
StepsMax = Annotated[int, Strict(), Ge(1), Le(STEPS_MAX), Field(description="The most steps of one job.")]
FilesMax = Annotated[
    int, Strict(), Ge(0), Le(FILES_MAX), Field(description="The most files that a request may carry.")
]
FilesBytes = Annotated[
    int,
    Strict(),
    Ge(0),
    Le(FILES_BYTES_MAX),
    AS_SIZE,
    Field(
        description="The most bytes of all files that a request carries, decoded.",
        json_schema_extra={"x-unit": "bytes"},
    ),
]
OutputsMax = Annotated[
    int,
    Strict(),
    Ge(0),
    Le(COUNT_MAX),
    Field(description="The most files that are collected when the job ends."),
]
OutputsBytes = Annotated[
    int,
    Strict(),
    Ge(0),
    Le(COUNT_MAX),
    AS_SIZE,
    Field(
        description="The most bytes of all files that are collected.",
        json_schema_extra={"x-unit": "bytes"},
    ),
]
Retention = Annotated[
    float,
    Strict(),
    Gt(0),
    Le(DURATION_MAX),
    AS_DURATION,
    Field(
        description="How long a finished job, its output and its artifacts can be fetched.",
        json_schema_extra={"x-unit": "seconds"},
    ),
]


class Policy(Frozen):
    """What jobs may ask for (`ceilings`, `images`, counts) and what they get unasked (`defaults`)."""

    name: Name = Field(description="The name by which a job asks for this policy; the name of its YAML file.")
    description: Description
    version: Version
    defaults: Limits = Field(description="The limits of a step that does not ask for its own.")
    ceilings: Limits = Field(description="The most that a step may ask for, limit by limit.")
    images: Images
    image_digest: DigestDemand
    syscalls: Syscalls
    network: Network
    capabilities: Capabilities
    user: User
    environment: Environment
    pools: Pools
    priority_max: PriorityMax
    max_queue_time: MaxQueueTime
    isolation: Isolation
    steps_max: StepsMax
    files_max: FilesMax
    files_bytes: FilesBytes
    outputs_max: OutputsMax
    outputs_bytes: OutputsBytes
    retention: Retention

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        """Hold every default to its ceiling, every ceiling to the launcher's, and the images to the floor."""
        for lower, upper, of_lower, of_upper in (
            (self.defaults, self.ceilings, "defaults", "ceilings"),
            (self.ceilings, LAUNCHER_MAX, "ceilings", "what the launcher gives"),
        ):
            over = [name for name, most in upper if getattr(lower, name) > most]
            if over:
                message = f"{', '.join(over)}: {of_lower} over {of_upper}"
                context = {"message": message, "allowed": f"{of_lower} up to {of_upper}", "field": of_lower}
                raise PydanticCustomError("out_of_order", "{message}", context)
        if self.isolation.image == OCI and set(self.images) == {HOST_IMAGE}:
            message = f"the isolation floor refuses the only image, {HOST_IMAGE}"
            context = {"message": message, "allowed": "an OCI image", "field": "images"}
            raise PydanticCustomError("out_of_order", "{message}", context)
        return self

    @cached_property
    def digest(self) -> str:
        """`sha256:` and the SHA-256 of the content as canonical JSON (keys sorted, no white space)."""
        content = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return "sha256:" + hashlib.sha256(content.encode()).hexdigest()

    def __copy__(self) -> Self:
        """Copy the content only: a digest that was computed is not that of a changed copy."""
        copied = super().__copy__()
        copied.__dict__.pop("digest", None)
        return copied

    def allows_image(self, image: str) -> bool:
        """Say whether a job may name `image`. A digest beside a tag says no more than which of its images is meant."""
        if image == HOST_IMAGE and self.isolation.image == OCI:
            return False
        ways = [way for way in (image, without_digest(image)) if way]
        return any(matches(pattern, way) for pattern in self.images for way in ways)
