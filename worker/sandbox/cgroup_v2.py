"""cgroup v2: one leaf per step (Documentation/admin-guide/cgroup-v2.rst)."""

from __future__ import annotations

import contextlib
import os
import time

from worker.sandbox import cgroups
from worker.sandbox.cgroups import keyed, number, read, write
from worker.sandbox.errors import SandboxError
from worker.sandbox.plan import StepLimits

CONTROLLERS = frozenset({"cpu", "memory", "pids"})
OPTIONAL = frozenset({"io"})
PERIOD = 100_000


class CgroupV2:
    """The parent cgroup, its controllers enabled for the leaves."""

    version = "v2"
    oom_source = "memory.events oom_kill"
    pids_source = "pids.events max"
    cpu_source = "cpu.stat usage_usec"

    def __init__(self, base: str, name: str, available: set[str]) -> None:
        self._base, self._name = base, name
        wanted = CONTROLLERS | (OPTIONAL & available)
        # Only a real root has no cgroup.type; elsewhere a cgroup with processes can't give controllers on.
        self._delegated = os.path.exists(os.path.join(base, "cgroup.type"))
        if self._delegated:
            self._leave(base)
        enable = " ".join(f"+{controller}" for controller in sorted(wanted))
        try:
            write(os.path.join(base, "cgroup.subtree_control"), enable)
        except SandboxError as problem:
            problem.hint = "the service needs a delegated cgroup of its own (systemd: Delegate=yes)"
            raise
        with contextlib.suppress(FileExistsError):
            os.mkdir(os.path.join(base, name), 0o755)
        self._parent = os.open(os.path.join(base, name), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._parent_of_parent = os.open(base, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        write("cgroup.subtree_control", enable, self._parent)
        cgroups.require_swap_limit("memory.swap.max", self._parent)
        self.sweep()

    def _leave(self, base: str) -> None:
        supervisor = os.path.join(base, f"{self._name}-launcher")
        with contextlib.suppress(FileExistsError):
            os.mkdir(supervisor, 0o755)
        write(os.path.join(supervisor, "cgroup.procs"), "0")

    def create(self, name: str) -> cgroups.Leaf:
        """Make one leaf; an existing one of that name is an error, never taken over."""
        try:
            os.mkdir(name, 0o755, dir_fd=self._parent)
        except OSError as problem:
            raise SandboxError("cgroup", problem.errno or 0, f"mkdir {self._name}/{name}") from problem
        return LeafV2(self._parent, name)

    def discard(self, name: str) -> bool:
        """rmdir; where that fails cgroup.kill, and False."""
        if cgroups.remove(name, self._parent):
            return True
        with contextlib.suppress(SandboxError):
            write(f"{name}/cgroup.kill", "1", self._parent)
        return False

    def sweep(self) -> int:
        """Kill and remove every leaf of a dead launcher."""
        names = [entry.name for entry in os.scandir(self._parent) if entry.is_dir(follow_symlinks=False)]
        for name in names:
            write(f"{name}/cgroup.kill", "1", self._parent)
            deadline = time.monotonic() + 5
            while not cgroups.remove(name, self._parent) and time.monotonic() < deadline:
                time.sleep(0.01)
        return len(names)

    def remove(self) -> None:
        """Remove the parent; it stays when a stuck leaf is still in it."""
        cgroups.remove(self._name, self._parent_of_parent)
        if self._delegated:
            # Back where we came from, which takes processes again once no controller is given on.
            with contextlib.suppress(SandboxError):
                given = read("cgroup.subtree_control", self._parent_of_parent).split()
                disable = " ".join(f"-{controller}" for controller in given)
                write("cgroup.subtree_control", disable, self._parent_of_parent)
                write("cgroup.procs", "0", self._parent_of_parent)
                cgroups.remove(f"{self._name}-launcher", self._parent_of_parent)
        os.close(self._parent)
        os.close(self._parent_of_parent)


class LeafV2:
    """The cgroup of one step."""

    join: tuple[int, ...] = ()
    oom = -1

    def __init__(self, parent: int, name: str) -> None:
        self.name, self._parent = name, parent
        self.birth = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=parent)
        self.cpu = os.open("cpu.stat", os.O_RDONLY | os.O_CLOEXEC, dir_fd=self.birth)
        self.reset: tuple[int, ...] = ()
        # memory.peak is resettable since 6.12, for readers of the very descriptor that was written.
        # Before, root may open it for writing all the same, and the write is refused.
        if os.stat("memory.peak", dir_fd=self.birth).st_mode & 0o200:
            self.reset = (os.open("memory.peak", os.O_RDWR | os.O_CLOEXEC, dir_fd=self.birth),)
        self._baseline: dict[str, int] = {}

    def set_limits(self, limits: StepLimits) -> None:
        """memory.max, memory.swap.max, memory.oom.group, pids.max, cpu.max."""
        write("memory.max", str(limits.memory), self.birth)
        if _exists("memory.swap.max", self.birth):
            write("memory.swap.max", "0", self.birth)
        write("memory.oom.group", "1", self.birth)
        write("pids.max", str(limits.pids), self.birth)
        write("cpu.max", f"{max(1000, round(limits.cpus * PERIOD))} {PERIOD}", self.birth)

    def lift_quota(self) -> None:
        """cpu.max = max, for processes that are only left to die."""
        write("cpu.max", "max", self.birth)

    def set_baseline(self, text: str) -> None:
        """``cpu.stat`` as it was just before execve."""
        self._baseline = keyed(text)

    def _cpu(self) -> dict[str, int]:
        now = keyed(os.pread(self.cpu, 4096, 0).decode())
        return {key: max(0, value - self._baseline.get(key, 0)) for key, value in now.items()}

    def cpu_time(self) -> float:
        """cpu.stat usage_usec."""
        return self._cpu()["usage_usec"] / 1e6

    def usage(self) -> dict[str, float | int | None]:
        """cpu.stat, memory.peak, pids.peak, pids.events, io.stat."""
        cpu = self._cpu()
        peak = os.pread(self.reset[0], 64, 0).decode() if self.reset else read("memory.peak", self.birth)
        io = _io(read("io.stat", self.birth)) if _exists("io.stat", self.birth) else (None, None)
        return {
            "cpu_time": cpu["usage_usec"] / 1e6,
            "cpu_user": cpu["user_usec"] / 1e6,
            "cpu_system": cpu["system_usec"] / 1e6,
            "cpu_throttled": cpu.get("throttled_usec", 0) / 1e6,
            "memory": number(peak),
            "pids": number(read("pids.peak", self.birth)),
            "pids_refused": keyed(read("pids.events", self.birth)).get("max", 0),
            "io_read_bytes": io[0],
            "io_write_bytes": io[1],
        }

    def oom_kills(self) -> int:
        """memory.events oom_kill."""
        return keyed(read("memory.events", self.birth)).get("oom_kill", 0)

    def close(self) -> None:
        """Close every descriptor."""
        for fd in (self.birth, self.cpu, *self.reset):
            os.close(fd)
        self.birth, self.cpu, self.reset = -1, -1, ()


def _exists(name: str, directory: int) -> bool:
    return os.access(name, os.F_OK, dir_fd=directory)


def _io(text: str) -> tuple[int, int]:
    """Read and written bytes over all devices (``8:0 rbytes=1 wbytes=2 ...``)."""
    totals = {"rbytes": 0, "wbytes": 0}
    for line in text.splitlines():
        for pair in line.split()[1:]:
            key, _, value = pair.partition("=")
            if key in totals:
                totals[key] += int(value)
    return totals["rbytes"], totals["wbytes"]
