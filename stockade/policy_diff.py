"""Policy diff: in what two policies differ, and what that would have changed for the last jobs of a project."""

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import Field, JsonValue, ValidationError
from redis import Redis

from jobs.kept import as_asked
from jobs.spec import JobSpec
from jobs.tenant_bounds import TenantBounds
from policies.admission import Admission, AdmissionError, admit
from policies.bounds import Bounds
from policies.model import Frozen
from policies.policy import Policy
from policies.scopes import PLATFORM, ScopeError, Scopes, effective
from policies.violation import Violation

BATCH = 100
"""Jobs that are read from Redis at a time: each may carry files of many megabytes."""

_JOBS, _JOB = "stockade:jobs:", "stockade:job:"
_LABELS = frozenset({"name", "description", "version"})


class Difference(Frozen):
    """One value that is not the same in both."""

    path: str = Field(description='Where: "ceilings.memory".')
    a: JsonValue = Field(description="The value in the first.")
    b: JsonValue = Field(description="The value in the second.")


class JobDifference(Frozen):
    """One job that would have fared otherwise under the second policy."""

    job: str = Field(description="The job.")
    change: str = Field(
        description="`refused`, `admitted` or `changed`: what the second would have made of it."
    )
    violations: tuple[Violation, ...] = Field(description="Why it would have been refused.")
    differences: tuple[Difference, ...] = Field(description="The values that it would have had otherwise.")


def differences(a: Policy, b: Policy) -> list[Difference]:
    """Return every value in which two policies differ, but for their names and descriptions."""
    return list(_differences(_content(a), _content(b)))


def jobs_under(
    redis: Redis, project: str, last: int, a: Policy, b: Policy, platform: Bounds
) -> Iterator[JobDifference | None]:
    """Yield, for each of the project's last jobs under `a`, what `b` would have changed; None for nothing.

    Both are narrowed by the scopes above them, as they now are.
    """
    scopes: Scopes = ((PLATFORM, platform), *TenantBounds(redis).scopes(project))
    for job, spec in _last_jobs(redis, project, last):
        if spec.policy != a.name:
            continue
        before, after = _outcome(spec, a, scopes), _outcome(spec, b, scopes)
        yield _compared(job, before, after)


def _last_jobs(redis: Redis, project: str, last: int) -> Iterator[tuple[str, JobSpec]]:
    ids: Any = redis.zrevrange(_JOBS + project, 0, last - 1)
    for start in range(0, len(ids), BATCH):
        with redis.pipeline(transaction=False) as pipe:
            for each in ids[start : start + BATCH]:
                pipe.hmget(_JOB + each.decode(), "spec", "sizes")
            stored = pipe.execute()
        for each, (spec, sizes) in zip(ids[start : start + BATCH], stored, strict=True):
            try:
                if spec is not None:  # else it has been deleted meanwhile
                    yield each.decode(), as_asked(spec, sizes)
            except ValidationError:  # of a version that took other requests
                continue


def _outcome(spec: JobSpec, policy: Policy, scopes: Scopes) -> Admission | tuple[Violation, ...]:
    try:
        return admit(spec, effective(policy, scopes))
    except (ScopeError, AdmissionError) as error:
        return error.violations


def _compared(
    job: str, before: Admission | tuple[Violation, ...], after: Admission | tuple[Violation, ...]
) -> JobDifference | None:
    if isinstance(after, tuple):
        if isinstance(before, tuple):
            return None
        return JobDifference(job=job, change="refused", violations=after, differences=())
    if isinstance(before, tuple):
        return JobDifference(job=job, change="admitted", violations=(), differences=())
    found = tuple(_differences(_values(before), _values(after)))
    return JobDifference(job=job, change="changed", violations=(), differences=found) if found else None


def _values(admission: Admission) -> dict[str, Any]:
    values = admission.model_dump(mode="json", exclude={"policy", "policy_digest", "steps"})
    steps = {f"{index}": step.limits.model_dump() for index, step in enumerate(admission.steps)}
    return {**values, "steps": steps}


def _content(policy: Policy) -> dict[str, Any]:
    return policy.model_dump(mode="json", exclude=set(_LABELS))


def _differences(a: Mapping[str, Any], b: Mapping[str, Any], at: str = "") -> Iterator[Difference]:
    for name in dict.fromkeys([*a, *b]):
        path, one, other = f"{at}{name}", a.get(name), b.get(name)
        if isinstance(one, dict) and isinstance(other, dict):
            yield from _differences(one, other, f"{path}.")
        elif one != other:
            yield Difference(path=path, a=one, b=other)
