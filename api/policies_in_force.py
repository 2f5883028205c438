"""Policies in force: for each project the policies that it may use, as the scopes above them leave them."""

from collections.abc import Mapping
from dataclasses import dataclass

from jobs.policy_source import PolicySource
from jobs.policy_versions import PolicyVersions
from jobs.tenant_bounds import TenantBounds
from policies.loader import PolicySet
from policies.policy import Policy
from policies.scopes import PLATFORM, Effective, ScopeError, Scopes, fold

REMEMBERED = 1000
"""Different bounds whose effective policies are remembered."""


@dataclass(frozen=True)
class InForce:
    """The policies of one project at one moment."""

    source: PolicySet
    scopes: Scopes
    """Platform, organisation, project: those that bound anything."""
    usable: Mapping[str, Effective]
    refused: Mapping[str, ScopeError]
    """The policies of which the scopes leave nothing."""

    @property
    def offered(self) -> list[str]:
        """The names of the policies that a job may name."""
        return list(self.usable)


class PoliciesInForce:
    """What `PolicySource` has, narrowed for each project; computed once for each set of bounds."""

    def __init__(self, source: PolicySource, bounds: TenantBounds, versions: PolicyVersions) -> None:
        self.source = source
        self._bounds = bounds
        self._versions = versions
        self._known: dict[tuple[object, ...], InForce] = {}

    def of(self, project: str) -> InForce:
        """Return the policies of the project of this id; raises redis.RedisError."""
        source = self.source.current
        scopes = ((PLATFORM, source.platform), *self._bounds.scopes(project))
        known = self._known.get(scopes)
        if known is not None and known.source is source:
            return known
        found = _fold(source, scopes)
        if len(self._known) >= REMEMBERED:
            self._known.clear()
        self._known[scopes] = found
        return found

    def publish(self, policy: Policy) -> None:
        """See to it that workers can load this policy; to be called before a job is stored under it."""
        self._versions.publish(policy)


def _fold(source: PolicySet, scopes: Scopes) -> InForce:
    usable, refused = {}, {}
    for name, resolved in source.resolved.items():
        try:
            usable[name] = fold(resolved.policy, scopes)
        except ScopeError as error:
            refused[name] = error
    return InForce(source, scopes, usable, refused)
