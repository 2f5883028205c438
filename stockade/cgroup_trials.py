"""What the doctor tries with control groups: a child is really run into each limit, in a group made for it.

Works on a pure v2 host and on v1 or hybrid ones; hierarchies are found from /proc/self/mountinfo
(cgroups(7)), never guessed. Groups are called ``stockade-doctor-PID`` and are removed again, and a v2
controller that had to be switched on for the trial is switched off again.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from stockade.trials import PATIENCE, Impossible

MEMORY_LIMIT = 16 << 20
PIDS_LIMIT = 4
CPU_SHARE = 0.2
CPU_PERIOD_US = 100_000
SPIN_SECONDS = 0.6

_CONTROLLERS_V1 = ("memory", "pids", "cpu", "cpuacct", "freezer", "blkio")
_CONTROLLERS_V2 = ("memory", "pids", "cpu", "io")


@dataclass(frozen=True)
class Hierarchies:
    """Where this host's control groups are: the version that rules resources, and each controller's root."""

    version: str
    roots: dict[str, Path]
    unified: Path | None

    @property
    def needed(self) -> tuple[str, ...]:
        """The controllers that a sandbox needs on a host of this version."""
        return _CONTROLLERS_V2 if self.version == "v2" else _CONTROLLERS_V1

    @property
    def missing(self) -> tuple[str, ...]:
        """Those of :attr:`needed` that the host does not have."""
        return tuple(name for name in self.needed if name not in self.roots)


def find_hierarchies(mountinfo: str | None = None) -> Hierarchies:
    """Read the host's cgroup mounts; v2 when the cgroup2 mount holds the memory controller, else v1."""
    text = Path("/proc/self/mountinfo").read_text() if mountinfo is None else mountinfo
    v1: dict[str, Path] = {}
    unified: Path | None = None
    for line in text.splitlines():
        before, _, after = line.partition(" - ")
        point = Path(re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), before.split()[4]))
        kind, _, options = after.split(" ", 2)
        if kind == "cgroup2":
            unified = unified or point
        elif kind == "cgroup":
            for name in options.split(","):
                v1.setdefault(name, point)
    if unified and "memory" not in v1:
        with contextlib.suppress(OSError):
            available = (unified / "cgroup.controllers").read_text().split()
            if "memory" in available:
                return Hierarchies("v2", dict.fromkeys(available, unified), unified)
    return Hierarchies("v1", {name: root for name, root in v1.items() if name in _CONTROLLERS_V1}, unified)


@contextmanager
def _group(hierarchies: Hierarchies, controller: str) -> Iterator[Path]:
    """A fresh cgroup with ``controller``; everything in it is killed and it is removed on the way out."""
    if controller not in hierarchies.roots:
        raise Impossible(f"no mounted cgroup hierarchy has the {controller} controller")
    root = hierarchies.roots[controller]
    with contextlib.ExitStack() as undo:
        if hierarchies.version == "v2":
            undo.enter_context(_enabled(root, controller))
        group = root / f"stockade-doctor-{os.getpid()}"
        group.mkdir()
        undo.callback(_remove, group)
        yield group


@contextmanager
def _enabled(root: Path, controller: str) -> Iterator[None]:
    """``controller`` in the root's cgroup.subtree_control, as it was before afterwards."""
    control = root / "cgroup.subtree_control"
    if controller in control.read_text().split():
        yield
        return
    control.write_text(f"+{controller}")
    try:
        yield
    finally:
        control.write_text(f"-{controller}")


def _remove(group: Path) -> None:
    """Kill what is left in ``group`` and remove it; the kernel needs a moment to let dead tasks go."""
    end = time.monotonic() + 5
    while True:
        with contextlib.suppress(OSError):
            for pid in (group / "cgroup.procs").read_text().split():
                os.kill(int(pid), signal.SIGKILL)
        try:
            group.rmdir()
            return
        except FileNotFoundError:
            return
        except OSError as error:
            if error.errno != errno.EBUSY or time.monotonic() > end:
                raise
        time.sleep(0.01)


def _run_inside(group: Path, action: Callable[[], int]) -> int:
    """Fork, join ``group``, do ``action``; returns the child's wait status."""
    child = os.fork()
    if child == 0:
        status = 99
        try:
            (group / "cgroup.procs").write_text(str(os.getpid()))
            signal.alarm(int(PATIENCE))
            status = action()
        finally:
            os._exit(status)
    return os.waitpid(child, 0)[1]


def _count(file: Path, key: str) -> int:
    """The number after ``key`` in a flat-keyed file such as memory.events."""
    for line in file.read_text().splitlines():
        name, _, value = line.partition(" ")
        if name == key:
            return int(value)
    raise Impossible(f"{file} has no line {key!r}")


