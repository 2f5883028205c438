"""The sandbox's file system as data: a list of typed operations, built first, carried out by `mounts.apply`.

A list can be printed and tested without privileges. Targets are relative to the new root, sources to the root of
the launcher's small mount namespace, where the accounted tmpfs is at ``stage`` and the layers are at ``l``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from worker.sandbox import syscalls as sc

SAFE = sc.MOUNT_ATTR_NOSUID | sc.MOUNT_ATTR_NODEV
READ_ONLY = SAFE | sc.MOUNT_ATTR_RDONLY
INERT = READ_ONLY | sc.MOUNT_ATTR_NOEXEC
NO_EXEC = sc.MOUNT_ATTR_NOSUID | sc.MOUNT_ATTR_NOEXEC

STAGE = "stage"
PTYS = 64
"""Pseudo-terminals a sandbox may open; the host's own ``kernel.pty.max`` is shared by all."""

MASKED_FILES = (
    "cmdline config.gz interrupts kallsyms kcore keys key-users kmsg kpagecgroup kpagecount kpageflags "
    "latency_stats locks modules sched_debug softirqs sysrq-trigger timer_list timer_stats"
).split()
MASKED_DIRECTORIES = "acpi asound driver pressure scsi".split()
READ_ONLY_DIRECTORIES = "bus fs irq sys".split()


class New(NamedTuple):
    """A new file system: its type, its options (a flag has the value None), and the mount's attributes."""

    target: str
    kind: str
    options: dict[str, str | None]
    attributes: int


class Bind(NamedTuple):
    """A directory of ours at another place, with attributes of its own; not recursive."""

    target: str
    source: str
    attributes: int


class Devices(NamedTuple):
    """The few harmless device nodes, made by us on the tmpfs just mounted there, never taken from an image."""

    target: str


class Mask(NamedTuple):
    """A file that reads empty and swallows what is written: a copy of the sandbox's own ``/dev/null``."""

    target: str


class ReadOnly(NamedTuple):
    """A directory that can't be written, whoever the writer is."""

    target: str


Operation = New | Bind | Devices | Mask | ReadOnly


def overlay(target: str, lowers: Iterable[str], upper: str = "", work: str = "") -> New:
    """overlayfs, writable when it has an upper.

    Each sandbox has its own, also where nothing is written: file locks live on an overlay's inodes, so two jobs
    never meet on a lock of a shared layer's file.
    """
    options: dict[str, str | None] = {"source": "overlay", "lowerdir": ":".join(lowers)}
    if upper:
        options |= {"upperdir": upper, "workdir": work}
    options |= {"redirect_dir": "nofollow", "metacopy": "off", "index": "off", "xino": "off"}
    return New(target, "overlay", options, SAFE if upper else READ_ONLY)


def hidden(present: Callable[[str], bool]) -> list[Operation]:
    """What of /proc is masked or read-only, as far as this kernel has it and lets others than root at it."""
    empty: dict[str, str | None] = {"size": "4k", "nr_inodes": "1", "mode": "0555"}
    return [
        *(Mask(f"proc/{name}") for name in MASKED_FILES if present(name)),
        *(New(f"proc/{name}", "tmpfs", empty, INERT) for name in MASKED_DIRECTORIES if present(name)),
        *(ReadOnly(f"proc/{name}") for name in READ_ONLY_DIRECTORIES if present(name)),
    ]


def layout(
    layers: Iterable[str], views: Iterable[tuple[str, str]], step: int, proc: Iterable[Operation]
) -> list[Operation]:
    """All mounts of one step, in order: later ones stand on earlier ones.

    layers: the image's layers, topmost first. views: (source, target) of read-only directories of the host.
    step: number of the step. proc: what `hidden` says.
    """
    terminals: dict[str, str | None] = {
        "newinstance": None,
        "ptmxmode": "0666",
        "mode": "0620",
        "max": str(PTYS),
    }
    return [
        overlay("", layers, f"{STAGE}/up-{step}", f"{STAGE}/ovl-{step}"),
        *(overlay(target, (source, "empty")) for source, target in views),
        New("proc", "proc", {"hidepid": "invisible"}, SAFE | sc.MOUNT_ATTR_NOEXEC),
        New("dev", "tmpfs", {"size": "64k", "nr_inodes": "32", "mode": "0755"}, NO_EXEC),
        Devices("dev"),
        New("dev/pts", "devpts", terminals, NO_EXEC),
        Bind("dev/shm", f"{STAGE}/shm-{step}", SAFE | sc.MOUNT_ATTR_NOEXEC),
        Bind("work", f"{STAGE}/work", SAFE),
        *proc,
    ]


def orders(operations: Iterable[Operation]) -> list[tuple[object, ...]]:
    """The list as plain tuples, for `packets`: the operation's name, then its fields."""
    return [(type(operation).__name__, *operation) for operation in operations]
