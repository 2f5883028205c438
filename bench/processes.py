"""What processes use, from /proc (proc(5))."""

import os
from pathlib import Path

PROC = Path("/proc")
TICK = 1 / os.sysconf("SC_CLK_TCK")


def stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat after the name, so that field N of proc(5) is at N - 3."""
    return (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()


def children(parent: int) -> list[int]:
    """The children of a process, those of all its threads."""
    found: list[int] = []
    for task in (PROC / str(parent) / "task").iterdir():
        found += map(int, (task / "children").read_text().split())
    return found


def tree(root: int) -> set[int]:
    """A process and everything below it."""
    found, todo = {root}, [root]
    while todo:
        try:
            below = children(todo.pop())
        except OSError:
            continue  # gone meanwhile
        found.update(below)
        todo += below
    return found


def cpu_seconds(pids: set[int]) -> float:
    """CPU time of processes and of the children that they have waited for; user and system."""
    total = 0
    for pid in pids:
        try:
            total += sum(int(value) for value in stat(pid)[11:15])
        except OSError:
            continue
    return total * TICK


def private_bytes(pid: int) -> int:
    """Memory that only this process has: Private_Clean + Private_Dirty of smaps_rollup."""
    lines = (PROC / str(pid) / "smaps_rollup").read_text().splitlines()
    return 1024 * sum(
        int(line.split()[1]) for line in lines if line.startswith(("Private_Clean", "Private_Dirty"))
    )