def memory_limit(hierarchies: Hierarchies) -> str:
    """Run a child into a memory limit: it must be killed and the kernel must have counted it."""
    with _group(hierarchies, "memory") as group:
        if hierarchies.version == "v2":
            (group / "memory.max").write_text(str(MEMORY_LIMIT))
            (group / "memory.oom.group").write_text("1")
            events = group / "memory.events"
        else:
            (group / "memory.limit_in_bytes").write_text(str(MEMORY_LIMIT))
            events = group / "memory.oom_control"
        _forbid_swap(hierarchies.version, group)
        status = _run_inside(group, lambda: _eat_memory(4 * MEMORY_LIMIT))
        kills = _count(events, "oom_kill")
    if not os.WIFSIGNALED(status) or os.WTERMSIG(status) != signal.SIGKILL or kills < 1:
        raise Impossible(f"a child touched {4 * MEMORY_LIMIT} bytes under a limit of {MEMORY_LIMIT}")
    return f"a child was killed at {MEMORY_LIMIT} bytes ({events.name} oom_kill {kills})"


def _forbid_swap(version: str, group: Path) -> None:
    """Swap accounting is only needed where there is swap: without it the file may be missing."""
    if version == "v2":
        file, value = group / "memory.swap.max", "0"
    else:
        file, value = group / "memory.memsw.limit_in_bytes", str(MEMORY_LIMIT)
    swaps = len(Path("/proc/swaps").read_text().splitlines()) > 1
    if file.exists():
        file.write_text(value)
    elif swaps:
        raise Impossible(f"{file.name} is missing and swap is on: a job could swap instead of being stopped")


def _eat_memory(total: int) -> int:
    block = bytearray(total)
    for offset in range(0, total, 4096):
        block[offset] = 1
    return 0


def pids_limit(hierarchies: Hierarchies) -> str:
    """Run a child that forks into a limit of processes: forks beyond it must be refused."""
    with _group(hierarchies, "pids") as group:
        (group / "pids.max").write_text(str(PIDS_LIMIT))
        refused = os.waitstatus_to_exitcode(_run_inside(group, lambda: _refused_forks(2 * PIDS_LIMIT)))
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


def cpu_limit(hierarchies: Hierarchies) -> str:
    """Run an endless loop under a share of one core: it must get no more than that."""
    quota = int(CPU_SHARE * CPU_PERIOD_US)
    with _group(hierarchies, "cpu") as group:
        if hierarchies.version == "v2":
            (group / "cpu.max").write_text(f"{quota} {CPU_PERIOD_US}")
        else:
            (group / "cpu.cfs_period_us").write_text(str(CPU_PERIOD_US))
            (group / "cpu.cfs_quota_us").write_text(str(quota))
        percent = os.waitstatus_to_exitcode(_run_inside(group, _spin))
        throttled = _count(group / "cpu.stat", "nr_throttled")
    seen = f"a loop got {percent} % of a core under {CPU_SHARE:.0%}, throttled {throttled} times"
    if throttled < 1 or not 0 < percent <= 100 * CPU_SHARE * 2:
        raise Impossible(seen)
    return seen


def _spin() -> int:
    start, before = time.monotonic(), time.process_time()
    while time.monotonic() - start < SPIN_SECONDS:
        pass
    return round(100 * (time.process_time() - before) / (time.monotonic() - start))


def group_kill(hierarchies: Hierarchies) -> str:
    """Kill a whole group at once, a stopped process in it too: cgroup.kill, or freeze, kill and thaw."""
    if hierarchies.version == "v2":
        with _group(hierarchies, "memory") as group:
            _kill_sleeper(group, lambda _: (group / "cgroup.kill").write_text("1"))
        return "cgroup.kill ended a stopped process"
    with _group(hierarchies, "freezer") as group:
        _kill_sleeper(group, lambda pid: _freeze_kill_thaw(group, pid))
    return "freeze, kill and thaw ended a stopped process"


def _kill_sleeper(group: Path, kill: Callable[[int], object]) -> None:
    sleeper = os.fork()
    if sleeper == 0:
        try:
            (group / "cgroup.procs").write_text(str(os.getpid()))
            os.kill(os.getpid(), signal.SIGSTOP)
        finally:
            os._exit(0)
    os.waitpid(sleeper, os.WUNTRACED)
    try:
        kill(sleeper)
    finally:
        if not _gone(sleeper, seconds=5):
            os.kill(sleeper, signal.SIGKILL)
            os.waitpid(sleeper, 0)
            raise Impossible("the group was told to die and a process in it lived on")


def _gone(pid: int, seconds: float) -> bool:
    """Whether the child ``pid`` was reaped within ``seconds``."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if os.waitpid(pid, os.WNOHANG)[0]:
            return True
        time.sleep(0.005)
    return False


def _freeze_kill_thaw(group: Path, pid: int) -> None:
    state = group / "freezer.state"
    state.write_text("FROZEN")
    os.kill(pid, signal.SIGKILL)
    state.write_text("THAWED")
