"""The sandbox's file system as data: a list of typed operations, built first, carried out by one loop.

Every target is resolved inside the new root without following a symlink (openat2(2)): an image whose ``/proc``
or ``/dev`` is a symlink is refused, it can't lead a mount elsewhere.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from worker.sandbox import syscalls as sc
from worker.sandbox.errors import SandboxError

SAFE = sc.MOUNT_ATTR_NOSUID | sc.MOUNT_ATTR_NODEV
READ_ONLY = SAFE | sc.MOUNT_ATTR_RDONLY
INERT = READ_ONLY | sc.MOUNT_ATTR_NOEXEC

PTYS = 64
"""Pseudo-terminals a sandbox may open; the host's own ``kernel.pty.max`` is shared by all."""

MASKED_FILES = (
    "cmdline config.gz interrupts kallsyms kcore keys key-users kmsg kpagecgroup kpagecount kpageflags "
    "latency_stats modules sched_debug softirqs sysrq-trigger timer_list timer_stats"
).split()
MASKED_DIRECTORIES = "acpi asound driver scsi".split()
READ_ONLY_DIRECTORIES = "bus fs irq sys".split()

DEVICES = {"null": (1, 3), "zero": (1, 5), "full": (1, 7), "random": (1, 8), "urandom": (1, 9), "tty": (5, 0)}
DEVICE_LINKS = {
    "fd": "/proc/self/fd",
    "stdin": "/proc/self/fd/0",
    "stdout": "/proc/self/fd/1",
    "stderr": "/proc/self/fd/2",
    "ptmx": "pts/ptmx",
}


@dataclass(frozen=True, slots=True)
class Overlay:
    """overlayfs over directories, writable when it has an upper. One per sandbox: file locks live on its inodes,
    so two jobs never meet on a lock of a shared layer's file."""

    target: str
    lowers: tuple[str, ...]
    upper: str = ""
    work: str = ""


@dataclass(frozen=True, slots=True)
class Bind:
    """One directory or file of ours at another place; not recursive."""

    source: str
    target: str
    attributes: int


@dataclass(frozen=True, slots=True)
class Proc:
    """A fresh procfs that shows a job its own processes only."""

    target: str


@dataclass(frozen=True, slots=True)
class Devices:
    """A small tmpfs with the few harmless devices, made by us and never taken from an image."""

    target: str


@dataclass(frozen=True, slots=True)
class Terminals:
    """A devpts instance of the sandbox's own."""

    target: str


@dataclass(frozen=True, slots=True)
class Mask:
    """Something of /proc that reads empty: a file by our own ``/dev/null``, a directory by an empty tmpfs."""

    target: str
    directory: bool


@dataclass(frozen=True, slots=True)
class ReadOnly:
    """A directory of /proc that can't be written, whoever the writer is."""

    target: str


Operation = Overlay | Bind | Proc | Devices | Terminals | Mask | ReadOnly


def masks(present: Callable[[str], bool]) -> list[Operation]:
    """What of /proc is hidden or read-only, as far as this kernel has it and lets others than root at it."""
    operations: list[Operation] = []
    operations += [Mask(f"proc/{name}", False) for name in MASKED_FILES if present(name)]
    operations += [Mask(f"proc/{name}", True) for name in MASKED_DIRECTORIES if present(name)]
    operations += [ReadOnly(f"proc/{name}") for name in READ_ONLY_DIRECTORIES if present(name)]
    return operations


def layout(
    layers: Iterable[str],
    views: Iterable[tuple[str, str]],
    stage: str,
    step: int,
    hidden: Iterable[Operation],
) -> list[Operation]:
    """All mounts of one step, in order: later ones stand on earlier ones.

    layers: the image's layers, topmost first. views: (source, target) of read-only directories of the host.
    stage: where the accounted tmpfs is; all that the job can write lies on it. step: number of the step.
    """
    return [
        Overlay("", tuple(layers), f"{stage}/up-{step}", f"{stage}/ovl-{step}"),
        *(Overlay(target, (source, "empty")) for source, target in views),
        Proc("proc"),
        Devices("dev"),
        Terminals("dev/pts"),
        Bind(f"{stage}/shm-{step}", "dev/shm", SAFE | sc.MOUNT_ATTR_NOEXEC),
        Bind(f"{stage}/work", "work", SAFE),
        *hidden,
    ]


