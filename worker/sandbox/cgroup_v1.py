"""cgroup v1 and hybrid hosts: the same caps, one directory per controller's hierarchy (cgroups(7)).

No freezer: a job's processes all live in one PID namespace, and killing its init makes the kernel refuse every
further fork in it and kill the rest (pid_namespaces(7)), which freeze, kill, thaw could only imitate.
"""

from __future__ import annotations

import contextlib
import os
import time

from worker.sandbox import cgroups
from worker.sandbox.cgroups import keyed, kill_all, number, read, write
from worker.sandbox.errors import SandboxError
from worker.sandbox.plan import StepLimits

CONTROLLERS = frozenset({"cpu", "cpuacct", "memory", "pids", "blkio"})
PERIOD = 100_000

_SOCKETS, _SOCKETS_SHARE = "memory.kmem.tcp.limit_in_bytes", 8
"""What lies in TCP and UDP sockets is charged to nobody unless this is set, and then counted apart from
``memory``: it may be an eighth of that, beside it."""


class CgroupV1:
    """Our parent cgroup in each hierarchy."""

    version = "v1"
    oom_source = "memory.oom_control oom_kill"
    pids_source = "pids.events max"
    cpu_source = "cpuacct.usage"

    def __init__(self, bases: dict[str, str], name: str) -> None:
        self._name = name
        self._bases = sorted(set(bases.values()))
        opened: dict[str, int] = {}
        for base in self._bases:
            path = os.path.join(base, name)
            try:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(path, 0o755)
                opened[base] = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            except OSError as problem:
                hint = "run the launcher as root, with the cgroup file systems mounted read-write"
                raise SandboxError("cgroup", problem.errno or 0, f"mkdir {path}", hint) from problem
        self._outer = {base: os.open(base, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC) for base in opened}
        self._parents = tuple(opened.values())
        self._by_controller = {controller: opened[base] for controller, base in bases.items()}
        cgroups.require_swap_limit("memory.memsw.limit_in_bytes", self._by_controller["memory"])
        # Switches the accounting on for as long as we run, which would else be done and undone for every step.
        write(_SOCKETS, "-1", self._by_controller["memory"])
        self.sweep()

    def create(self, name: str) -> cgroups.Leaf:
        """Make one leaf in each hierarchy; an existing one is an error, never taken over."""
        made: list[int] = []
        try:
            for parent in self._parents:
                os.mkdir(name, 0o755, dir_fd=parent)
                made.append(parent)
            return LeafV1(name, self._parents, self._by_controller)
        except (OSError, SandboxError) as problem:
            for parent in made:
                cgroups.remove(name, parent)
            if isinstance(problem, SandboxError):
                raise
            raise SandboxError("cgroup", problem.errno or 0, f"mkdir {self._name}/{name}") from problem

    def discard(self, name: str) -> bool:
        """rmdir in each hierarchy; False while tasks are in one."""
        left = [parent for parent in self._parents if not cgroups.remove(name, parent)]
        return not left

    def sweep(self) -> int:
        """Kill and remove every leaf of a dead launcher."""
        count = 0
        for parent in self._parents:
            names = [entry.name for entry in os.scandir(parent) if entry.is_dir(follow_symlinks=False)]
            for name in names:
                deadline = time.monotonic() + 5
                while not cgroups.remove(name, parent) and time.monotonic() < deadline:
                    kill_all(f"{name}/cgroup.procs", parent)
                    time.sleep(0.01)
            count = max(count, len(names))
        return count

    def remove(self) -> None:
        """Remove the parent; it stays when a stuck leaf is still in it."""
        for base in self._outer.values():
            cgroups.remove(self._name, base)
        for fd in (*self._parents, *self._outer.values()):
            os.close(fd)


