"""How a process that handles an image's bytes is locked up. Standard library only.

Such a process is a fresh interpreter, not a fork: it holds nothing of its parent's but the descriptors it is given. It
was born in namespaces of its own (PID, mount, network, IPC, UTS) and gives up the rest itself, in this order: its root
becomes the one directory that it is for; a user namespace whose ids, on the host, are nobody's; the capabilities that
its work needs, in that namespace only; limits; no_new_privs; a system call filter.

The directory comes to it as an idmapped mount: what it makes as id 5 of its namespace is id 5 on disk, as the image has
it, and the process never has an id of the host's.
"""

from __future__ import annotations

import fcntl
import os
import resource
import signal
import sys
from collections.abc import Sequence

from worker.sandbox import syscalls as sc
from worker.sandbox.init import ALL_CAPABILITIES

_NAMESPACES = sc.CLONE_NEWPID | sc.CLONE_NEWNS | sc.CLONE_NEWNET | sc.CLONE_NEWIPC | sc.CLONE_NEWUTS
_ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
_START = "import sys; sys.path.insert(0, sys.argv[1]); from worker.images import {0}; {0}.main()"
_HIGH = 200
"""Descriptors are moved above this number before they are put into their order."""

MEMORY = 1 << 30
"""Bytes of address space of a confined process."""
CPU_SECONDS = 1800
OPEN_FILES = 128


def start(
    module: str, arguments: Sequence[str], fds: Sequence[int], bpf: bytes, *, site: bool = False
) -> int:
    """Run ``worker.images.<module>`` in a process of its own, a child of ours: its pid.

    fds: what it gets, as descriptors 3, 4, ...; its standard streams are /dev/null. bpf: its filter, for `shut`.
    site: whether it may import installed packages.
    """
    flags = ["-I"] if site else ["-I", "-S"]
    argv = [sys.executable, *flags, "-c", _START.format(module), _ROOT, bpf.hex(), *arguments]
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    pid, _ = sc.clone3(_NAMESPACES)
    if pid == 0:
        try:
            sc.prctl(sc.PR_SET_PDEATHSIG, signal.SIGKILL)
            high = [fcntl.fcntl(fd, fcntl.F_DUPFD, _HIGH) for fd in (null, null, null, *fds)]
            for number, fd in enumerate(high):
                os.dup2(fd, number)
            os.closerange(len(high), 2**31 - 1)
            os.chdir("/")
            os.execve(sys.executable, argv, {"LC_ALL": "C.UTF-8"})
        finally:
            os._exit(127)
    os.close(null)
    return pid


def enter(root: int, userns: int, capabilities: frozenset[int]) -> None:
    """Make the detached mount ``root`` all that there is, and become root of the user namespace."""
    sc.prctl(sc.PR_SET_PDEATHSIG, signal.SIGKILL)
    sc.mount("", "/", "", sc.MS_REC | sc.MS_PRIVATE)
    sc.attach(root, "/proc")
    os.chdir("/proc")
    sc.pivot_root(".", ".")
    sc.umount(".")
    os.chdir("/")
    os.close(root)
    become(userns, capabilities)


def become(userns: int, capabilities: frozenset[int]) -> None:
    """Root of a user namespace with these capabilities in it, and nobody anywhere else."""
    sc.prctl(sc.PR_SET_DUMPABLE, 0)
    os.setgroups([])
    sc.setns(userns, sc.CLONE_NEWUSER)
    os.close(userns)
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)
    sc.drop_from_bounding_set(ALL_CAPABILITIES - capabilities)
    sc.set_capabilities(sc.capability_sets(capabilities))
    sc.prctl(sc.PR_SET_NO_NEW_PRIVS, 1)
    # The ids have changed, and with them the death signal went (prctl(2)).
    sc.prctl(sc.PR_SET_PDEATHSIG, signal.SIGKILL)
    os.umask(0)


def shut() -> None:
    """Limits and the filter: from now on only the calls that the work needs."""
    for kind, most in (
        (resource.RLIMIT_AS, MEMORY),
        (resource.RLIMIT_CPU, CPU_SECONDS),
        (resource.RLIMIT_NOFILE, OPEN_FILES),
        (resource.RLIMIT_CORE, 0),
    ):
        hard = resource.getrlimit(kind)[1]
        value = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(kind, (value, value))
    sc.install_filter(bytes.fromhex(sys.argv[2]))