def apply(operations: Iterable[Operation], new_root: str) -> None:
    """Carry the list out; sources are relative to the working directory, targets to ``new_root``.

    Raises ``SandboxError`` with the operation that failed.
    """
    root, made = -1, _Made()
    try:
        for operation in operations:
            try:
                if root < 0:
                    sc.attach(made.mount(operation), new_root)
                    root = os.open(new_root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
                else:
                    _attach(root, operation, made)
            except OSError as problem:
                name = type(operation).__name__.lower()
                raise SandboxError("mount", problem.errno or 0, f"{name} /{operation.target}") from problem
    finally:
        made.close()
        if root >= 0:
            os.close(root)


def _attach(root: int, operation: Operation, made: _Made) -> None:
    target = sc.openat2(root, operation.target, os.O_PATH, sc.RESOLVE_IN_ROOT | sc.RESOLVE_NO_SYMLINKS)
    try:
        if isinstance(operation, ReadOnly):
            mount = sc.clone_mount("", target)
            sc.set_mount_attributes(mount, INERT)
        else:
            mount = made.mount(operation)
        sc.attach(mount, target)
    finally:
        os.close(target)


class _Made:
    """The mounts as descriptors, until they are attached; the two that masks are copied from stay open."""

    def __init__(self) -> None:
        self._open: list[int] = []
        self._null = self._empty = -1

    def mount(self, operation: Operation) -> int:
        """A detached mount for the operation."""
        match operation:
            case Overlay():
                fd = sc.new_mount(
                    "overlay", _overlay_options(operation), SAFE if operation.upper else READ_ONLY
                )
            case Bind():
                fd = sc.clone_mount(operation.source)
                sc.set_mount_attributes(fd, operation.attributes)
            case Proc():
                fd = sc.new_mount("proc", {"hidepid": "invisible"}, SAFE | sc.MOUNT_ATTR_NOEXEC)
            case Devices():
                fd = self._devices()
            case Terminals():
                options = {"newinstance": None, "ptmxmode": "0666", "mode": "0620", "max": str(PTYS)}
                fd = sc.new_mount("devpts", options, sc.MOUNT_ATTR_NOSUID | sc.MOUNT_ATTR_NOEXEC)
            case Mask():
                return self._mask(operation.directory)
            case ReadOnly():
                raise ValueError("a read-only view is a copy of its own target")
        self._open.append(fd)
        return fd

    def _devices(self) -> int:
        fd = sc.new_mount(
            "tmpfs",
            {"size": "64k", "nr_inodes": "32", "mode": "0755"},
            sc.MOUNT_ATTR_NOSUID | sc.MOUNT_ATTR_NOEXEC,
        )
        for name, (major, minor) in DEVICES.items():
            os.mknod(name, stat.S_IFCHR | 0o666, os.makedev(major, minor), dir_fd=fd)
        for name, target in DEVICE_LINKS.items():
            os.symlink(target, name, dir_fd=fd)
        os.mkdir("pts", 0o755, dir_fd=fd)
        os.mkdir("shm", 0o755, dir_fd=fd)
        self._dev = fd
        return fd

    def _mask(self, directory: bool) -> int:
        # A copy of a mount that is not attached anywhere can't be made before kernel 6.15, so the first empty
        # directory is a mount of its own and the null device is copied from the /dev that is attached by now.
        if directory:
            fd = sc.new_mount("tmpfs", {"size": "4k", "nr_inodes": "1", "mode": "0555"}, INERT)
        else:
            fd = sc.clone_mount("null", self._dev)
            sc.set_mount_attributes(fd, sc.MOUNT_ATTR_NOSUID | sc.MOUNT_ATTR_NOEXEC)
        self._open.append(fd)
        return fd

    def close(self) -> None:
        """Close every descriptor; attached mounts stay."""
        for fd in self._open:
            os.close(fd)


def _overlay_options(operation: Overlay) -> dict[str, str | None]:
    options: dict[str, str | None] = {"source": "overlay", "lowerdir": ":".join(operation.lowers)}
    if operation.upper:
        options |= {"upperdir": operation.upper, "workdir": operation.work}
    return options | {"redirect_dir": "nofollow", "metacopy": "off", "index": "off", "xino": "off"}


def make_directory(path: str, mode: int, owner: int = 0) -> None:
    """mkdir with an exact mode and owner; it must not be there yet."""
    os.mkdir(path, mode)
    os.chmod(path, mode)
    if owner:
        os.chown(path, owner, owner)