class LeafV1:
    """The cgroup of one step: the same name in each hierarchy."""

    birth = -1

    def __init__(self, name: str, parents: tuple[int, ...], by_controller: dict[str, int]) -> None:
        self.name, self._parents, self._in = name, parents, by_controller
        with contextlib.ExitStack() as stack:

            def opened(path: str, flags: int, parent: int) -> int:
                fd = os.open(f"{name}/{path}", flags | os.O_CLOEXEC, dir_fd=parent)
                stack.callback(os.close, fd)
                return fd

            self.join = tuple(opened("cgroup.procs", os.O_WRONLY, parent) for parent in parents)
            self.cpu = opened("cpuacct.usage", os.O_RDWR, self._in["cpuacct"])
            self._peak = opened("memory.max_usage_in_bytes", os.O_RDWR, self._in["memory"])
            self.reset: tuple[int, ...] = (self.cpu, self._peak)
            self.oom = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            stack.callback(os.close, self.oom)
            self._oom_control = opened("memory.oom_control", os.O_RDONLY, self._in["memory"])
            write(f"{name}/cgroup.event_control", f"{self.oom} {self._oom_control}", self._in["memory"])
            stack.pop_all()

    def set_limits(self, limits: StepLimits) -> None:
        """memory.limit_in_bytes and memsw (swap off), kmem.tcp, pids.max, cpu.cfs_quota_us."""
        memory = self._in["memory"]
        write(f"{self.name}/memory.limit_in_bytes", str(limits.memory), memory)
        memsw = f"{self.name}/memory.memsw.limit_in_bytes"
        if os.access(memsw, os.F_OK, dir_fd=memory):
            write(memsw, str(limits.memory), memory)
        write(f"{self.name}/{_SOCKETS}", str(limits.memory // _SOCKETS_SHARE), memory)
        write(f"{self.name}/pids.max", str(limits.pids), self._in["pids"])
        quota = max(1000, round(limits.cpus * PERIOD))
        write(f"{self.name}/cpu.cfs_quota_us", str(quota), self._in["cpu"])

    def lift_quota(self) -> None:
        """cpu.cfs_quota_us = -1, for processes that are only left to die."""
        write(f"{self.name}/cpu.cfs_quota_us", "-1", self._in["cpu"])

    def set_baseline(self, text: str) -> None:
        """Nothing to keep: ``cpuacct.usage`` was set to zero just before execve."""

    def cpu_time(self) -> float:
        """cpuacct.usage."""
        return int(os.pread(self.cpu, 64, 0)) / 1e9

    def usage(self) -> dict[str, float | int | None]:
        """cpuacct.*, cpu.stat, memory.max_usage_in_bytes, pids.peak, pids.events, blkio.throttle.*."""
        acct, pids = self._in["cpuacct"], self._in["pids"]
        read_bytes, written = _io(
            read(f"{self.name}/blkio.throttle.io_service_bytes_recursive", self._in["blkio"])
        )
        total = self.cpu_time()
        # User and system are counted in whole ticks; scaled to the exact total as cputime_adjust() does for v2.
        user, system = (int(read(f"{self.name}/cpuacct.usage_{kind}", acct)) for kind in ("user", "sys"))
        share = user / (user + system) if user + system else 1.0
        return {
            "cpu_time": total,
            "cpu_user": total * share,
            "cpu_system": total * (1 - share),
            "cpu_throttled": keyed(read(f"{self.name}/cpu.stat", self._in["cpu"])).get("throttled_time", 0)
            / 1e9,
            "memory": number(os.pread(self._peak, 64, 0).decode()),
            "pids": number(read(f"{self.name}/pids.peak", pids)),
            "pids_refused": keyed(read(f"{self.name}/pids.events", pids)).get("max", 0),
            "io_read_bytes": read_bytes,
            "io_write_bytes": written,
        }

    def oom_kills(self) -> int:
        """memory.oom_control oom_kill."""
        return keyed(os.pread(self._oom_control, 1024, 0).decode()).get("oom_kill", 0)

    def close(self) -> None:
        """Close every descriptor."""
        for fd in (*self.join, *self.reset, self.oom, self._oom_control):
            os.close(fd)
        self.join, self.reset, self.oom, self.cpu = (), (), -1, -1


def _io(text: str) -> tuple[int, int]:
    """Read and written bytes over all devices (``8:0 Read 4096``)."""
    totals = {"Read": 0, "Write": 0}
    for line in text.splitlines():
        fields = line.split()
        if len(fields) == 3 and fields[1] in totals:
            totals[fields[1]] += int(fields[2])
    return totals["Read"], totals["Write"]
