"""What the doctor tries: each trial does the real thing once, in a forked child, and leaves nothing behind.

A trial is a function that returns one sentence saying what it saw, or raises :class:`Impossible` (or lets
an ``OSError`` out) when the host cannot do it. :func:`attempt` runs it in a child of its own: namespaces,
mounts, filters and identities changed there go with that child.
"""

from __future__ import annotations

import ctypes
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

PATIENCE = 60.0
"""Seconds until a trial is killed: far above what the slowest (emulated) machine needs."""

FIRST_ID = 2_000_000_000
"""Host uid that the trials map to uid 0 of a user namespace; far from any user's."""
ID_COUNT = 65536

NAMESPACES = {
    "mnt": 0x00020000,
    "cgroup": 0x02000000,
    "uts": 0x04000000,
    "ipc": 0x08000000,
    "user": 0x10000000,
    "pid": 0x20000000,
    "net": 0x40000000,
}
"""CLONE_NEW* of <linux/sched.h> by the name under /proc/PID/ns."""

_MS_REC_PRIVATE = 0x4000 | 0x40000
_OPEN_TREE = 428
_MOUNT_SETATTR = 442
_OPEN_TREE_CLONE = 1
_AT_FDCWD = -100
_AT_EMPTY_PATH = 0x1000
_MOUNT_ATTR_IDMAP = 0x00100000
_PR_SET_NO_NEW_PRIVS = 38
_PR_SET_SECCOMP = 22
_SECCOMP_MODE_FILTER = 2

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


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


def _check(result: int, subject: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), subject)
    return result


def _call(subject: str, number: int, *arguments: object) -> int:
    return _check(_libc.syscall(ctypes.c_long(number), *arguments), subject)


def _unshare(flags: int) -> None:
    _check(_libc.unshare(flags), "unshare")


def _mount(source: str, target: str, kind: str | None, flags: int = 0, options: str = "") -> None:
    result = _libc.mount(
        source.encode(),
        target.encode(),
        kind.encode() if kind else None,
        ctypes.c_ulong(flags),
        options.encode() or None,
    )
    _check(result, f"mount {kind} {target}")


def _private_mounts() -> None:
    _unshare(NAMESPACES["mnt"])
    _mount("none", "/", None, _MS_REC_PRIVATE)


def namespaces() -> str:
    """Make every namespace that a sandbox has except the user namespace, and bring loopback up inside."""
    flags = sum(flag for name, flag in NAMESPACES.items() if name != "user")
    before = {name: os.readlink(f"/proc/self/ns/{name}") for name in NAMESPACES}
    _unshare(flags)
    for name in set(NAMESPACES) - {"user", "pid"}:
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
            _unshare(NAMESPACES["user"])
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
                _check(_libc.setns(namespace, NAMESPACES["user"]), "setns")
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
    tree = _call(
        f"open_tree {directory}",
        _OPEN_TREE,
        _AT_FDCWD,
        os.fsencode(directory),
        _OPEN_TREE_CLONE | os.O_CLOEXEC,
    )
    try:
        with _user_namespace() as namespace:
            attributes = struct.pack("=QQQQ", _MOUNT_ATTR_IDMAP, 0, 0, namespace)
            _call(
                f"mount_setattr {directory}",
                _MOUNT_SETATTR,
                tree,
                b"",
                _AT_EMPTY_PATH,
                attributes,
                ctypes.c_size_t(len(attributes)),
            )
        seen = os.fstat(tree).st_uid
    finally:
        os.close(tree)
    if owner < ID_COUNT and seen != FIRST_ID + owner:
        raise Impossible(f"owner {owner} of {directory} shows as {seen} through the idmapped mount")
    return f"{directory}: owner {owner} shows as {seen} through an idmapped mount"


def overlay() -> str:
    """Mount an overlay with an upper of bounded bytes and inodes, and run into both bounds."""
    _private_mounts()
    _mount("stockade-doctor", "/tmp", "tmpfs", 0, "size=1m,nr_inodes=32,mode=700")
    for name in ("lower", "upper", "work", "merged"):
        os.mkdir(f"/tmp/{name}")
    Path("/tmp/lower/file").write_text("lower")
    options = "lowerdir=lower,upperdir=upper,workdir=work,redirect_dir=nofollow,metacopy=off,index=off"
    os.chdir("/tmp")
    _mount("overlay", "/tmp/merged", "overlay", 0, options)
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
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *one) for one in instructions))
    program = ctypes.create_string_buffer(struct.pack("@HP", len(instructions), ctypes.addressof(code)))
    zero = ctypes.c_ulong(0)
    _check(
        _libc.prctl(_PR_SET_NO_NEW_PRIVS, ctypes.c_ulong(1), zero, zero, zero), "prctl PR_SET_NO_NEW_PRIVS"
    )
    _check(
        _libc.prctl(_PR_SET_SECCOMP, ctypes.c_ulong(_SECCOMP_MODE_FILTER), program, zero, zero),
        "seccomp filter",
    )
    try:
        os.uname()
    except OSError as error:
        if error.errno == refusal:
            return "a filter was installed and refused the call it names"
        raise
    raise Impossible("a filter was installed and did not refuse the call it names")
