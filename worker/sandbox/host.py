"""The launcher's own surroundings: its number on this machine, its small mount namespace, its id ranges."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import stat

from worker.sandbox import syscalls as sc
from worker.sandbox.errors import SandboxError
from worker.sandbox.images import Images
from worker.sandbox.init import IDS
from worker.sandbox.layout import READ_ONLY, SAFE
from worker.sandbox.rootfs import (
    HOST,
    HOST_NOTE,
    SKELETON,
    Rootfs,
    host_views,
    make_host_layer,
    make_skeleton,
)

RUN = "/run/stockade"
LAUNCHERS, SLOTS = 16, 256
FIRST_ID = 0x7000_0000
"""Above every range that Debian's subuid and systemd's containers use (systemd UIDS-GIDS.md), below 2^31."""

MOUNTS = 2
"""Idmapped mounts of one root: our own layer, the store."""
OWN_LAYERS = "layers"
"""Directory of the layers that a launcher makes for itself, below its state."""


class Number:
    """A number that no other launcher on the machine has: it names the cgroup parent and the id ranges.

    An flock(2) on a file below /run/stockade, so it is free again when the launcher dies, however it does.
    """

    def __init__(self) -> None:
        os.makedirs(RUN, 0o755, exist_ok=True)
        self._run = os.open(RUN, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        status = os.fstat(self._run)
        if status.st_uid != 0 or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise SandboxError("number", subject=RUN, hint="must belong to root and be writable by root only")
        for number in range(LAUNCHERS):
            if self._take(number):
                self.value = number
                return
        raise SandboxError("number", subject=RUN, hint=f"{LAUNCHERS} launchers are running already")

    def _take(self, number: int) -> bool:
        self._name = f"launcher-{number}"
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        self._lock = os.open(self._name, flags, 0o600, dir_fd=self._run)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The one before us may have removed the file between our open and our lock.
            if os.stat(self._name, dir_fd=self._run).st_ino == os.fstat(self._lock).st_ino:
                return True
        except (BlockingIOError, FileNotFoundError):
            pass
        os.close(self._lock)
        return False

    def release(self) -> None:
        """Remove the file and give the number back."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._name, dir_fd=self._run)
        os.close(self._lock)
        os.close(self._run)

    def base(self, slot: int) -> int:
        """The first id of one of our slots."""
        return FIRST_ID + (self.value * SLOTS + slot) * IDS


class IdRange:
    """One slot's id range; its user namespace only carries the mapping for idmapped mounts, nobody lives in it."""

    def __init__(self, base: int, host_proc: int) -> None:
        self.base = base
        pid, pidfd = sc.clone3(sc.CLONE_NEWUSER, pidfd=True)
        if pid == 0:
            sc.prctl(sc.PR_SET_PDEATHSIG, signal.SIGKILL)
            while True:
                signal.pause()
        try:
            for name in ("uid_map", "gid_map"):
                fd = os.open(f"{pid}/{name}", os.O_WRONLY | os.O_CLOEXEC, dir_fd=host_proc)
                os.write(fd, f"0 {base} {IDS}".encode())
                os.close(fd)
            self.userns = os.open(f"{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC, dir_fd=host_proc)
        except OSError as problem:
            raise SandboxError("userns", problem.errno or 0, f"map {base}") from problem
        finally:
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            os.waitid(os.P_PIDFD, pidfd, os.WEXITED)
            os.close(pidfd)


def images(state: str, store: str, host_image: bool) -> Images:
    """Make our own layers below ``state``, and open the store of images; paths are as the small namespace has them."""
    own = os.path.join(state, OWN_LAYERS)
    for directory in (own, store):
        os.makedirs(directory, 0o700, exist_ok=True)
        os.chown(directory, 0, 0)
        os.chmod(directory, 0o700)
    make_skeleton(os.path.join(own, SKELETON))
    opened = os.open(store, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    if not host_image:
        return Images(opened, None)
    make_host_layer(os.path.join(own, HOST))
    views = tuple((f"host/{name}", name) for name in host_views())
    return Images(opened, Rootfs((f"own/{HOST}",), ("l/0",), views, HOST_NOTE))


def enter_small_namespace(state: str, store: str) -> None:
    """Leave the host's mounts behind: every sandbox starts from a copy of what is mounted here.

    Afterwards ``/`` holds our own layers, the store of images, the host directories of the ``host`` image, and empty
    mount points.
    """
    try:
        sc.unshare(sc.CLONE_NEWNS)
        sc.mount("", "/", "", sc.MS_REC | sc.MS_PRIVATE)
        root = sc.new_mount("tmpfs", {"size": "1m", "mode": "0755"}, SAFE)
        views = {f"host/{name}": sc.clone_mount(f"/{name}") for name in host_views()}
        views["own"] = sc.clone_mount(os.path.join(state, OWN_LAYERS))
        views["store"] = sc.clone_mount(store)
        sc.attach(root, RUN)
        os.chdir(RUN)
        for name in ("host", "empty", "newroot", "stage", "jobs", "l", *views):
            os.mkdir(name, 0o755)
        for number in range(MOUNTS):
            os.mkdir(f"l/{number}", 0o755)
        for name, mount in views.items():
            # Layers become idmapped copies for each sandbox; an idmapped mount can't be made from another one.
            sc.set_mount_attributes(mount, READ_ONLY)
            sc.attach(mount, name)
            os.close(mount)
        sc.pivot_root(".", ".")
        sc.umount(".")
        os.chdir("/")
        os.close(root)
    except OSError as problem:
        raise SandboxError("mount namespace", problem.errno or 0, str(problem.filename or "")) from problem
