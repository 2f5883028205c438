"""Isolation: the floor that a policy sets, and what a worker's host has to stand on it."""

import re
from collections.abc import Iterator
from enum import StrEnum
from typing import Annotated, Literal, NamedTuple, Protocol

from pydantic import Field, StringConstraints

from policies.model import Frozen

ANY, V2, OCI = "any", "v2", "oci"

_RELEASE = re.compile(r"(\d{1,4})\.(\d{1,4})")


class Graded(StrEnum):
    """Values in order, the one that allows least first."""

    @property
    def rank(self) -> int:
        """0 for the one that allows least."""
        return list(type(self)).index(self)


class NetworkMode(Graded):
    """What of the network a job may have. There is one mode: nothing but its own loopback."""

    NONE = "none"


class SyscallProfile(Graded):
    """The system call profiles, `policies/syscalls/NAME.json`."""

    STRICT = "strict"
    DEFAULT = "default"
    DEBUG = "debug"


class Shortfall(NamedTuple):
    """One thing that a host does not give."""

    field: str
    got: str
    needed: str


class Host(Protocol):
    """What a worker knows of its machine."""

    @property
    def cgroup(self) -> str | None: ...

    @property
    def kernel(self) -> str: ...


class IsolationFloor(Frozen):
    """The least isolation that a job must have; where it cannot be had, the job is refused."""

    cgroup: Literal["any", "v2"] = Field(
        default="any",
        description="`v2`: only where limits are enforced with cgroup v2; `any`: v1 will do.",
        json_schema_extra={"x-kernel": "cgroups(7)"},
    )
    kernel: Annotated[str, StringConstraints(pattern=r"^[5-9]\.(0|[1-9][0-9]?)$")] = Field(
        default="5.12",
        description='The oldest kernel, such as "6.1"; below "5.12" no sandbox can be made in any case.',
        json_schema_extra={"x-kernel": "uname(2) release"},
    )
    image: Literal["any", "oci"] = Field(
        default="any",
        description="`oci`: only in an image of its own, not in `host`, which shows the machine's own"
        " programs; `any`: both.",
        json_schema_extra={"x-kernel": "lower layers of the root overlay"},
    )

    @property
    def asks_of_hosts(self) -> bool:
        """Whether there may be a host that cannot give it."""
        return self.cgroup != ANY or version(self.kernel) > (5, 12)

    def shortfalls(self, host: Host) -> Iterator[Shortfall]:
        """Yield everything that `host` does not give; what is not known of it counts as not given."""
        if self.cgroup == V2 and host.cgroup != V2:
            yield Shortfall("isolation.cgroup", host.cgroup or "unknown", self.cgroup)
        if version(host.kernel) < version(self.kernel):
            yield Shortfall("isolation.kernel", host.kernel or "unknown", self.kernel)

    def raised(self, other: "IsolationFloor") -> "IsolationFloor":
        """Return the floor that satisfies both."""
        return IsolationFloor(
            cgroup=V2 if V2 in (self.cgroup, other.cgroup) else ANY,
            kernel=max(self.kernel, other.kernel, key=version),
            image=OCI if OCI in (self.image, other.image) else ANY,
        )


def version(release: str) -> tuple[int, int]:
    """Return the two numbers that `release` ("6.18.44-amd64") begins with; (0, 0) where it has none."""
    found = _RELEASE.match(release)
    return (int(found[1]), int(found[2])) if found else (0, 0)
