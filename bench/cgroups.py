"""Cgroups for the floor: one parent per hierarchy, below the cgroup that we are in."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

V1_CONTROLLERS = ("memory", "cpu", "cpuacct", "pids")
V2_CONTROLLERS = ("memory", "cpu", "pids")


def mounts() -> dict[str, Path]:
    """Where each v1 controller and, as "v2", the unified hierarchy is mounted."""
    found: dict[str, Path] = {}
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, after = line.split(" - ")
        kind, _, options = after.split()[:3]
        where = Path(before.split()[4])
        if kind == "cgroup2":
            found.setdefault("v2", where)
        elif kind == "cgroup":
            for controller in set(options.split(",")) & set(V1_CONTROLLERS):
                found.setdefault(controller, where)
    return found


def own(mounted: dict[str, Path]) -> dict[str, Path]:
    """The directory of the cgroup that this process is in, per hierarchy."""
    found = {}
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, names, path = line.split(":", 2)
        for name in names.split(",") if names else ["v2"]:
            if name in mounted:
                found[name] = mounted[name] / path.lstrip("/")
    return found


@contextlib.contextmanager
def parents() -> Iterator[list[str]]:
    """Make the parents and yield them as the floor's KIND=DIRECTORY words; remove them at the end.

    On v2 the parent lies in the root of the hierarchy, because a cgroup with processes of its own
    hands no controllers down.
    """
    mounted = mounts()
    if "memory" in mounted:
        here = own(mounted)
        chosen = {name: here[name] / "stockade-bench" for name in V1_CONTROLLERS if name in here}
        shared = {path.resolve(): name for name, path in chosen.items()}  # cpu and cpuacct may be one
        chosen = {name: path for path, name in shared.items()}
    else:
        root = mounted["v2"]
        (root / "cgroup.subtree_control").write_text(" ".join(f"+{name}" for name in V2_CONTROLLERS))
        chosen = {"v2": root / "stockade-bench"}
    made = []
    try:
        for name, path in chosen.items():
            path.mkdir(exist_ok=True)
            made.append(path)
            if name == "v2":
                (path / "cgroup.subtree_control").write_text(" ".join(f"+{name}" for name in V2_CONTROLLERS))
        yield [f"{name}={path}" for name, path in chosen.items()]
    finally:
        for path in made:
            path.rmdir()
