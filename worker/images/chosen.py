"""The image of a job as its worker uses it: a digest, and what the image says about running programs in it.

A request's ``argv`` takes the place of Entrypoint and Cmd together. Its ``env`` stands over the image's Env, which
stands over what every program gets; its ``cwd`` over WorkingDir. The policy's user bounds the image's: a policy whose
user is 0 lets an image have any user, one with another user has every program run as that.
"""

from dataclasses import dataclass, field
from typing import Any

from jobs.spec import Step
from policies.admission import Admission
from policies.image_names import HOST_IMAGE, Reference, parse, spellings
from policies.policy import Policy
from worker.admission import NotAdmittedError
from worker.sandbox.client import Session
from worker.sandbox.errors import SandboxError


@dataclass(frozen=True)
class Chosen:
    """digest: as the launcher takes it. user, group: None where the image says nothing."""

    digest: str
    env: dict[str, str] = field(default_factory=dict)
    directory: str = ""
    user: int | None = None
    group: int | None = None

    def cwd(self, step: Step) -> str:
        """Where a step starts."""
        return step.cwd if "cwd" in step.model_fields_set or not self.directory else self.directory

    def ids(self, policy: Policy) -> tuple[int, int]:
        """(uid, gid) that a step starts with."""
        if policy.user or self.user is None:
            return policy.user, policy.user
        return self.user, self.group or 0


HOST = Chosen(HOST_IMAGE)


def choose(session: Session, image: str) -> Chosen:
    """What a name or digest means on the launcher's host, now; for a command of the operator.

    Raises:
        SandboxError: it has no such image, or does not answer.
    """
    if image == HOST_IMAGE:
        return HOST
    try:
        named = parse(image)
    except ValueError as error:
        raise SandboxError("image", 0, image, str(error)) from None
    record = session.image(named.digest or str(named))
    if record is None or not _meant(named, record["names"]):
        raise SandboxError("image", 0, image, "this host has no such image; see `stockade image list`")
    return _chosen(record)


def admitted_image(session: Session, admission: Admission, policy: Policy) -> Chosen:
    """The image that a job was admitted with, by its digest, whatever its name means now.

    An image that this host knows by other names only, none of which the policy lets through, is not run: who writes
    a digest into a job gets no image that is not his.

    Raises:
        NotAdmittedError: the policy lets none of the image's names through.
        SandboxError: this host does not have it (another one may), or does not answer.
    """
    if admission.image_digest is None:
        return HOST
    record = session.image(admission.image_digest)
    if record is None:
        raise SandboxError("image", 0, admission.image, f"this host does not have {admission.image_digest}")
    names = record["names"]
    mine = any(policy.allows_image(spelling) for name in names for spelling in spellings(name))
    if names and not mine and not _meant(parse(admission.image), names):
        raise NotAdmittedError(
            f"The policy {policy.name} lets no name of {admission.image_digest} through that it has here."
        )
    return _chosen(record)


def _meant(named: Reference, names: list[str]) -> bool:
    return not named.path or any(named.means(parse(name)) for name in names)


def _chosen(record: dict[str, Any]) -> Chosen:
    env = dict(each.split("=", 1) for each in record["env"])
    return Chosen(record["digest"], env, record["directory"], record["user"], record["group"])
