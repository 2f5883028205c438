"""The image of a job as its worker uses it: a digest, and what the image says about running programs in it.

A request's ``argv`` takes the place of Entrypoint and Cmd together. Its ``env`` stands over the image's Env, which
stands over what every program gets; its ``cwd`` over WorkingDir. The policy's user bounds the image's: a policy whose
user is 0 lets an image have any user, one with another user has every program run as that.
"""

from dataclasses import dataclass, field

from jobs.spec import Step
from policies.policy import HOST_IMAGE, Policy
from worker.images import reference
from worker.images.errors import ImageError
from worker.images.reference import Reference
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


def _means(named: Reference, names: list[str]) -> bool:
    """Whether an image with these names is meant. A policy was asked about the name: a digest beside it must be one
    that the name has here, so that it does not open another image."""
    if not named.path:
        return True
    same = [
        each
        for each in map(reference.parse, names)
        if (each.registry, each.path) == (named.registry, named.path)
    ]
    return any(each.tag == named.tag or not named.tag for each in same)


def choose(session: Session, image: str) -> Chosen:
    """What a name or digest means on the launcher's host, now.

    Raises:
        SandboxError: it has no such image, or does not answer.
    """
    if image == HOST_IMAGE:
        return HOST
    try:
        named = reference.parse(image)
    except ImageError as error:
        raise SandboxError("image", 0, image, error.message) from None
    record = session.image(named.digest or str(named))
    if record is None or not _means(named, record["names"]):
        raise SandboxError("image", 0, image, "this host has no such image; see `stockade image list`")
    env = dict(each.split("=", 1) for each in record["env"])
    return Chosen(record["digest"], env, record["directory"], record["user"], record["group"])
