"""Where the caps live: one small interface, two drivers (``cgroup_v2``, ``cgroup_v1``), chosen from the host.

A driver owns one parent cgroup named ``stockade-N`` below the launcher's own cgroup and makes one *leaf* per
step in it. Nothing outside that parent is ever written, killed or removed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from worker.sandbox.errors import SandboxError
from worker.sandbox.plan import StepLimits


@dataclass(frozen=True, slots=True)
class Mount:
    """One mounted cgroup hierarchy, as /proc/self/mountinfo tells it (proc_pid_mountinfo(5))."""

    kind: str
    root: str
    target: str
    controllers: frozenset[str]


class Leaf(Protocol):
    """The cgroup of one step. Times in seconds, sizes in bytes."""

    name: str
    birth: int
    """Directory to be born in by CLONE_INTO_CGROUP, or -1."""
    join: tuple[int, ...]
    """Descriptors of ``cgroup.procs``: a task that writes ``0`` to each has joined."""
    reset: tuple[int, ...]
    """Descriptors of counters that a ``0`` written just before execve sets to zero."""
    cpu: int
    """Descriptor of the file with the CPU time; read just before execve it is the baseline."""
    oom: int
    """An eventfd(2) that counts OOM events (v1), or -1 where the kernel kills the whole cgroup itself (v2)."""

    def set_limits(self, limits: StepLimits) -> None:
        """Write every limit; ``SandboxError`` when one can't be."""

    def lift_quota(self) -> None:
        """Let killed processes die at full speed: under a small CPU quota that alone can take seconds."""

    def set_baseline(self, text: str) -> None:
        """What ``cpu`` read just before execve: set-up that is not charged to the job."""

    def cpu_time(self) -> float:
        """CPU seconds used by the job so far."""

    def usage(self) -> dict[str, float | int | None]:
        """Every counter of the cgroup, under the names of ``Usage``."""

    def oom_kills(self) -> int:
        """How many processes the kernel killed at the memory limit."""

    def close(self) -> None:
        """Close every descriptor."""


class Driver(Protocol):
    """One kind of cgroup hierarchy; owner of the parent of all leaves."""

    version: str
    oom_source: str
    pids_source: str
    cpu_source: str

    def create(self, name: str) -> Leaf:
        """Make the cgroup of one step, without limits yet."""

    def discard(self, name: str) -> bool:
        """Remove the cgroup of one step; False while tasks are still in it."""

    def sweep(self) -> int:
        """Kill and remove what a dead launcher left in our parent; how many leaves there were."""

    def remove(self) -> None:
        """Remove the parent itself."""


def mounts(mountinfo: str) -> Iterator[Mount]:
    """The cgroup hierarchies in the text of a mountinfo file."""
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        fields, rest = before.split(), after.split()
        if len(rest) >= 3 and rest[0] in ("cgroup", "cgroup2"):
            yield Mount(rest[0], fields[3], fields[4], frozenset(rest[2].split(",")))


def own_paths(text: str) -> dict[str, str]:
    """Controller (``""`` for v2) -> our cgroup, from the text of /proc/self/cgroup (cgroups(7))."""
    paths: dict[str, str] = {}
    for line in text.splitlines():
        _, controllers, path = line.split(":", 2)
        for controller in controllers.split(","):
            paths[controller] = path
    return paths


def directory(mount: Mount, path: str) -> str:
    """The directory of cgroup ``path`` in a hierarchy mounted with some root."""
    relative = os.path.relpath(path, mount.root) if path.startswith(mount.root) else "."
    return os.path.normpath(os.path.join(mount.target, relative))


def detect(parent: str) -> Driver:
    """The driver for this host, with its parent cgroup ``parent`` made.

    cgroup v2 where its hierarchy has the controllers, else v1; ``SandboxError`` with the remedy when neither
    can hold every cap: there is no way to run a job without limits.
    """
    from worker.sandbox.cgroup_v1 import CONTROLLERS as V1_CONTROLLERS
    from worker.sandbox.cgroup_v1 import CgroupV1
    from worker.sandbox.cgroup_v2 import CONTROLLERS as V2_CONTROLLERS
    from worker.sandbox.cgroup_v2 import CgroupV2

    with open("/proc/self/mountinfo") as file:
        hierarchies = list(mounts(file.read()))
    with open("/proc/self/cgroup") as file:
        own = own_paths(file.read())
    found: set[str] = set()
    for hierarchy in hierarchies:
        if hierarchy.kind == "cgroup2":
            base = _v2_base(directory(hierarchy, own.get("", "/")), hierarchy.target)
            found = set(read(os.path.join(base, "cgroup.controllers")).split())
            if found >= V2_CONTROLLERS:
                return CgroupV2(base, parent, found)
    v1 = {
        controller: directory(hierarchy, own.get(controller, "/"))
        for hierarchy in hierarchies
        if hierarchy.kind == "cgroup"
        for controller in V1_CONTROLLERS & hierarchy.controllers
    }
    if v1.keys() >= V1_CONTROLLERS:
        return CgroupV1(v1, parent)
    missing = sorted((V2_CONTROLLERS - found) if not v1 else (V1_CONTROLLERS - v1.keys()))
    raise SandboxError(
        "cgroup",
        subject="controllers " + ", ".join(missing),
        hint="mount cgroup2 with cpu, memory and pids (or delegate them: systemd Delegate=yes), "
        "or the cgroup v1 controllers cpu, cpuacct, memory, pids and blkio",
    )


def _v2_base(own: str, top: str) -> str:
    """Our own cgroup where it was delegated to us alone, else the top: a cgroup with processes of others
    can't give controllers to children ("no internal processes", cgroups(7))."""
    others = set(read(os.path.join(own, "cgroup.procs")).split()) - {str(os.getpid())}
    return top if others else own


def require_swap_limit(file: str, parent: int) -> None:
    """``SandboxError`` where the host swaps and this controller can't keep a job from it."""
    swaps = read("/proc/swaps").splitlines()[1:]
    if swaps and not os.access(file, os.F_OK, dir_fd=parent):
        hint = "switch swap off (swapoff -a), or boot with swapaccount=1"
        raise SandboxError("cgroup", subject=file, hint=hint)


def read(path: str, parent: int | None = None) -> str:
    """A cgroup file's text, empty when it is not there."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC, dir_fd=parent)
    except FileNotFoundError:
        return ""
    try:
        return os.read(fd, 65536).decode()
    finally:
        os.close(fd)


def write(path: str, value: str, parent: int | None = None) -> None:
    """Write one value; ``SandboxError`` names the file and the value."""
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC, dir_fd=parent)
        try:
            os.write(fd, value.encode())
        finally:
            os.close(fd)
    except OSError as problem:
        raise SandboxError("cgroup", problem.errno or 0, f"{path} = {value}") from problem


def keyed(text: str) -> dict[str, int]:
    """A flat-keyed file (``usage_usec 12``) as numbers."""
    pairs = (line.split() for line in text.splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdigit()}


def number(text: str) -> int | None:
    """A single-valued file as a number; ``None`` when absent or ``max``."""
    text = text.strip()
    return int(text) if text.isdigit() else None


def remove(name: str, parent: int) -> bool:
    """rmdir of a cgroup; False while it can't be removed (EBUSY: there are tasks in it)."""
    try:
        os.rmdir(name, dir_fd=parent)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def kill_all(procs: str, parent: int) -> None:
    """SIGKILL every process that a ``cgroup.procs`` file names (for leaves of a dead launcher)."""
    import signal

    for pid in read(procs, parent).split():
        try:
            os.kill(int(pid), signal.SIGKILL)
        except ProcessLookupError:
            continue
