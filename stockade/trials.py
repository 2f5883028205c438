"""What the doctor tries: each trial does the real thing once, in a forked child, and leaves nothing behind.

A trial is a function that returns one sentence saying what it saw, or raises :class:`Impossible` (or lets
an ``OSError`` out) when the host cannot do it. :func:`attempt` runs it in a child of its own: namespaces,
mounts, filters and identities changed there go with that child.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import select
import signal
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from worker.sandbox import syscalls

PATIENCE = 60.0
"""Seconds until a trial is killed: far above what the slowest (emulated) machine needs."""

FIRST_ID = 2_000_000_000
"""Host uid that the trials map to uid 0 of a user namespace; far from any user's."""
ID_COUNT = 65536

NAMESPACES = {
    "mnt": syscalls.CLONE_NEWNS,
    "cgroup": syscalls.CLONE_NEWCGROUP,
    "uts": syscalls.CLONE_NEWUTS,
    "ipc": syscalls.CLONE_NEWIPC,
    "pid": syscalls.CLONE_NEWPID,
    "net": syscalls.CLONE_NEWNET,
}
"""What a sandbox is made of besides its user namespace, by the name under /proc/PID/ns."""


class Impossible(Exception):
    """The host cannot do what the trial tried; the text says what was seen instead."""


def attempt(trial: Callable[[], str]) -> str:
    """Run ``trial`` in a forked child and return what it saw.

    Raises :class:`Impossible` when the trial failed, died or took longer than :data:`PATIENCE`.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.setpgid(0, 0)
        os.close(reading)
        _answer(trial, writing)
    os.close(writing)
    try:
        return _hear(reading, child)
    finally:
        os.close(reading)


def _answer(trial: Callable[[], str], writing: int) -> None:
    """The child's whole life: try, report, vanish without running any exit handler of the parent."""
    try:
        report = {"seen": trial()}
    except OSError as error:
        name = errno.errorcode.get(error.errno or 0, "?")
        report = {"failed": f"{name}: {error.filename or ''} {error.strerror or error}".replace("  ", " ")}
    except BaseException as error:  # the parent needs every reason, an assertion's too
        report = {"failed": str(error) or type(error).__name__}
    os.write(writing, json.dumps(report).encode())
    os._exit(0)


