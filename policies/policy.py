"""Policy: what jobs under its name may ask for, and what they get when they do not ask.

A policy is data, named by people and versioned by the digest of its content: two policies with one digest
allow exactly the same. `policies.loader` reads them from YAML.
"""

import hashlib
import json
from enum import StrEnum
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Annotated, Self

from annotated_types import Ge, Gt, Le
from pydantic import AfterValidator, Field, Strict, StringConstraints, model_validator
from pydantic_core import PydanticCustomError

from policies.limits import COUNT_MAX, LAUNCHER_MAX, Limits
from policies.model import Frozen
from policies.units import AS_DURATION, AS_SIZE, DURATION_MAX, MIB

STEPS_MAX = 64
"""The most steps that any policy may allow."""
FILES_MAX = 10_000
"""The most inline files that any policy may allow."""
FILES_BYTES_MAX = 64 * MIB
"""The most bytes of inline files that any policy may allow."""
ID_MAX = 65_535
"""The largest uid of a job: its user namespace maps 65,536."""

NAME_PATTERN = r"^[a-z0-9][a-z0-9._-]{0,63}$"

Name = Annotated[str, StringConstraints(pattern=NAME_PATTERN)]
"""A name of a policy or a syscall profile: lower case, digits, `.`, `_`, `-`; up to 64."""


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


def _sorted(capabilities: tuple[Capability, ...]) -> tuple[Capability, ...]:
    return tuple(sorted(set(capabilities)))


class Policy(Frozen):
    """What jobs may ask for (`ceilings`, `images`, counts) and what they get unasked (`defaults`)."""

    name: Name = Field(description="The name by which a job asks for this policy; the name of its YAML file.")
    description: Annotated[str, StringConstraints(max_length=500)] = Field(
        description="One sentence for people: what this policy is meant for."
    )
    version: Annotated[str, StringConstraints(min_length=1, max_length=64)] = Field(
        description="The author's own label of this content; what counts is the digest."
    )
    defaults: Limits = Field(description="The limits of a step that does not ask for its own.")
    ceilings: Limits = Field(description="The most that a step may ask for, limit by limit.")
    images: tuple[Annotated[str, StringConstraints(min_length=1, max_length=255)], ...] = Field(
        min_length=1,
        description="The images that a job may name; `*` and `?` match as in file names.",
        json_schema_extra={"x-kernel": "lower layers of the root overlay"},
    )
    syscalls: Name = Field(
        description="The system call profile: which calls pass, and with what errno the others fail.",
        json_schema_extra={"x-kernel": "seccomp(SECCOMP_SET_MODE_FILTER)"},
    )
    capabilities: Annotated[tuple[Capability, ...], AfterValidator(_sorted)] = Field(
        description="The capabilities that root of the job may have, in its own user namespace only.",
        json_schema_extra={"x-kernel": "CapBnd (PR_CAPBSET_DROP of all others)"},
    )
    user: Annotated[int, Strict(), Ge(0), Le(ID_MAX)] = Field(
        description="The uid and gid that the job's program starts with, in the job's user namespace: 0 is a"
        " root without power outside. On the host they are some unused high number.",
        json_schema_extra={"x-kernel": "setresuid, /proc/PID/uid_map"},
    )
    steps_max: Annotated[int, Strict(), Ge(1), Le(STEPS_MAX)] = Field(
        description="The most steps of one job."
    )
    files_max: Annotated[int, Strict(), Ge(0), Le(FILES_MAX)] = Field(
        description="The most files that a request may carry."
    )
    files_bytes: Annotated[int, Strict(), Ge(0), Le(FILES_BYTES_MAX), AS_SIZE] = Field(
        description="The most bytes of all files that a request carries, decoded.",
        json_schema_extra={"x-unit": "bytes"},
    )
    outputs_max: Annotated[int, Strict(), Ge(0), Le(COUNT_MAX)] = Field(
        description="The most files that are collected when the job ends."
    )
    outputs_bytes: Annotated[int, Strict(), Ge(0), Le(COUNT_MAX), AS_SIZE] = Field(
        description="The most bytes of all files that are collected.", json_schema_extra={"x-unit": "bytes"}
    )
    retention: Annotated[float, Strict(), Gt(0), Le(DURATION_MAX), AS_DURATION] = Field(
        description="How long a finished job, its output and its artifacts can be fetched.",
        json_schema_extra={"x-unit": "seconds"},
    )

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        """Hold every default to its ceiling, and every ceiling to what the launcher gives at the most."""
        for lower, upper, of_lower, of_upper in (
            (self.defaults, self.ceilings, "defaults", "ceilings"),
            (self.ceilings, LAUNCHER_MAX, "ceilings", "what the launcher gives"),
        ):
            over = [name for name, most in upper if getattr(lower, name) > most]
            if over:
                message = f"{', '.join(over)}: {of_lower} over {of_upper}"
                context = {"message": message, "allowed": f"{of_lower} up to {of_upper}", "field": of_lower}
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
        """Say whether a job may name `image`."""
        return any(fnmatchcase(image, pattern) for pattern in self.images)
