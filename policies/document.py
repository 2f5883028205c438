"""Policy document: a policy as it is written down, which may leave to another what it does not say itself."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import BaseModel, Field, ValidationError

from policies.finding import Finding, PolicyError, sentence
from policies.limits import LAUNCHER_MAX, Limits, LimitsRequest
from policies.marked_yaml import Marked
from policies.model import Frozen
from policies.policy import (
    Capabilities,
    Description,
    DigestDemand,
    Environment,
    FilesBytes,
    FilesMax,
    Images,
    Isolation,
    MaxQueueTime,
    Name,
    Network,
    OutputsBytes,
    OutputsMax,
    Policy,
    Pools,
    PriorityMax,
    Retention,
    StepsMax,
    Syscalls,
    User,
    Version,
)
from policies.violation import violations

Model = TypeVar("Model", bound=BaseModel)


class PolicyDocument(Frozen):
    """One file. What it leaves out is that of the policy it `extends`; without one, it leaves out nothing."""

    name: Name = Field(description="The name by which a job asks for this policy; the name of its YAML file.")
    extends: Name | None = Field(
        default=None,
        description="The policy whose values hold where this one has none: field by field, and limit by limit,"
        " variable by variable inside `defaults`, `ceilings`, `isolation` and `environment`.",
    )
    description: Description | None = None
    version: Version | None = None
    defaults: LimitsRequest | None = Field(
        default=None, description="The limits of a step that does not ask for its own."
    )
    ceilings: LimitsRequest | None = Field(
        default=None, description="The most that a step may ask for, limit by limit."
    )
    images: Images | None = None
    image_digest: DigestDemand | None = None
    syscalls: Syscalls | None = None
    network: Network | None = None
    capabilities: Capabilities | None = None
    user: User | None = None
    environment: Environment | None = None
    pools: Pools | None = None
    priority_max: PriorityMax | None = None
    max_queue_time: MaxQueueTime | None = None
    isolation: Isolation | None = None
    steps_max: StepsMax | None = None
    files_max: FilesMax | None = None
    files_bytes: FilesBytes | None = None
    outputs_max: OutputsMax | None = None
    outputs_bytes: OutputsBytes | None = None
    retention: Retention | None = None

    @property
    def said(self) -> dict[str, Any]:
        """What it says itself of a policy, and nothing of what it leaves out."""
        return self.model_dump(exclude_unset=True, exclude_none=True, exclude={"extends"})


@dataclass(frozen=True)
class Written:
    """A document and the file that it stands in."""

    document: PolicyDocument
    marked: Marked


@dataclass(frozen=True)
class Resolved:
    """A policy with everything in it, and which policy's document says each of its values, by path."""

    policy: Policy
    origins: Mapping[str, str]
    chain: tuple[Written, ...]
    """Its document last, before it all that it extends."""

    def finding(self, path: str, message: str) -> Finding:
        """Return a finding about `path` in the document that says what stands there."""
        return _where(self.chain, self.origins, path, message)


def validated(marked: Marked, model: type[Model]) -> Model:
    """Return the document as a `model`.

    Raises:
        PolicyError: with every field that is unknown, missing or wrong, and its line.
    """
    try:
        return model.model_validate(marked.data)
    except ValidationError as error:
        found = violations(error, model)
        raise PolicyError([marked.finding(each.field, sentence(each)) for each in found]) from None


def resolve(chain: Sequence[Written]) -> Resolved:
    """Return the policy of the last document of `chain`, each of which extends the one before it.

    Raises:
        PolicyError: values are missing, or contradict each other; each with the file and line that says it.
    """
    said: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for written in chain:
        for field, value in written.document.said.items():
            inside = isinstance(value, dict)
            said[field] = {**said.get(field, {}), **value} if inside else value
            paths = [f"{field}.{name}" for name in value] if inside and value else [field]
            origins |= dict.fromkeys(paths, written.document.name)
    if findings := [*_missing(chain[-1], said), *_out_of_order(chain, said, origins)]:
        raise PolicyError(findings)
    try:
        return Resolved(Policy.model_validate(said), origins, tuple(chain))
    except ValidationError as error:
        raise PolicyError(
            [_where(chain, origins, each.field, each.message) for each in violations(error)]
        ) from None


def _missing(written: Written, said: Mapping[str, Any]) -> Iterator[Finding]:
    """Yield what a policy must say and neither this document nor one above it does."""
    parent = written.document.extends
    message = f"is said neither here nor by {parent} or above" if parent else "must be given"
    for field in Policy.model_fields:
        if field not in said:
            yield written.marked.finding(field, message)
        elif field in ("defaults", "ceilings"):
            for name in Limits.model_fields:
                if name not in said[field]:
                    yield written.marked.finding(f"{field}.{name}", message)


def _out_of_order(
    chain: Sequence[Written], said: Mapping[str, Any], origins: Mapping[str, str]
) -> Iterator[Finding]:
    """Yield every default over its ceiling, and every ceiling over what the launcher gives."""
    defaults, ceilings = said.get("defaults", {}), said.get("ceilings", {})
    for name, most in LAUNCHER_MAX:
        if name in ceilings and ceilings[name] > most:
            message = f"{ceilings[name]} is over {most}, the most that the launcher gives"
            yield _where(chain, origins, f"ceilings.{name}", message)
        if name in defaults and name in ceilings and defaults[name] > ceilings[name]:
            yield _over_ceiling(chain, origins, name, str(defaults[name]), str(ceilings[name]))


def _over_ceiling(
    chain: Sequence[Written], origins: Mapping[str, str], name: str, default: str, ceiling: str
) -> Finding:
    """Return a finding about a default and its ceiling, at the one that the lower of the documents says."""
    low, high = (_where(chain, origins, f"{field}.{name}", "") for field in ("defaults", "ceilings"))
    files = [each.marked.file for each in chain]
    if files.index(low.file) >= files.index(high.file):
        message = f"{default} is over its ceiling of {ceiling} ({high.file}:{high.line})"
        return low.model_copy(update={"message": message})
    message = f"{ceiling} is under its default of {default} ({low.file}:{low.line})"
    return high.model_copy(update={"message": message})


def _where(chain: Sequence[Written], origins: Mapping[str, str], path: str, message: str) -> Finding:
    """Return a finding about `path` in the document that says it."""
    name = origins.get(path, chain[-1].document.name)
    marked = next(each.marked for each in reversed(chain) if each.document.name == name)
    return marked.finding(path, message)
