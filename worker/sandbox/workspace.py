"""The one accounted tmpfs of a job: everything that it can write lies on it, and goes with it.

It is no mount of the launcher's own namespace (a copy of that is made for every sandbox). Where a job has several
steps it is attached in a second mount namespace, the *depot*, from which each step's sandbox gets a copy.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from worker.sandbox import syscalls as sc
from worker.sandbox.layout import SAFE
from worker.sandbox.plan import StepLimits

# What we and overlayfs make for one step is not the job's: root, work, upper, shm and overlay's work directories.
_OWN_INODES, _BETWEEN_STEPS = 7, 2


class Depot:
    """A mount namespace beside the launcher's, for workspaces that outlive a step."""

    def __init__(self, host_proc: int) -> None:
        self._home = os.open("self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC, dir_fd=host_proc)
        sc.unshare(sc.CLONE_NEWNS)
        self._depot = os.open("self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC, dir_fd=host_proc)
        sc.setns(self._home, sc.CLONE_NEWNS)

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Be in the depot for the block; the launcher has one thread and no other work meanwhile."""
        sc.setns(self._depot, sc.CLONE_NEWNS)
        try:
            yield
        finally:
            sc.setns(self._home, sc.CLONE_NEWNS)


class Workspace:
    """The tmpfs of one job. ``directory`` is the descriptor of its root."""

    def __init__(self, depot: Depot, name: str, keep: bool) -> None:
        """``keep``: it will be mounted more than once. Until then there is room for our set-up only."""
        self._depot, self._path, self._kept = depot, f"/jobs/{name}", keep
        options = {"size": "64k", "nr_inodes": "64", "mode": "0755"}
        self._mount = sc.new_mount("tmpfs", dict(options), SAFE)
        self.directory = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self._mount)
        if keep:
            with depot.entered():
                os.mkdir(self._path)
                sc.attach(self._mount, self._path)

    def caps(self, limits: StepLimits, step: int) -> dict[str, str | None]:
        """The tmpfs options for the next step, which init sets when it has built the step's file system.

        A cap below what earlier steps have left in the workspace leaves no room for more.
        """
        size, inodes = limits.disk, limits.disk_inodes
        if step:
            status = os.fstatvfs(self.directory)
            used, files = status.f_blocks - status.f_bfree, status.f_files - status.f_ffree
            size, inodes = max(size, used * status.f_frsize), max(inodes, files - _BETWEEN_STEPS)
            # Until then there is room to build in, however full the job has left it.
            room = {"size": str(size + (64 << 10)), "nr_inodes": str(inodes + 64)}
            sc.reconfigure(self._mount, dict(room))
        return {"size": str(size), "nr_inodes": str(inodes + _OWN_INODES)}

    def mount(self) -> int:
        """A detached mount for the next step; the caller closes it."""
        if not self._kept:
            return os.dup(self._mount)
        with self._depot.entered():
            return sc.clone_mount(self._path)

    def used(self) -> tuple[int, int, int, int]:
        """(bytes, inodes) in use by the job and (bytes, inodes) still free (fstatvfs(3))."""
        status = os.fstatvfs(self.directory)
        used = (status.f_blocks - status.f_bfree) * status.f_frsize
        inodes = max(0, status.f_files - status.f_ffree - _OWN_INODES)
        return used, inodes, status.f_bfree * status.f_frsize, status.f_ffree

    def close(self) -> None:
        """Let go of it; the kernel frees its pages with the last sandbox that has it mounted."""
        if self._kept:
            with self._depot.entered():
                sc.umount(self._path)
                os.rmdir(self._path)
        os.close(self.directory)
        os.close(self._mount)
