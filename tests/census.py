"""The host census: what a job could leave behind, counted before and after, and compared.

One launcher is looked at; sandboxes of other launchers on the same host are told apart by their ancestors.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

FIRST_JOB_UID = 1_000_000
SHMEM_TOLERANCE = 48 << 20
"""Bytes of shared memory that other programs of the host may take meanwhile."""
SLOWDOWN = float(os.environ.get("STOCKADE_TEST_SLOWDOWN", "1"))
SETTLE_SECONDS = 5.0 * SLOWDOWN
"""How long asynchronous teardown (namespaces, cgroup removal) may take."""

_LAUNCHER_WORDS = ("worker.sandbox.launcher", "stockade-launcher")


def read(path: Path | str) -> str:
    """A file's text, empty when it is gone or closed to us."""
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return ""


def processes() -> dict[int, int]:
    """Every process of the host, with its parent."""
    found = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit() and (match := re.search(r"^PPid:\t(\d+)", read(f"/proc/{entry}/status"), re.M)):
            found[int(entry)] = int(match[1])
    return found


def uid_of(pid: int) -> int:
    """The real uid of a process, -1 when it is gone."""
    match = re.search(r"^Uid:\t(\d+)", read(f"/proc/{pid}/status"), re.M)
    return int(match[1]) if match else -1


def ancestors(pid: int, parents: dict[int, int]) -> Iterator[int]:
    """The parents of ``pid``, nearest first."""
    while (pid := parents.get(pid, 0)) > 0:
        yield pid


def descendants(root: int) -> list[int]:
    """Every living process below ``root``."""
    parents = processes()
    return sorted(pid for pid in parents if root in ancestors(pid, parents))


def is_ours(pid: int) -> bool:
    """Whether a process is the service's own: prepared for a job, or at work for one, but not a job's."""
    return read(f"/proc/{pid}/comm").startswith("stockade-")


def job_processes(launcher: int) -> frozenset[str]:
    """Processes with a job's uid that are of our launcher, or that no other launcher accounts for."""
    parents = processes()
    found = set()
    for pid in parents:
        if uid_of(pid) >= FIRST_JOB_UID:
            above = list(ancestors(pid, parents))
            if (launcher in above and not is_ours(pid)) or not any(_is_launcher(parent) for parent in above):
                found.add(pid)
    return frozenset(f"{pid} {read(f'/proc/{pid}/comm').strip()}" for pid in found)


def helpers(launcher: int) -> tuple[str, ...]:
    """Names of the launcher's own processes: what it has prepared, and what is still at work for it."""
    below = descendants(launcher)
    ours = (pid for pid in below if uid_of(pid) < FIRST_JOB_UID or is_ours(pid))
    return tuple(sorted(read(f"/proc/{pid}/comm").strip() for pid in ours))


def _is_launcher(pid: int) -> bool:
    command = read(f"/proc/{pid}/cmdline")
    return any(word in command for word in _LAUNCHER_WORDS)


def cgroup_mounts() -> list[Path]:
    """Where control groups are mounted here, in every hierarchy."""
    lines = (line.split(" - ") for line in read("/proc/self/mountinfo").splitlines())
    return [Path(before.split()[4]) for before, after in lines if after.split()[0] in ("cgroup", "cgroup2")]


def parent_cgroup(launcher: int) -> str:
    """The name of the cgroup below which our launcher makes its leaves."""
    for pid in descendants(launcher):
        if match := re.search(r"/(stockade-\d+)/", read(f"/proc/{pid}/cgroup")):
            return match[1]
    return ""


def cgroups(launcher: int) -> tuple[str, ...]:
    """How many leaves our launcher has in each hierarchy."""
    name = parent_cgroup(launcher)
    found = []
    for mount in cgroup_mounts():
        for directory, names, _ in os.walk(mount):
            if name and os.path.basename(directory) == name:
                found.append(f"{len(names)} in {directory}")
    return tuple(sorted(found))


def tree(root: Path) -> frozenset[str]:
    """Every name below ``root``, with its kind and owner."""
    found = set()
    for directory, names, files in os.walk(root):
        for name in names + files:
            path = os.path.join(directory, name)
            try:
                about = os.lstat(path)
            except FileNotFoundError:
                continue
            found.add(f"{path[len(str(root)) :]} {about.st_mode:o} {about.st_uid}")
    return frozenset(found)


