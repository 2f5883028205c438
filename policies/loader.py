"""Loading policies: YAML files read once, checked whole, kept with their digests.

The policies of this package (`policies/builtin/`) are always there. An operator's directory may add to
them, replace one by a file of its name, bound them all by `platform.yaml`, and hold drafts of policies in
`drafts/`. Where anything in it is not exactly right nothing is loaded, and everything that is wrong is told.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType

from policies.bounds import NO_BOUNDS, Bounds
from policies.document import PolicyDocument, Resolved, Written, resolve, validated
from policies.finding import Finding, PolicyError
from policies.marked_yaml import Marked, read
from policies.policy import Policy
from policies.scopes import PLATFORM, ScopeError, fold

BUILTIN = Path(__file__).parent / "builtin"
PLATFORM_FILE = f"{PLATFORM}.yaml"
DRAFTS = "drafts"
FILES_MAX = 1000
"""Policy files of one directory."""


@dataclass(frozen=True)
class PolicySet:
    """All policies of an installation at one moment, as they are written: no scope above is applied yet."""

    resolved: Mapping[str, Resolved]
    platform: Bounds = NO_BOUNDS
    drafts: Mapping[str, Resolved] = field(default_factory=dict)
    draft_findings: tuple[Finding, ...] = ()
    """What is wrong with drafts, which are then not there; they never keep the rest from being loaded."""

    @property
    def policies(self) -> Mapping[str, Policy]:
        """The policies by name."""
        return MappingProxyType({name: found.policy for name, found in self.resolved.items()})


@lru_cache(maxsize=8)
def load_policies(directory: Path | None = None) -> Mapping[str, Policy]:
    """Return the policies of `load`, read once a process."""
    return load(directory).policies


def load(directory: Path | None = None) -> PolicySet:
    """Return the built-in policies, and those of `directory`, which win; and what else stands there.

    Raises:
        PolicyError: with all that is wrong with policies and platform.
    """
    if directory is None:
        return load_files([])
    drafts = directory / DRAFTS
    return load_files(yaml_files(directory), yaml_files(drafts) if drafts.is_dir() else [])


def load_files(paths: Sequence[Path], drafts: Sequence[Path] = ()) -> PolicySet:
    """Return the built-in policies, and those in the files `paths`, which win; `platform.yaml` may be among them.

    Raises:
        PolicyError: with all that is wrong with policies and platform.
    """
    findings: list[Finding] = []
    written = {each.document.name: each for each in _read_all(yaml_files(BUILTIN), findings)}
    written |= {each.document.name: each for each in _read_all(paths, findings)}
    platform, marked = _platform(paths, findings)
    resolved = _resolve_all(written, findings)
    if not findings and marked is not None:
        findings.extend(_contradictions(resolved, platform, marked))
    if findings:
        raise PolicyError(findings)
    drafted, wrong = _drafts(drafts, written)
    return PolicySet(MappingProxyType(resolved), platform, MappingProxyType(drafted), tuple(wrong))


def read_written(path: Path) -> Written:
    """Return the policy document in the file `path`; it may extend others, which are not looked at.

    Raises:
        PolicyError: the file cannot be read, breaks a rule of `policies.marked_yaml`, has an unknown or wrong
            field, or is not named after its policy.
    """
    marked = read(path)
    document = validated(marked, PolicyDocument)
    if document.name != path.stem:
        message = f"the policy's name is {document.name}; the file must be {document.name}.yaml"
        raise PolicyError([marked.finding("name", message)])
    if document.name == PLATFORM:
        raise PolicyError([marked.finding("name", f"no policy can be called {PLATFORM}")])
    return Written(document, marked)


def read_bounds(path: Path) -> tuple[Bounds, Marked]:
    """Return the bounds in the YAML file `path`; raises PolicyError."""
    marked = read(path)
    return (NO_BOUNDS if marked.data is None else validated(marked, Bounds)), marked


def yaml_files(directory: Path) -> list[Path]:
    """Return the YAML files directly in `directory`, by name; raises PolicyError when it cannot be read."""
    try:
        paths = sorted(path for path in directory.iterdir() if path.suffix == ".yaml")
    except OSError as error:
        raise PolicyError([_about(directory, error.strerror or str(error))]) from error
    if len(paths) > FILES_MAX:
        raise PolicyError([_about(directory, f"more than {FILES_MAX} files")])
    return paths


def _about(path: Path, message: str) -> Finding:
    return Finding(file=str(path), line=1, path="", message=message)


def _read_all(paths: Sequence[Path], findings: list[Finding]) -> Iterator[Written]:
    """Yield the policy documents that can be read; note what is wrong with the others."""
    for path in paths:
        if path.name == PLATFORM_FILE:
            continue
        try:
            yield read_written(path)
        except PolicyError as error:
            findings.extend(error.findings)


def _platform(paths: Sequence[Path], findings: list[Finding]) -> tuple[Bounds, Marked | None]:
    path = next((each for each in paths if each.name == PLATFORM_FILE), None)
    if path is None:
        return NO_BOUNDS, None
    try:
        return read_bounds(path)
    except PolicyError as error:
        findings.extend(error.findings)
        return NO_BOUNDS, None


def _resolve_all(written: Mapping[str, Written], findings: list[Finding]) -> dict[str, Resolved]:
    resolved = {}
    told: set[tuple[str, int, str]] = set()
    broken = {Path(each.file).stem for each in findings}
    for name in sorted(written):
        try:
            resolved[name] = resolve(_chain(written[name], written, broken))
        except PolicyError as error:  # the same may be wrong with all that extend one document
            for each in error.findings:
                place = (each.file, each.line, each.path)
                if place not in told:
                    findings.append(each)
                told.add(place)
    return resolved


def _chain(last: Written, written: Mapping[str, Written], broken: Collection[str] = ()) -> list[Written]:
    """Return `last` and all that it extends, the first of them first; of `broken` ones enough has been said."""
    chain, names = [last], [last.document.name]
    while (parent := chain[-1].document.extends) is not None:
        names.append(parent)
        shown = " → ".join(names)
        if parent in names[:-1]:
            first = min(names[names.index(parent) : -1])
            message = f"the policies extend each other in a circle: {_circle(names, first)}"
            raise PolicyError([written[first].marked.finding("extends", message)])
        if parent not in written and parent in broken:
            raise PolicyError([])
        if parent not in written:
            message = f"there is no policy {parent} to extend ({shown})"
            raise PolicyError([chain[-1].marked.finding("extends", message)])
        chain.append(written[parent])
    return chain[::-1]


def _circle(names: list[str], first: str) -> str:
    """Return the circle at the end of `names`, told from the same one of its members every time."""
    circle = names[names.index(names[-1]) : -1]
    start = circle.index(first)
    return " → ".join([*circle[start:], *circle[:start], first])


def _contradictions(resolved: Mapping[str, Resolved], platform: Bounds, marked: Marked) -> Iterator[Finding]:
    """Yield what the platform leaves nothing of, of a policy that may be used under it."""
    used = [each.policy for name, each in resolved.items() if platform.lets_through(name)]
    if not used:
        yield marked.finding("policies", "lets through none of the policies")
    for policy in used:
        try:
            fold(policy, [(PLATFORM, platform)])
        except ScopeError as error:
            yield from (marked.finding(each.field, each.message) for each in error.found)


def _drafts(
    paths: Sequence[Path], written: Mapping[str, Written]
) -> tuple[dict[str, Resolved], list[Finding]]:
    findings: list[Finding] = []
    drafts = {}
    for draft in _read_all(paths, findings):
        try:
            drafts[draft.document.name] = resolve(_chain_of_draft(draft, written))
        except PolicyError as error:
            findings.extend(error.findings)
    return drafts, findings


def _chain_of_draft(draft: Written, written: Mapping[str, Written]) -> list[Written]:
    """Return the draft and all that it extends; what it extends is in force, be it the policy of its own name."""
    parent = draft.document.extends
    if parent is None or parent not in written:
        return _chain(draft, written)
    return [*_chain(written[parent], written), draft]
