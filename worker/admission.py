"""Admission, again: the worker trusts nothing that it was sent, not even what admitted the job.

A job names the digest of the effective policy that admitted it. The worker takes the policy of that digest from its own
documents or, content-addressed, from Redis; it holds it to its *own* platform's bounds, admits the job under
it once more, and runs the job only when the outcome is the one that is stored with it. So a reload of the
policies does not hurt jobs that wait, and whoever can write to Redis gets no more than platform and launcher allow.
"""

from jobs.job import Job
from jobs.policy_source import PolicySource
from jobs.policy_versions import PolicyVersions
from policies.admission import Admission, AdmissionError, admit
from policies.image_names import HOST_IMAGE
from policies.isolation import Host
from policies.loader import PolicySet
from policies.offered import pinned
from policies.policy import Policy
from policies.scopes import PLATFORM, ScopeError, effective, fold

UNSAID = {"syscalls", "network", "capabilities"}
"""What a job gets by its policy alone: where the platform leaves less of it, the job would not be what was admitted."""


class NotAdmittedError(Exception):
    """This worker does not let the job in; trying again would not help."""


class Policies:
    """The effective policies by digest, as far as this worker's platform lets them through. Safe for threads."""

    def __init__(self, source: PolicySource, versions: PolicyVersions) -> None:
        self._source = source
        self._versions = versions
        self._own: tuple[PolicySet | None, dict[str, Policy]] = (None, {})

    def under(self, digest: str) -> Policy:
        """Return the policy of this digest.

        Raises:
            NotAdmittedError: it is not known.
            redis.RedisError: it is not one of this worker's own documents, and Redis is not there.
        """
        current = self._source.current
        policy = self._own_of(current).get(digest) or self._versions.load(digest)
        if policy is None:
            raise NotAdmittedError(f"This worker knows no policy of the digest {digest[:80]}.")
        return policy

    def narrowed(self, policy: Policy) -> Policy:
        """Return what the platform of this worker, as it now is, leaves of a policy.

        Raises:
            NotAdmittedError: nothing, or less of what a job runs with that no admission tells (`UNSAID`).
        """
        platform = self._source.current.platform
        try:
            narrow = fold(policy, [(PLATFORM, platform)])
        except ScopeError as error:
            raise NotAdmittedError(f"The platform of this worker refuses the policy: {error}.") from error
        if over := sorted(UNSAID & set(narrow.clamped)):
            fields = ", ".join(over)
            message = f"The policy {policy.name} is more than the platform of this worker allows: {fields}."
            raise NotAdmittedError(message)
        return narrow.policy

    def _own_of(self, current: PolicySet) -> dict[str, Policy]:
        """The worker's own policies under its platform; computed once for each reading of the documents."""
        known, own = self._own
        if known is not current:
            own = {}
            for policy in current.policies.values():
                if current.platform.lets_through(policy.name):
                    narrow = effective(policy, [(PLATFORM, current.platform)])
                    own[narrow.digest] = narrow
            self._own = (current, own)
        return own


def admitted_again(job: Job, policies: Policies, image_host: bool) -> tuple[Policy, Admission]:
    """Return the policy that the job runs under, and what it decides.

    Its image is the digest that is stored with it: the name may have come to mean another one since.

    Raises:
        NotAdmittedError: the policy does not allow the job, or not as it is stored.
    """
    policy = policies.under(job.admission.policy_digest)
    if policy.name != job.spec.policy:
        message = f"The job names the policy {job.spec.policy}; it was admitted under {policy.name}."
        raise NotAdmittedError(message)
    admission = _admitted(job, policy, image_host)
    if admission != job.admission:
        raise NotAdmittedError(
            f"The stored admission is not that of the policy {policy.name}: {_differing(admission, job)} differ."
        )
    narrow = policies.narrowed(policy)
    if (
        narrow.digest != policy.digest
    ):  # the platform was narrowed since: it is this job that has to fit, not others
        now = _admitted(job, narrow, image_host).model_copy(update={"policy_digest": policy.digest})
        if now != admission:
            raise NotAdmittedError(
                f"The platform of this worker allows the job less than it was admitted with: {_differing(now, job)}."
            )
    return narrow, admission


def _admitted(job: Job, policy: Policy, image_host: bool) -> Admission:
    images = None
    if job.spec.image != HOST_IMAGE:
        images = pinned(job.spec.image, job.admission.image_digest)
    try:
        return admit(job.spec, policy, host_image=image_host, images=images)
    except AdmissionError as error:
        raise NotAdmittedError(f"The policy {policy.name} does not allow this job: {error}.") from error


def _differing(admission: Admission, job: Job) -> str:
    stored = dict(job.admission)
    return ", ".join(field for field, value in admission if value != stored[field])


def demand_floor(policy: Policy, host: Host) -> None:
    """See that this worker's host stands on the policy's isolation floor.

    Raises:
        NotAdmittedError: with everything that it does not give.
    """
    if missing := list(policy.isolation.shortfalls(host)):
        needs = "; ".join(f"{each.field} must be {each.needed} and is {each.got}" for each in missing)
        raise NotAdmittedError(
            f"The host of this worker is below the floor of the policy {policy.name}: {needs}."
        )
