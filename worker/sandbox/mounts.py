"""The loop that carries out a list of mount operations (`layout`).

Every target is resolved inside the new root without following a symlink (openat2(2)): an image whose ``/proc``
or ``/dev`` is a symlink is refused, it can't lead a mount elsewhere.
"""

from __future__ import annotations

import os

from worker.sandbox import syscalls as sc
from worker.sandbox.errors import SandboxError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_INERT = sc.MOUNT_ATTR_NOSUID | sc.MOUNT_ATTR_NODEV | sc.MOUNT_ATTR_NOEXEC | sc.MOUNT_ATTR_RDONLY
_NO_SYMLINKS = sc.RESOLVE_IN_ROOT | sc.RESOLVE_NO_SYMLINKS
_VALUE_MAX = 256
_CHARACTER_DEVICE = 0o020666
DEVICES = (("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0))
LINKS = (
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("ptmx", "pts/ptmx"),
)


def apply(operations: list[tuple[Any, ...]], new_root: str) -> None:
    """Carry the list out; the first operation mounts the root itself, at ``new_root``.

    Raises ``SandboxError`` with the operation that failed.
    """
    root = device = -1
    for operation in operations:
        name, target, *rest = operation
        try:
            if root < 0:
                _mount_root(rest, new_root)
                root = os.open(new_root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
                continue
            place = sc.openat2(root, target, os.O_PATH, _NO_SYMLINKS)
            if name == "New":
                _attach(sc.new_mount(*rest), place)
            elif name == "Bind":
                _attach(_copy(rest[0], sc.AT_FDCWD, rest[1]), place)
            elif name == "Mask":
                _attach(_copy("null", device, sc.MOUNT_ATTR_NOSUID | sc.MOUNT_ATTR_NOEXEC), place)
            elif name == "ReadOnly":
                _attach(_copy("", place, _INERT), place)
            else:
                device, place = place, device
                _make_devices(device)
            if place >= 0:
                os.close(place)
        except OSError as problem:
            raise SandboxError("mount", problem.errno or 0, f"{name.lower()} /{target}") from problem
    os.close(device)
    os.close(root)


def _mount_root(new: list[Any], place: str) -> None:
    """The overlay of the root. fsconfig(2) takes values of up to 255 bytes, and mount(2) a page of all together."""
    kind, options, attributes = new
    if all(value is None or len(value) < _VALUE_MAX for value in options.values()):
        _attach(sc.new_mount(kind, options, attributes), place)
        return
    data = ",".join([f"{key}={value}" for key, value in options.items() if key != "source"])
    sc.mount(options["source"], place, kind, sc.MS_NOSUID | sc.MS_NODEV, data)


def _attach(mount: int, place: int | str) -> None:
    sc.attach(mount, place)
    os.close(mount)


def _copy(source: str, directory: int, attributes: int) -> int:
    mount = sc.clone_mount(source, directory)
    sc.set_mount_attributes(mount, attributes)
    return mount


def _make_devices(directory: int) -> None:
    for name, major, minor in DEVICES:
        os.mknod(name, _CHARACTER_DEVICE, os.makedev(major, minor), dir_fd=directory)
    for name, target in LINKS:
        os.symlink(target, name, dir_fd=directory)
    for name in ("pts", "shm"):
        os.mkdir(name, 0o755, dir_fd=directory)
