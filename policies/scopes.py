"""Scopes: platform, organisation, project, policy, request. A lower one only narrows what a higher one left.

`fold` puts a policy under the bounds of the scopes above it. What comes out is a policy again, the
*effective* one, which allows nothing that any of them does not; it is what admission asks and what a job's
digest names. Folding is a meet, value by value: it never widens, doing it twice changes nothing, and
the order of the scopes does not matter. Beside each value it says which scope set or narrowed it.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from policies.bounds import Bounds
from policies.image_names import HOST_IMAGE
from policies.images import common
from policies.isolation import OCI
from policies.limits import Limits
from policies.policy import Policy
from policies.violation import Violation

PLATFORM = "platform"

Scopes = Sequence[tuple[str, Bounds]]
"""Bounds with the names of their scopes ("platform", "organisation acme"), highest first."""

_COUNTS = (
    *("steps_max", "files_max", "files_bytes", "outputs_max", "outputs_bytes"),
    *("max_queue_time", "retention"),
)


class Rule(StrEnum):
    """How a value came to be."""

    SET = "set"
    """It stands in the policy."""
    INHERITED = "inherited"
    """It stands in the policy that the policy extends."""
    CLAMPED = "clamped"
    """A scope above left less of it than the policy has."""
    REQUEST = "request"
    """The request asked for it."""


@dataclass(frozen=True)
class Source:
    """Where a value comes from."""

    scope: str
    rule: Rule


@dataclass(frozen=True)
class Contradiction:
    """Two scopes that leave nothing between them."""

    scope: str
    field: str
    message: str


class ScopeError(Exception):
    """The scopes above a policy leave nothing of it.

    Attributes:
        policy: the policy's name.
        found: everything of which nothing is left.
    """

    def __init__(self, policy: str, found: Sequence[Contradiction]) -> None:
        super().__init__("; ".join(f"{each.scope}: {each.field}: {each.message}" for each in found))
        self.policy = policy
        self.found = tuple(found)

    @property
    def violations(self) -> tuple[Violation, ...]:
        """The same as violations of a request that names the policy."""
        return tuple(
            Violation(
                field="policy",
                got=self.policy,
                allowed=None,
                message=f"{each.scope}: {each.field} {each.message}",
            )
            for each in self.found
        )


@dataclass(frozen=True)
class Effective:
    """A policy under its scopes, and the source of every value that a scope narrowed, by its path."""

    policy: Policy
    clamped: Mapping[str, Source]


def effective(policy: Policy, scopes: Scopes) -> Policy:
    """Return what `scopes` leave of `policy`; see `fold`."""
    return fold(policy, scopes).policy


def fold(policy: Policy, scopes: Scopes) -> Effective:
    """Return what `scopes` leave of `policy`, and which of them narrowed what.

    Raises:
        ScopeError: of something that a policy cannot be without, nothing is left; or the policy may not be
            used there at all.
    """
    clamped: dict[str, Source] = {}
    found: list[Contradiction] = []
    for scope, bounds in scopes:
        narrowed: dict[str, Any] = {}
        for field, value in _narrowed(policy, bounds):
            if value == getattr(policy, field):
                continue
            narrowed[field] = value
            for path in _changed(field, getattr(policy, field), value):
                clamped[path] = Source(scope, Rule.CLAMPED)
        policy = policy.model_copy(update=narrowed) if narrowed else policy
        found.extend(_contradictions(scope, bounds, policy))
    if found:
        raise ScopeError(policy.name, found)
    return Effective(policy, clamped)


def _narrowed(policy: Policy, bounds: Bounds) -> Iterator[tuple[str, Any]]:
    """Yield every field that `bounds` bound, with what they leave of it."""
    if bounds.ceilings is not None:
        ceilings = _lowered(policy.ceilings, bounds)
        yield "ceilings", ceilings
        yield "defaults", _lowered(policy.defaults, bounds)
    if bounds.images is not None:
        yield "images", common(policy.images, bounds.images)
    if bounds.image_digest is not None:
        yield "image_digest", min(policy.image_digest, bounds.image_digest, key=lambda demand: demand.rank)
    if bounds.syscalls is not None:
        yield "syscalls", min(policy.syscalls, bounds.syscalls, key=lambda profile: profile.rank)
    if bounds.network is not None:
        yield "network", min(policy.network, bounds.network, key=lambda mode: mode.rank)
    if bounds.capabilities is not None:
        yield "capabilities", tuple(each for each in policy.capabilities if each in bounds.capabilities)
    if bounds.pools is not None:
        yield "pools", tuple(each for each in policy.pools if each in bounds.pools)
    if bounds.priority_max is not None:
        yield "priority_max", max(policy.priority_max, bounds.priority_max, key=lambda each: each.rank)
    if bounds.isolation is not None:
        yield "isolation", policy.isolation.raised(bounds.isolation)
    for field in _COUNTS:
        if (most := getattr(bounds, field)) is not None:
            yield field, min(getattr(policy, field), most)


def _lowered(limits: Limits, bounds: Bounds) -> Limits:
    """Return `limits` with each one lowered to the bounds' ceiling."""
    lower = {
        name: most
        for name, most in bounds.ceilings or ()
        if most is not None and most < getattr(limits, name)
    }
    return limits.model_copy(update=lower) if lower else limits


def _changed(field: str, before: Any, after: Any) -> Iterator[str]:
    """Yield the paths at which a field's value became another."""
    if hasattr(type(after), "model_fields"):
        yield from (f"{field}.{name}" for name, value in after if value != getattr(before, name))
    else:
        yield field


def _contradictions(scope: str, bounds: Bounds, left: Policy) -> Iterator[Contradiction]:
    """Yield what the policy that is `left` under `bounds` cannot be without."""
    if not bounds.lets_through(left.name):
        yield Contradiction(scope, "policies", f"the policy {left.name} may not be used here")
    if bounds.images is not None and not left.images:
        yield Contradiction(scope, "images", f"lets through none of the images of the policy {left.name}")
    if left.isolation.image == OCI and set(left.images) == {HOST_IMAGE}:
        message = f"the isolation floor refuses {HOST_IMAGE}, the only image left of the policy {left.name}"
        yield Contradiction(scope, "isolation", message)
    if bounds.pools is not None and not left.pools:
        yield Contradiction(scope, "pools", f"lets through none of the pools of the policy {left.name}")