def digest(paths: list[Path]) -> str:
    """One SHA-256 over names and contents."""
    total = hashlib.sha256()
    for path in sorted(paths):
        total.update(str(path).encode() + b"\0" + path.read_bytes())
    return total.hexdigest()


def identity(path: Path) -> tuple[Any, ...]:
    """All of a file that an attack could change: mode, owner, size, times, content."""
    about = path.lstat()
    content = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
    return (
        about.st_mode,
        about.st_uid,
        about.st_gid,
        about.st_size,
        about.st_mtime_ns,
        about.st_ctime_ns,
        content,
    )


def descriptors(launcher: int) -> int:
    """How many the launcher has open, but for its id ranges: those are kept, as many as were in use at one time."""
    directory = Path(f"/proc/{launcher}/fd")
    return (
        sum(not _target(path).startswith("user:") for path in directory.iterdir())
        if directory.exists()
        else 0
    )


def _target(link: Path) -> str:
    try:
        return os.readlink(link)
    except OSError:
        return ""


def shmem() -> int:
    """Bytes of Shmem in /proc/meminfo."""
    match = re.search(r"^Shmem:\s+(\d+) kB", read("/proc/meminfo"), re.M)
    return int(match[1]) << 10 if match else 0


@dataclass(frozen=True)
class Census:
    """What is on the host that a job of one launcher could have left there."""

    processes: frozenset[str]
    helpers: tuple[str, ...]
    cgroups: tuple[str, ...]
    mounts: frozenset[str]
    descriptors: int
    links: frozenset[str]
    loop_devices: frozenset[str]
    state: frozenset[str]
    shared_memory: int
    ipc: str
    core_pattern: str
    source: str


def take(launcher: int, state: Path, source: Path) -> Census:
    """Count now. ``source`` is the directory of the code that the launcher runs."""
    mounts = re.sub(r"^\d+ \d+ \d+:\d+ ", "", read(f"/proc/{launcher}/mountinfo"), flags=re.M)
    return Census(
        processes=job_processes(launcher),
        helpers=helpers(launcher),
        cgroups=cgroups(launcher),
        mounts=frozenset(mounts.splitlines()),
        descriptors=descriptors(launcher),
        links=frozenset(line.split(":")[0].strip() for line in read("/proc/net/dev").splitlines()[2:]),
        loop_devices=frozenset(str(path) for path in Path("/sys/block").glob("loop*/loop/backing_file")),
        state=tree(state),
        shared_memory=shmem(),
        ipc="".join(read(f"/proc/sysvipc/{kind}") for kind in ("shm", "msg", "sem")),
        core_pattern=read("/proc/sys/kernel/core_pattern"),
        source=digest(list(source.rglob("*.py"))),
    )


def difference(before: Census, after: Census) -> list[str]:
    """One line for everything that is there now and was not, or is gone and should not be."""
    lines = []
    for field in fields(Census):
        old, new = getattr(before, field.name), getattr(after, field.name)
        if isinstance(old, frozenset):
            lines += [f"{field.name}: new: {item}" for item in sorted(new - old)]
            if field.name not in ("processes", "state"):
                lines += [f"{field.name}: gone: {item}" for item in sorted(old - new)]
        elif field.name == "shared_memory":
            if new - old > SHMEM_TOLERANCE:
                lines.append(f"shared memory: {new - old} bytes more than before")
        elif field.name == "descriptors":
            if new > old:
                lines.append(f"launcher descriptors: {old} before, {new} after")
        elif old != new:
            lines.append(f"{field.name}: was {old!r}, is {new!r}")
    return lines


def settled(launcher: int, state: Path, source: Path) -> Census:
    """A census of a moment at which the launcher is at rest: two in a row that agree."""
    end = time.monotonic() + SETTLE_SECONDS
    before = take(launcher, state, source)
    while time.monotonic() < end:
        time.sleep(0.03)
        after = take(launcher, state, source)
        if not difference(before, after) and not difference(after, before):
            break
        before = after
    return before


@contextmanager
def unchanged(launcher: int, state: Path, source: Path) -> Iterator[None]:
    """Assert that the host is afterwards as it was before; waits for asynchronous teardown."""
    before = settled(launcher, state, source)
    yield
    end = time.monotonic() + SETTLE_SECONDS
    while lines := difference(before, take(launcher, state, source)):
        if time.monotonic() > end:
            raise AssertionError("the host is not as it was:\n" + "\n".join(lines))
        time.sleep(0.05)