def _hear(reading: int, child: int) -> str:
    ready, _, _ = select.select([reading], [], [], PATIENCE)
    answer = os.read(reading, 65536) if ready else b""
    if not ready:
        os.killpg(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if not answer:
        how = "took too long" if not ready else f"died with wait status {status}"
        raise Impossible(f"the trial {how}")
    report = json.loads(answer)
    if "failed" in report:
        raise Impossible(report["failed"])
    return str(report["seen"])


@contextmanager
def _doing(what: str) -> Iterator[None]:
    """Name the call in an ``OSError`` that comes out of it."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, what) from None


def namespaces() -> str:
    """Make every namespace that a sandbox has except the user namespace, and bring loopback up inside."""
    before = {name: os.readlink(f"/proc/self/ns/{name}") for name in NAMESPACES}
    with _doing("unshare"):
        syscalls.unshare(sum(NAMESPACES.values()))
    for name in set(NAMESPACES) - {"pid"}:
        if os.readlink(f"/proc/self/ns/{name}") == before[name]:
            raise Impossible(f"unshare succeeded but the {name} namespace is still the old one")
    init = os.fork()
    if init == 0:
        os._exit(0 if os.getpid() == 1 else 1)
    if os.waitpid(init, 0)[1]:
        raise Impossible("the first process of a new PID namespace is not PID 1")
    _loopback_up()
    return "mount, pid, net, ipc, uts and cgroup namespaces made, loopback up"


def _loopback_up() -> None:
    set_flags, up = 0x8914, 1
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, set_flags, struct.pack("16sh14x", b"lo", up))


@contextmanager
def _user_namespace() -> Iterator[int]:
    """A descriptor of a user namespace that maps 0 to :data:`FIRST_ID`."""
    ready_reading, ready_writing = os.pipe()
    end_reading, end_writing = os.pipe()
    holder = os.fork()
    if holder == 0:
        os.close(end_writing)
        try:
            syscalls.unshare(syscalls.CLONE_NEWUSER)
            os.write(ready_writing, b"+")
            os.read(end_reading, 1)
        finally:
            os._exit(0)
    os.close(ready_writing)
    try:
        if os.read(ready_reading, 1) != b"+":
            raise Impossible("a user namespace could not be made (unshare CLONE_NEWUSER refused)")
        for name in ("uid_map", "gid_map"):
            Path(f"/proc/{holder}/{name}").write_text(f"0 {FIRST_ID} {ID_COUNT}\n")
        namespace = os.open(f"/proc/{holder}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
        try:
            yield namespace
        finally:
            os.close(namespace)
    finally:
        for descriptor in (ready_reading, end_reading, end_writing):
            os.close(descriptor)
        os.waitpid(holder, 0)


def user_namespace() -> str:
    """Make a user namespace with a range of 65,536 ids that does not hold host uid 0, and live in it."""
    with _user_namespace() as namespace:
        inside = os.fork()
        if inside == 0:
            try:
                syscalls.setns(namespace, syscalls.CLONE_NEWUSER)
                os.setresgid(0, 0, 0)
                os.setresuid(0, 0, 0)
                os._exit(0 if os.getuid() == 0 else 1)
            finally:
                os._exit(2)
        if os.waitpid(inside, 0)[1]:
            raise Impossible("uid 0 of the new user namespace could not be taken")
    return f"user namespace made with {ID_COUNT} ids from {FIRST_ID}"


def idmapped(directory: Path) -> str:
    """Make an idmapped copy of the mount that holds ``directory`` and see its owner through it."""
    owner = directory.stat().st_uid
    with _doing(f"open_tree {directory}"):
        tree = syscalls.clone_mount(str(directory))
    try:
        with _user_namespace() as namespace, _doing(f"mount_setattr {directory}"):
            syscalls.set_mount_attributes(tree, 0, namespace)
        seen = os.fstat(tree).st_uid
    finally:
        os.close(tree)
    if owner < ID_COUNT and seen != FIRST_ID + owner:
        raise Impossible(f"owner {owner} of {directory} shows as {seen} through the idmapped mount")
    return f"{directory}: owner {owner} shows as {seen} through an idmapped mount"


def kill_all() -> str:
    """Kill the first process of a PID namespace: a stopped process in it must be gone at once."""
    reading, writing = os.pipe2(os.O_CLOEXEC)
    init, _ = syscalls.clone3(syscalls.CLONE_NEWPID)
    if init == 0:
        if os.fork() == 0:
            os.kill(os.getpid(), signal.SIGSTOP)
        os.waitpid(-1, os.WUNTRACED)
        os.write(writing, b"+")
        signal.pause()
    os.close(writing)
    os.read(reading, 1)
    os.kill(init, signal.SIGKILL)
    os.waitpid(init, 0)
    # The kernel reaps the others before init itself, and only they still hold the pipe open.
    ready, _, _ = select.select([reading], [], [], PATIENCE)
    if not ready or os.read(reading, 1):
        raise Impossible("a process of the namespace outlived its init")
    return "a stopped process was gone with the init of its PID namespace"


def overlay() -> str:
    """Mount an overlay with an upper of bounded bytes and inodes, and run into both bounds."""
    syscalls.unshare(syscalls.CLONE_NEWNS)
    syscalls.mount("none", "/", "", syscalls.MS_REC | syscalls.MS_PRIVATE)
    with _doing("mount tmpfs"):
        syscalls.mount("stockade-doctor", "/tmp", "tmpfs", 0, "size=1m,nr_inodes=32,mode=700")
    for name in ("lower", "upper", "work", "merged"):
        os.mkdir(f"/tmp/{name}")
    Path("/tmp/lower/file").write_text("lower")
    options = "lowerdir=lower,upperdir=upper,workdir=work,redirect_dir=nofollow,metacopy=off,index=off"
    os.chdir("/tmp")
    with _doing("mount overlay"):
        syscalls.mount("overlay", "/tmp/merged", "overlay", 0, options)
    Path("/tmp/merged/file").write_text("upper")
    if Path("/tmp/lower/file").read_text() != "lower":
        raise Impossible("a write through the overlay reached the lower directory")
    _refused("bytes", lambda: Path("/tmp/merged/big").write_bytes(bytes(2 << 20)))
    os.unlink("/tmp/merged/big")
    _refused("inodes", lambda: [Path(f"/tmp/merged/{n}").write_bytes(b"") for n in range(64)])
    return "overlay over a tmpfs refused at its byte and its inode bound"


def _refused(bound: str, action: Callable[[], object]) -> None:
    try:
        action()
    except OSError as error:
        if error.errno == errno.ENOSPC:
            return
        raise
    raise Impossible(f"the bound of {bound} did not hold")


def seccomp() -> str:
    """Install a filter that refuses one system call with an errno of its own, and make that call."""
    uname = {"x86_64": 63, "aarch64": 160}[os.uname().machine]
    refusal, allow, errno_base = errno.EXDEV, 0x7FFF0000, 0x00050000
    load_number, jump_if_equal, give_back = 0x20, 0x15, 0x06
    instructions = [
        (load_number, 0, 0, 0),
        (jump_if_equal, 0, 1, uname),
        (give_back, 0, 0, errno_base | refusal),
        (give_back, 0, 0, allow),
    ]
    with _doing("prctl PR_SET_NO_NEW_PRIVS"):
        syscalls.prctl(syscalls.PR_SET_NO_NEW_PRIVS, 1)
    with _doing("seccomp"):
        syscalls.install_filter(b"".join(struct.pack("=HBBI", *one) for one in instructions))
    try:
        os.uname()
    except OSError as error:
        if error.errno == refusal:
            return "a filter was installed and refused the call it names"
        raise
    raise Impossible("a filter was installed and did not refuse the call it names")
