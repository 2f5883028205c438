"""What the doctor tries with control groups: a child is really run into each limit, in a group made for it.

The groups are made by the very drivers that the launcher uses, below a parent ``stockade-doctor-PID``, and are
removed again; a v2 controller that was switched on for a trial is switched off again.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from stockade.trials import PATIENCE, Impossible
from worker.sandbox import cgroup_v1, cgroup_v2, cgroups
from worker.sandbox import syscalls as sc
from worker.sandbox.errors import SandboxError
from worker.sandbox.plan import StepLimits

MEMORY_LIMIT = 16 << 20
PIDS_LIMIT = 4
CPU_SHARE = 0.2
SPIN_SECONDS = 0.6
LIMITS = StepLimits(
    cpus=CPU_SHARE,
    memory=MEMORY_LIMIT,
    pids=PIDS_LIMIT,
    cpu_time=PATIENCE,
    wall_time=PATIENCE,
    disk=1 << 20,
    disk_inodes=64,
    open_files=64,
    file_size=1 << 20,
    stack=8 << 20,
)


@dataclass(frozen=True)
class Hierarchies:
    """Where this host's control groups are: the version that rules resources, and each controller's mount."""

    version: str
    mounts: dict[str, str]
    unified: str

    @property
    def needed(self) -> tuple[str, ...]:
        """The controllers that a sandbox needs on a host of this version."""
        return tuple(sorted(cgroup_v2.CONTROLLERS if self.version == "v2" else cgroup_v1.CONTROLLERS))

    @property
    def missing(self) -> tuple[str, ...]:
        """Those of :attr:`needed` that the host does not have."""
        return tuple(name for name in self.needed if name not in self.mounts)


def find_hierarchies(mountinfo: str | None = None) -> Hierarchies:
    """Read the host's cgroup mounts; v2 when the cgroup2 mount has the memory controller, else v1."""
    text = Path("/proc/self/mountinfo").read_text() if mountinfo is None else mountinfo
    v1: dict[str, str] = {}
    unified = ""
    for mount in cgroups.mounts(text):
        if mount.kind == "cgroup2":
            unified = unified or mount.target
        else:
            v1 |= dict.fromkeys(mount.controllers & cgroup_v1.CONTROLLERS, mount.target)
    available = cgroups.read(f"{unified}/cgroup.controllers").split() if unified else []
    if "memory" in available:
        return Hierarchies("v2", dict.fromkeys(available, unified), unified)
    return Hierarchies("v1", v1, unified)


@contextmanager
def _leaf() -> Iterator[cgroups.Leaf]:
    """A fresh leaf with all of :data:`LIMITS`; it and its parent are removed on the way out."""
    try:
        with _subtrees_as_before():
            driver = cgroups.detect(f"stockade-doctor-{os.getpid()}")
            with contextlib.ExitStack() as undo:
                undo.callback(driver.remove)
                leaf = driver.create("trial")
                undo.callback(_remove, driver, leaf.name)
                undo.callback(leaf.close)
                leaf.set_limits(LIMITS)
                yield leaf
    except SandboxError as problem:
        raise Impossible(str(problem)) from problem


@contextmanager
def _subtrees_as_before() -> Iterator[None]:
    """Switch off again, at the top of each v2 hierarchy, what a driver switches on."""
    mounts = cgroups.mounts(Path("/proc/self/mountinfo").read_text())
    controls = [Path(mount.target, "cgroup.subtree_control") for mount in mounts if mount.kind == "cgroup2"]
    before = {control: set(control.read_text().split()) for control in controls}
    try:
        yield
    finally:
        for control, enabled in before.items():
            for name in set(control.read_text().split()) - enabled:
                with contextlib.suppress(OSError):  # somebody else has begun to use it meanwhile
                    control.write_text(f"-{name}")


def _remove(driver: cgroups.Driver, name: str) -> None:
    """Remove the leaf; the kernel needs a moment to let dead tasks go."""
    end = time.monotonic() + 5
    while not driver.discard(name) and time.monotonic() < end:
        time.sleep(0.01)


def _run_inside(leaf: cgroups.Leaf, action: Callable[[], int]) -> int:
    """Fork, join ``leaf`` as the launcher's children do, do ``action``; returns the child's wait status."""
    child, _ = sc.clone3(0, cgroup=leaf.birth)
    if child == 0:
        status = 99
        try:
            for descriptor in leaf.join:
                os.write(descriptor, b"0")
            signal.alarm(int(PATIENCE))
            status = action()
        finally:
            os._exit(status)
    return os.waitpid(child, 0)[1]


def memory_limit() -> str:
    """Run a child into a memory limit: it must be killed and the kernel must have counted it."""
    with _leaf() as leaf:
        if not _swap_is_counted():
            raise Impossible("swap is on and not counted: a job could swap instead of being stopped")
        status = _run_inside(leaf, lambda: _eat_memory(4 * MEMORY_LIMIT))
        kills = leaf.oom_kills()
    if not os.WIFSIGNALED(status) or os.WTERMSIG(status) != signal.SIGKILL or kills < 1:
        raise Impossible(f"a child touched {4 * MEMORY_LIMIT} bytes under a limit of {MEMORY_LIMIT}")
    return f"a child was killed at {MEMORY_LIMIT} bytes"


def _swap_is_counted() -> bool:
    """Whether the leaf's limit holds swap too, or there is no swap to hold."""
    if len(Path("/proc/swaps").read_text().splitlines()) < 2:
        return True
    found = find_hierarchies()
    name = "memory.swap.max" if found.version == "v2" else "memory.memsw.limit_in_bytes"
    return any(Path(found.mounts["memory"]).glob(f"**/stockade-doctor-{os.getpid()}/trial/{name}"))


def _eat_memory(total: int) -> int:
    block = bytearray(total)
    for offset in range(0, total, 4096):
        block[offset] = 1
    return 0


def pids_limit() -> str:
    """Run a child that forks into a limit of processes: forks beyond it must be refused."""
    with _leaf() as leaf:
        refused = os.waitstatus_to_exitcode(_run_inside(leaf, lambda: _refused_forks(2 * PIDS_LIMIT)))
    expected = PIDS_LIMIT + 1  # the child itself is one of PIDS_LIMIT
    seen = f"{refused} of {2 * PIDS_LIMIT} forks were refused under pids.max {PIDS_LIMIT}"
    if refused != expected:
        raise Impossible(seen)
    return seen


def _refused_forks(count: int) -> int:
    children, refused = [], 0
    for _ in range(count):
        try:
            child = os.fork()
        except BlockingIOError:
            refused += 1
            continue
        if child == 0:
            time.sleep(PATIENCE)
            os._exit(0)
        children.append(child)
    for child in children:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    return refused


def cpu_limit() -> str:
    """Run an endless loop under a share of one core: it must get no more than that."""
    with _leaf() as leaf:
        percent = os.waitstatus_to_exitcode(_run_inside(leaf, _spin))
        throttled = float(leaf.usage()["cpu_throttled"] or 0)
    seen = f"a loop got {percent} % of a core under {CPU_SHARE:.0%}, throttled for {throttled:.2f} s"
    if not throttled or not 0 < percent <= 100 * CPU_SHARE * 2:
        raise Impossible(seen)
    return seen


def _spin() -> int:
    start, before = time.monotonic(), time.process_time()
    while time.monotonic() - start < SPIN_SECONDS:
        pass
    return round(100 * (time.process_time() - before) / (time.monotonic() - start))
