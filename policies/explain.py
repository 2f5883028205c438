"""Explain: for each value that would be in force for a request, which scope and rule set it; and all that is wrong.

The answer is made of the same parts as admission: it says *admitted* exactly when `policies.admission.admit`
would admit, with the same values and the same violations.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from pydantic import Field, JsonValue

from policies.admission import (
    AdmissionError,
    Request,
    admit,
    default_name,
    default_priority,
    numbered,
    pool_of,
)
from policies.document import Resolved
from policies.isolation import Host
from policies.limits import Limits
from policies.model import Frozen
from policies.offered import Offered
from policies.policy import Policy
from policies.scopes import Effective, Rule, ScopeError, Scopes, Source, fold
from policies.violation import Violation, shown

_REQUEST = Source("request", Rule.REQUEST)
_NOT_VALUES = frozenset({"name", "description", "version", "defaults", "ceilings", "isolation"})


class ExplainedValue(Frozen):
    """One value and where it comes from."""

    field: str = Field(description="What it is: a field of the request or of the policy.")
    value: JsonValue = Field(description="The value in force; sizes in bytes, times in seconds.")
    scope: str = Field(
        description="Who set it: `request`, `policy NAME`, `project NAME`, `organisation NAME`, `platform`."
    )
    rule: Rule = Field(
        description="How: `request` (asked for), `set` (stands in the policy), `inherited` (stands in a policy"
        " that it extends) or `clamped` (the scope above narrowed it)."
    )


class ExplainedLimit(ExplainedValue):
    """One limit of one step, and its ceiling."""

    ceiling: JsonValue = Field(description="The most that the request could ask for.")
    ceiling_scope: str = Field(description="Who set the ceiling.")
    ceiling_rule: Rule = Field(description="How the ceiling was set.")


class ExplainedStep(Frozen):
    """The limits of one step."""

    field: str = Field(description='The step\'s path in the request: "command" or "steps[0]".')
    name: str = Field(description="The step's name.")
    limits: tuple[ExplainedLimit, ...] = Field(description="Every limit.")


class Explanation(Frozen):
    """What would become of a request, and why."""

    admitted: bool = Field(description="Whether the job would be accepted.")
    policy: str = Field(description="The policy that the request names.")
    policy_digest: str | None = Field(
        description="Digest of the effective policy; null when there is none under these scopes."
    )
    scopes: tuple[str, ...] = Field(description="The scopes above the policy, highest first.")
    values: tuple[ExplainedValue, ...] = Field(description="What holds for the whole job.")
    steps: tuple[ExplainedStep, ...] = Field(description="The steps in order.")
    violations: tuple[Violation, ...] = Field(
        description="Everything that is not allowed; empty when admitted."
    )
    notes: tuple[str, ...] = Field(
        default=(), description="What else is good to know, as sentences: nothing that refuses the job."
    )


def explain(
    request: Request,
    resolved: Resolved,
    scopes: Scopes,
    *,
    host_image: bool = True,
    hosts: Sequence[Host] = (),
    images: Offered | None = None,
) -> Explanation:
    """Return what would become of `request` under a policy and the scopes above it; see `admit`."""
    name, above = resolved.policy.name, tuple(scope for scope, _ in scopes)
    try:
        found = fold(resolved.policy, scopes)
    except ScopeError as error:
        return refusal(name, error.violations, above)
    violations: tuple[Violation, ...] = ()
    try:
        admit(request, found.policy, host_image=host_image, hosts=hosts, images=images)
    except AdmissionError as error:
        violations = error.violations
    return Explanation(
        admitted=not violations,
        policy=name,
        policy_digest=found.policy.digest,
        scopes=above,
        values=tuple(_values(request, found, resolved)),
        steps=tuple(_steps(request, found, resolved)),
        violations=violations,
    )


def refusal(policy: str, violations: Sequence[Violation], scopes: Sequence[str] = ()) -> Explanation:
    """Return the explanation of a request whose policy is not there, or of which the scopes leave nothing."""
    return Explanation(
        admitted=False,
        policy=policy,
        policy_digest=None,
        scopes=tuple(scopes),
        values=(),
        steps=(),
        violations=tuple(violations),
    )


def unknown_policy(name: str, offered: Sequence[str]) -> Violation:
    """Return the violation of a request that names no policy that it may use."""
    return Violation(field="policy", got=shown(name), allowed=[*offered], message="there is no such policy")


def value_sources(found: Effective, resolved: Resolved) -> Iterator[ExplainedValue]:
    """Yield every value of an effective policy with its source; limits as "defaults.memory"."""
    written = found.policy.model_dump(mode="json")
    for field in Policy.model_fields:
        if field in ("defaults", "ceilings", "isolation"):
            for name, value in written[field].items():
                path = f"{field}.{name}"
                yield _value(path, value, _source(path, found, resolved))
        elif field not in _NOT_VALUES:
            yield _value(field, written[field], _source(field, found, resolved))


def _values(request: Request, found: Effective, resolved: Resolved) -> Iterator[ExplainedValue]:
    policy = found.policy
    yield _value("image", request.image, _REQUEST)
    asked = _REQUEST if request.pool else _source("pools", found, resolved)
    yield _value("pool", pool_of(request, policy), asked)
    asked = _REQUEST if request.priority else _source("priority_max", found, resolved)
    yield _value("priority", request.priority or default_priority(policy), asked)
    written = policy.model_dump(mode="json")
    for field in Policy.model_fields:
        if field == "max_queue_time" and request.max_queue_time is not None:
            yield _value(field, request.max_queue_time, _REQUEST)
        elif field not in _NOT_VALUES:
            yield _value(field, written[field], _source(field, found, resolved))
    for name, value in written["isolation"].items():
        path = f"isolation.{name}"
        yield _value(path, value, _source(path, found, resolved))


def _steps(request: Request, found: Effective, resolved: Resolved) -> Iterator[ExplainedStep]:
    for index, (field, step) in enumerate(numbered(request)):
        limits = tuple(_limit(name, step.limits, found, resolved) for name in Limits.model_fields)
        yield ExplainedStep(field=field, name=step.name or default_name(index), limits=limits)


def _limit(name: str, asked: Any, found: Effective, resolved: Resolved) -> ExplainedLimit:
    value, source = getattr(asked, name), _REQUEST
    if value is None:
        value = getattr(found.policy.defaults, name)
        source = _source(f"defaults.{name}", found, resolved)
    ceiling = _source(f"ceilings.{name}", found, resolved)
    return ExplainedLimit(
        field=name,
        value=value,
        scope=source.scope,
        rule=source.rule,
        ceiling=getattr(found.policy.ceilings, name),
        ceiling_scope=ceiling.scope,
        ceiling_rule=ceiling.rule,
    )


def _value(field: str, value: Any, source: Source) -> ExplainedValue:
    return ExplainedValue(field=field, value=value, scope=source.scope, rule=source.rule)


def _source(path: str, found: Effective, resolved: Resolved) -> Source:
    """Return who set what stands at `path` of the policy."""
    if path in found.clamped:
        return found.clamped[path]
    own = resolved.policy.name
    origin = resolved.origins.get(path, own)
    return Source(f"policy {origin}", Rule.SET if origin == own else Rule.INHERITED)
