"""Admission of a request that came by HTTP: under which policy of its project, and on whose hosts it could run."""

from collections.abc import Sequence
from datetime import UTC, datetime

import structlog
from redis.exceptions import RedisError

from api.problems import NOT_ADMITTED, invalid
from api.services import Services
from api.shadow import Submission
from jobs.spec import JobSpec
from policies.admission import Admission, AdmissionError, admit, pool_of
from policies.explain import Explanation, explain, refusal, unknown_policy
from policies.image_names import HOST_IMAGE
from policies.isolation import Host
from policies.offered import Offered
from policies.policy import Policy
from policies.violation import Violation

log = structlog.get_logger(__name__)


def admitted(services: Services, spec: JobSpec, project: str) -> Admission:
    """What the policy that `spec` names decides about it; workers can then load that policy by its digest.

    Raises:
        ProblemError: 422, with every violation.
    """
    if late := _too_late(spec):
        raise invalid((late,))
    in_force = services.policies.of(project)
    found = in_force.usable.get(spec.policy)
    try:
        if found is None:
            raise AdmissionError(_no_policy(services, spec, project))
        policy = found.policy
        admission = admit(
            spec,
            policy,
            host_image=services.settings.image_host,
            hosts=_hosts(services, spec, policy),
            images=_images(services, spec, policy),
        )
    except AdmissionError as error:
        watch(services, spec, project, None)
        raise invalid(error.violations, NOT_ADMITTED) from None
    services.policies.publish(policy)
    return admission


def _too_late(spec: JobSpec) -> Violation | None:
    """What is wrong with a deadline that has come already."""
    now = datetime.now(UTC)
    if spec.deadline is None or spec.deadline > now:
        return None
    got = spec.deadline.isoformat()
    return Violation(
        field="deadline", got=got, allowed=f"after {now:%Y-%m-%dT%H:%M:%SZ}", message="has come already"
    )


def watch(services: Services, spec: JobSpec, project: str, job: str | None) -> None:
    """Have a submission also evaluated under the draft of its policy, where there is one; enforces nothing.

    `job`: the job that came of it; None when it was refused.
    """
    try:
        in_force = services.policies.of(project)
    except RedisError as error:  # it must not fail what has been accepted
        log.warning("shadow_not_counted", draft=spec.policy, reason=str(error))
        return
    draft = in_force.source.drafts.get(spec.policy)
    if draft is not None:
        services.shadow.see(Submission(spec, draft.policy, in_force.scopes, project, job))


def explained(services: Services, spec: JobSpec, project: str) -> Explanation:
    """What would become of `spec`, and why; nothing is stored."""
    in_force = services.policies.of(project)
    scopes = [scope for scope, _ in in_force.scopes]
    found = in_force.usable.get(spec.policy)
    if found is None:
        return refusal(spec.policy, _no_policy(services, spec, project), scopes)
    explanation = explain(
        spec,
        in_force.source.resolved[spec.policy],
        in_force.scopes,
        host_image=services.settings.image_host,
        hosts=_hosts(services, spec, found.policy),
        images=_images(services, spec, found.policy),
    )
    pool = pool_of(spec, found.policy)
    if services.hosts.of(pool):
        return explanation
    note = f"No worker that takes jobs of the pool {pool} is there now: the job would wait for one."
    return explanation.model_copy(update={"notes": (note,)})


def _no_policy(services: Services, spec: JobSpec, project: str) -> Sequence[Violation]:
    """Why the project cannot use the policy that it names. One that it may not use is as one that is not there."""
    in_force = services.policies.of(project)
    refused = in_force.refused.get(spec.policy)
    hidden = refused is None or any(each.field == "policies" for each in refused.found)
    if refused is None or hidden:
        return [unknown_policy(spec.policy, in_force.offered)]
    return refused.violations


def _hosts(services: Services, spec: JobSpec, policy: Policy) -> Sequence[Host]:
    """The hosts that the job could run on; not asked for where any host will do."""
    return services.hosts.of(pool_of(spec, policy)) if policy.isolation.asks_of_hosts else ()


def _images(services: Services, spec: JobSpec, policy: Policy) -> Offered | None:
    """The images of those hosts; not asked for by `host`, nor of a pool that the policy refuses anyhow."""
    pool = pool_of(spec, policy)
    return services.hosts.images(pool) if spec.image != HOST_IMAGE and pool in policy.pools else None
