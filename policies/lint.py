"""Lint: what is odd in policy documents that are not wrong."""

from collections.abc import Iterator

from policies.document import Resolved
from policies.finding import Finding
from policies.loader import BUILTIN, PolicySet
from policies.policy import Policy
from policies.scopes import PLATFORM, ScopeError, fold

_NOT_CONTENT = frozenset({"name", "description", "version"})


def lint(found: PolicySet) -> list[Finding]:
    """Return what is odd in the operator's own documents, in the order of files and lines."""
    own = [each for each in found.resolved.values() if not _builtin(each)]
    told = {*_out_of_reach(own, found), *_wide_open(own), *_identical(found)}
    warnings = [each for each in told if not _of_ours(each.file)]
    return sorted(warnings, key=lambda each: (each.file, each.line, each.path))


def _builtin(resolved: Resolved) -> bool:
    return _of_ours(resolved.chain[-1].marked.file)


def _of_ours(file: str) -> bool:
    return file.startswith(f"{BUILTIN}/")


def _out_of_reach(own: list[Resolved], found: PolicySet) -> Iterator[Finding]:
    """Yield what the platform takes away from a policy, so that it says more than can be had."""
    for resolved in own:
        policy = resolved.policy
        try:
            narrow = fold(policy, [(PLATFORM, found.platform)])
        except ScopeError:
            yield resolved.finding("name", "the platform does not let this policy be used")
            continue
        for path in narrow.clamped:
            if path.startswith(
                "isolation."
            ):  # a floor that is raised takes nothing from what the policy says
                continue
            wanted, left = _at(policy, path), _at(narrow.policy, path)
            yield resolved.finding(path, f"{wanted} is out of reach: the platform leaves {left or 'nothing'}")


def _at(policy: Policy, path: str) -> object:
    value: object = policy.model_dump(mode="json")
    for part in path.split("."):
        assert isinstance(value, dict)
        value = value[part]
    return value


def _wide_open(own: list[Resolved]) -> Iterator[Finding]:
    for resolved in own:
        policy = resolved.policy
        if "*" in policy.images:
            yield resolved.finding("images", "`*` lets every image through, the host's own programs included")


def _identical(found: PolicySet) -> Iterator[Finding]:
    """Yield each of the operator's policies that says the same as another one by another name."""
    seen: dict[str, str] = {}
    for name, resolved in sorted(found.resolved.items(), key=lambda each: not _builtin(each[1])):
        content = resolved.policy.model_dump_json(exclude=set(_NOT_CONTENT))
        if content in seen and not _builtin(resolved):
            yield resolved.finding("name", f"allows exactly what the policy {seen[content]} allows")
        seen.setdefault(content, name)
