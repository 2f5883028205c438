"""Policy cases: requests, and what is expected of them, in YAML files below `tests/` of a policy directory.

    organisation: tenants/university.yaml     # bounds, relative to the policy directory; may be left out
    project: tenants/algorithms.yaml          # the same, of the project
    policy: grader                            # for requests that name none; may be left out
    cases:
      - name: a solution in C++
        request: {command: [./solution]}
        expect: {admitted: true, pool: default, limits: {memory: 256MiB}}
      - name: more memory than the course may have
        request: {command: {argv: [./solution], limits: {memory: 8GiB}}}
        expect: {violations: [command.limits.memory]}

A request is one of `POST /v1/jobs`. `limits` are those of every step; `violations` are the rules that are broken,
all of them, without the steps' numbers.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, StringConstraints, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from jobs.rules import rule_of
from jobs.spec import JobSpec
from policies.bounds import Bounds
from policies.document import validated
from policies.explain import Explanation, explain, refusal, unknown_policy
from policies.finding import Finding, PolicyError
from policies.limits import LimitsRequest
from policies.loader import PolicySet, read_bounds, yaml_files
from policies.marked_yaml import Marked, read
from policies.model import Frozen
from policies.policy import Name
from policies.priority import Priority
from policies.scopes import PLATFORM
from policies.violation import violations

TESTS = "tests"


class Expectation(Frozen):
    """What is expected of one request: that it is admitted, with these values, or refused by these rules."""

    admitted: bool | None = Field(default=None, description="Whether it is admitted.")
    violations: tuple[str, ...] | None = Field(
        default=None, min_length=1, description="The rules that are broken, all of them: it is refused."
    )
    limits: LimitsRequest | None = Field(default=None, description="The limits of every step.")
    pool: Name | None = Field(default=None, description="The pool.")
    priority: Priority | None = Field(default=None, description="The priority.")

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if (self.violations is None) == (self.admitted is not True):
            allowed = "admitted: true, or violations"
            message = f"expects nothing, or both: give {allowed}"
            raise PydanticCustomError("expectation", "{message}", {"message": message, "allowed": allowed})
        return self


class Case(Frozen):
    """One request and what is expected of it."""

    name: Annotated[str, StringConstraints(min_length=1, max_length=200)]
    request: dict[str, Any]
    expect: Expectation


class Cases(Frozen):
    """One file of cases."""

    organisation: str | None = None
    project: str | None = None
    policy: Name | None = None
    cases: tuple[Case, ...] = Field(min_length=1)


@dataclass(frozen=True)
class Ran:
    """One case and how it came out: `found` says what was not as expected."""

    name: str
    found: tuple[Finding, ...]


def run_all(directory: Path, policies: PolicySet) -> list[Ran]:
    """Run every case of a policy directory; raises PolicyError when a file of cases is not right."""
    tests = directory / TESTS
    if not tests.is_dir():
        return []
    return [ran for path in yaml_files(tests) for ran in run(path, directory, policies)]


def run(path: Path, directory: Path, policies: PolicySet) -> Iterator[Ran]:
    """Run the cases of one file.

    Raises:
        PolicyError: the file, or the bounds that it names, are not right.
    """
    marked = read(path)
    cases = validated(marked, Cases)
    scopes = [(PLATFORM, policies.platform)]
    for scope in ("organisation", "project"):
        if (name := getattr(cases, scope)) is not None:
            scopes.append((scope, read_bounds(directory / name)[0]))
    for index, case in enumerate(cases.cases):
        at = f"cases[{index}]"
        spec = _spec(case, cases.policy, marked, at)
        found = _compared(case.expect, explained(spec, policies, scopes))
        told = (marked.finding(f"{at}.expect.{field}", message) for field, message in found)
        yield Ran(case.name, tuple(told))


def explained(spec: JobSpec, policies: PolicySet, scopes: list[tuple[str, Bounds]]) -> Explanation:
    """Return what would become of a request under the policies of a directory and the scopes above them."""
    resolved = policies.resolved.get(spec.policy)
    if resolved is None:
        names = [scope for scope, _ in scopes]
        return refusal(spec.policy, [unknown_policy(spec.policy, list(policies.resolved))], names)
    return explain(spec, resolved, scopes)


def _spec(case: Case, policy: str | None, marked: Marked, at: str) -> JobSpec:
    body = case.request if policy is None or "policy" in case.request else {**case.request, "policy": policy}
    try:
        return JobSpec.model_validate(body)
    except ValidationError as error:
        found = violations(error, JobSpec)
        raise PolicyError(
            [marked.finding(f"{at}.request.{each.field}", each.message) for each in found]
        ) from None


def _compared(expected: Expectation, found: Explanation) -> Iterator[tuple[str, str]]:
    """Yield what is not as expected: the field of the expectation, and a sentence."""
    rules = sorted({rule_of(each.field) for each in found.violations})
    if expected.violations is not None:
        if rules != sorted(set(expected.violations)):
            yield "violations", f"the rules that are broken are {', '.join(rules) or 'none: it is admitted'}"
        return
    if rules:
        told = "; ".join(f"{each.field}: {each.message}" for each in found.violations)
        yield "admitted", f"it is refused: {told}"
        return
    values = {each.field: each.value for each in found.values}
    for field in ("pool", "priority"):
        wanted = getattr(expected, field)
        if wanted is not None and values[field] != wanted:
            yield field, f"it is {values[field]}"
    for step in found.steps:
        limits = {each.field: each.value for each in step.limits}
        for name, wanted in expected.limits or ():
            if wanted is not None and limits[name] != wanted:
                yield f"limits.{name}", f"it is {limits[name]} in the step {step.name}"
