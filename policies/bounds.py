"""Bounds: what a scope above the policies (the platform, an organisation, a project) lets through.

Everything in it is optional, and what is left out bounds nothing. Bounds only ever take away: what they
name is the most (or, for `isolation`, the least) that is left of a policy under them.
"""

from typing import Annotated

from pydantic import AfterValidator, Field

from policies.images import PATTERNS_MAX, Pattern, matches, simplest
from policies.isolation import IsolationFloor, NetworkMode, SyscallProfile
from policies.limits import LimitsRequest
from policies.model import Frozen
from policies.policy import (
    Capabilities,
    DigestDemand,
    FilesBytes,
    FilesMax,
    Images,
    MaxQueueTime,
    OutputsBytes,
    OutputsMax,
    Pools,
    Retention,
    StepsMax,
)
from policies.priority import Priority


class Bounds(Frozen):
    """The most that a scope lets through, field by field; null, or left out, is no bound."""

    policies: (
        Annotated[tuple[Pattern, ...], Field(max_length=PATTERNS_MAX), AfterValidator(simplest)] | None
    ) = Field(default=None, description="The policies that may be named; `*` and `?` match as in file names.")
    ceilings: LimitsRequest | None = Field(
        default=None,
        description="The most that a ceiling of a policy may be, limit by limit; defaults above are lowered.",
    )
    images: Images | None = Field(
        default=None, description="The images that may be named, of those that the policy allows."
    )
    image_digest: DigestDemand | None = Field(
        default=None, description="`required`: a job must name its image by digest, whatever the policy says."
    )
    syscalls: SyscallProfile | None = Field(
        default=None, description="The most lenient system call profile; a stricter one of the policy stays."
    )
    network: NetworkMode | None = Field(default=None, description="The most of the network that may be had.")
    capabilities: Capabilities | None = Field(
        default=None, description="The capabilities that may be granted, of those that the policy grants."
    )
    pools: Pools | None = Field(
        default=None, description="The pools that may be used, of those that the policy names."
    )
    priority_max: Priority | None = Field(default=None, description="The highest priority.")
    max_queue_time: MaxQueueTime | None = Field(
        default=None, description="The longest time that a job may wait for its start."
    )
    isolation: IsolationFloor | None = Field(
        default=None, description="The least isolation; what the policy asks for beyond it stays."
    )
    steps_max: StepsMax | None = Field(default=None, description="The most steps of one job.")
    files_max: FilesMax | None = Field(default=None, description="The most files of a request.")
    files_bytes: FilesBytes | None = Field(
        default=None, description="The most bytes of all files of a request, decoded."
    )
    outputs_max: OutputsMax | None = Field(default=None, description="The most files that are collected.")
    outputs_bytes: OutputsBytes | None = Field(
        default=None, description="The most bytes of all files that are collected."
    )
    retention: Retention | None = Field(
        default=None, description="The longest time that a finished job is kept."
    )

    def lets_through(self, policy: str) -> bool:
        """Say whether the policy of this name may be used here."""
        return self.policies is None or any(matches(pattern, policy) for pattern in self.policies)


NO_BOUNDS = Bounds()
