"""Every system call that Python's ``os`` does not offer, in one place, typed and checked.

Each wrapper raises ``OSError`` with the kernel's errno. The library is loaded as ``PyDLL`` so that the
interpreter lock stays taken over the call: the launcher has one thread, and a child that comes out of
``clone3`` must find the interpreter in the state in which it was left.
"""

from __future__ import annotations

import ctypes
import os
import struct
from _functools import partial  # type: ignore[import-not-found]  # functools itself imports much
from ctypes import c_char_p, c_int, c_long, c_size_t, c_uint, c_ulong, c_void_p

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_libc = ctypes.PyDLL(None, use_errno=True)

# Numbers from 424 on are the same on every architecture (include/uapi/asm-generic/unistd.h).
_NR_OPEN_TREE, _NR_MOVE_MOUNT, _NR_FSOPEN, _NR_FSCONFIG, _NR_FSMOUNT, _NR_FSPICK = range(428, 434)
_NR_CLONE3, _NR_OPENAT2, _NR_MOUNT_SETATTR = 435, 437, 442
_PER_ARCH = {"x86_64": (155, 317, 13), "aarch64": (41, 277, 134)}
_NR_PIVOT_ROOT, _NR_SECCOMP, _NR_RT_SIGACTION = _PER_ARCH.get(os.uname().machine, (-1, -1, -1))

CLONE_NEWTIME, CLONE_NEWNS, CLONE_NEWCGROUP, CLONE_NEWUTS = 0x80, 0x20000, 0x02000000, 0x04000000
CLONE_NEWIPC, CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x08000000, 0x10000000, 0x20000000, 0x40000000
CLONE_PIDFD, CLONE_PARENT, CLONE_INTO_CGROUP = 0x1000, 0x8000, 0x200000000

AT_FDCWD, AT_EMPTY_PATH, AT_RECURSIVE = -100, 0x1000, 0x8000
OPEN_TREE_CLONE, OPEN_TREE_CLOEXEC = 1, os.O_CLOEXEC
MOVE_MOUNT_F_EMPTY_PATH, MOVE_MOUNT_T_EMPTY_PATH = 0x04, 0x40
FSOPEN_CLOEXEC, FSMOUNT_CLOEXEC, FSPICK_CLOEXEC, FSPICK_EMPTY_PATH = 1, 1, 1, 8
FSCONFIG_SET_FLAG, FSCONFIG_SET_STRING, FSCONFIG_CMD_CREATE, FSCONFIG_CMD_RECONFIGURE = 0, 1, 6, 7
MOUNT_ATTR_RDONLY, MOUNT_ATTR_NOSUID, MOUNT_ATTR_NODEV, MOUNT_ATTR_NOEXEC = 1, 2, 4, 8
MOUNT_ATTR_IDMAP = 0x100000
MS_NOSUID, MS_NODEV, MS_REMOUNT, MS_REC, MS_PRIVATE = 2, 4, 32, 16384, 1 << 18
MNT_DETACH = 2
RESOLVE_NO_XDEV, RESOLVE_NO_MAGICLINKS, RESOLVE_NO_SYMLINKS = 1, 2, 4
RESOLVE_BENEATH, RESOLVE_IN_ROOT = 8, 16

PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_KEEPCAPS, PR_SET_NAME = 1, 4, 8, 15
PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS, PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL = 24, 38, 47, 4
SECCOMP_SET_MODE_FILTER = 1
_CAPABILITY_HEADER = struct.pack("=Ii", 0x20080522, 0)
CAP_SYS_ADMIN, CAP_LAST = 21, 40

CAPABILITIES = (
    "CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE "
    "NET_BIND_SERVICE NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT "
    "SYS_PTRACE SYS_PACCT SYS_ADMIN SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE "
    "AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ "
    "PERFMON BPF CHECKPOINT_RESTORE"
).split()
"""Capability names in the order of their numbers (linux/capability.h)."""


def _check(result: int, _function: object, _arguments: object) -> int:
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def _libcall(name: str, *types: type, result: type = c_int) -> Callable[..., int]:
    """A library function with its types; a result of -1 raises ``OSError``."""
    function = _libc[
        name
    ]  # not an attribute: each look-up by item is an object of its own, with its own types
    function.argtypes, function.restype = types, result
    function.errcheck = _check  # type: ignore[assignment]
    return function


def _syscall(number: int, *types: type) -> Callable[..., int]:
    """syscall(2) with the number bound."""
    bound: Callable[..., int] = partial(_libcall("syscall", c_long, *types, result=c_long), number)
    return bound


_open_tree = _syscall(_NR_OPEN_TREE, c_int, c_char_p, c_uint)
_move_mount = _syscall(_NR_MOVE_MOUNT, c_int, c_char_p, c_int, c_char_p, c_uint)
_fsopen = _syscall(_NR_FSOPEN, c_char_p, c_uint)
_fsconfig = _syscall(_NR_FSCONFIG, c_int, c_uint, c_char_p, c_char_p, c_int)
_fspick = _syscall(_NR_FSPICK, c_int, c_char_p, c_uint)
_fsmount = _syscall(_NR_FSMOUNT, c_int, c_uint, c_uint)
_clone3 = _syscall(_NR_CLONE3, c_char_p, c_size_t)
_openat2 = _syscall(_NR_OPENAT2, c_int, c_char_p, c_char_p, c_size_t)
_mount_setattr = _syscall(_NR_MOUNT_SETATTR, c_int, c_char_p, c_uint, c_char_p, c_size_t)
_pivot_root = _syscall(_NR_PIVOT_ROOT, c_char_p, c_char_p)
_seccomp = _syscall(_NR_SECCOMP, c_uint, c_uint, c_void_p)
_rt_sigaction = _syscall(_NR_RT_SIGACTION, c_int, c_char_p, c_char_p, c_size_t)
_mount = _libcall("mount", c_char_p, c_char_p, c_char_p, c_ulong, c_char_p)
_umount2 = _libcall("umount2", c_char_p, c_int)
_unshare = _libcall("unshare", c_int)
_setns = _libcall("setns", c_int, c_int)
_prctl = _libcall("prctl", c_int, c_ulong, c_ulong, c_ulong, c_ulong)
_prctl_text = _libcall("prctl", c_int, c_char_p)
_capset = _libcall("capset", c_char_p, c_char_p)
_syncfs = _libcall("syncfs", c_int)
_sethostname = _libcall("sethostname", c_char_p, c_size_t)


def clone3(flags: int, *, exit_signal: int = 17, cgroup: int = -1, pidfd: bool = False) -> tuple[int, int]:
    """clone3(2) without a new stack, as fork. Returns (pid, pidfd); in the child (0, -1)."""
    slot = c_int(-1)
    if pidfd:
        flags |= CLONE_PIDFD
    if cgroup >= 0:
        flags |= CLONE_INTO_CGROUP
    arguments = struct.pack(
        "=11Q",
        flags,
        ctypes.addressof(slot) if pidfd else 0,
        0,
        0,
        exit_signal,
        0,
        0,
        0,
        0,
        0,
        max(cgroup, 0),
    )
    pid = _clone3(arguments, len(arguments))
    return (pid, slot.value) if pid else (0, -1)


def unshare(flags: int) -> None:
    """unshare(2)."""
    _unshare(flags)


def setns(fd: int, kind: int) -> None:
    """setns(2)."""
    _setns(fd, kind)


def mount(source: str, target: str, kind: str, flags: int, data: str = "") -> None:
    """mount(2)."""
    _mount(source.encode(), target.encode(), kind.encode(), flags, data.encode() or None)


def umount(target: str, flags: int = MNT_DETACH) -> None:
    """umount2(2); detaches by default."""
    _umount2(target.encode(), flags)


def pivot_root(new: str, old: str) -> None:
    """pivot_root(2)."""
    _pivot_root(new.encode(), old.encode())


def new_mount(kind: str, options: dict[str, str | None], attributes: int) -> int:
    """fsopen + fsconfig + fsmount: a detached mount's descriptor. An option without value is a flag."""
    context = _fsopen(kind.encode(), FSOPEN_CLOEXEC)
    try:
        _configure(context, options, FSCONFIG_CMD_CREATE)
        return _fsmount(context, FSMOUNT_CLOEXEC, attributes)
    finally:
        os.close(context)


def reconfigure(mount_fd: int, options: dict[str, str | None]) -> None:
    """fspick + fsconfig: change options of the file system that a mount's descriptor shows."""
    context = _fspick(mount_fd, b"", FSPICK_CLOEXEC | FSPICK_EMPTY_PATH)
    try:
        _configure(context, options, FSCONFIG_CMD_RECONFIGURE)
    finally:
        os.close(context)


def _configure(context: int, options: dict[str, str | None], command: int) -> None:
    for key, value in options.items():
        kind = FSCONFIG_SET_FLAG if value is None else FSCONFIG_SET_STRING
        _fsconfig(context, kind, key.encode(), None if value is None else value.encode(), 0)
    _fsconfig(context, command, None, None, 0)


def clone_mount(path: str, directory: int = AT_FDCWD, recursive: bool = False) -> int:
    """open_tree(2) with OPEN_TREE_CLONE: a detached copy of the mount at ``path``."""
    flags = OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | (AT_EMPTY_PATH if not path else 0)
    return _open_tree(directory, path.encode(), flags | (AT_RECURSIVE if recursive else 0))


def attach(mount_fd: int, target: str | int) -> None:
    """move_mount(2): attach a detached mount at a path, or at the directory open as a descriptor."""
    if isinstance(target, int):
        flags = MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH
        _move_mount(mount_fd, b"", target, b"", flags)
    else:
        _move_mount(mount_fd, b"", AT_FDCWD, target.encode(), MOVE_MOUNT_F_EMPTY_PATH)


def set_mount_attributes(mount_fd: int, attributes: int, userns: int = -1, recursive: bool = False) -> None:
    """mount_setattr(2) on a mount's descriptor; with ``userns`` the mount becomes idmapped."""
    if userns >= 0:
        attributes |= MOUNT_ATTR_IDMAP
    data = struct.pack("=4Q", attributes, 0, 0, max(userns, 0))
    _mount_setattr(mount_fd, b"", AT_EMPTY_PATH | (AT_RECURSIVE if recursive else 0), data, len(data))


def openat2(directory: int, path: str | bytes, flags: int, resolve: int, mode: int = 0) -> int:
    """openat2(2); always close-on-exec."""
    how = struct.pack("=3Q", flags | os.O_CLOEXEC, mode, resolve)
    return _openat2(directory, os.fsencode(path), how, len(how))


def prctl(option: int, second: int = 0, third: int = 0) -> None:
    """prctl(2)."""
    _prctl(option, second, third, 0, 0)


def set_name(name: str) -> None:
    """PR_SET_NAME: what ``ps`` shows (15 bytes)."""
    _prctl_text(PR_SET_NAME, name.encode())


def syncfs(fd: int) -> None:
    """syncfs(2): what was written to the file system of ``fd`` is on disk."""
    _syncfs(fd)


def sethostname(name: str) -> None:
    """sethostname(2)."""
    _sethostname(name.encode(), len(name.encode()))


def reset_internal_signals() -> None:
    """SIG_DFL for the two signals that glibc keeps to itself; a parent that used posix_spawn(3), such as make,
    leaves them ignored, and sigaction(2) by way of the library refuses to touch them."""
    for number in (32, 33):
        _rt_sigaction(number, bytes(32), None, 8)


def drop_from_bounding_set(capabilities: Iterable[int]) -> None:
    """PR_CAPBSET_DROP of each (capabilities(7))."""
    for capability in capabilities:
        _prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)


def capability_sets(keep: frozenset[int]) -> bytes:
    """capset(2)'s data: effective and permitted are ``keep``, inheritable is empty."""
    bits = sum(1 << capability for capability in keep)
    low, high = bits & 0xFFFFFFFF, bits >> 32
    return struct.pack("=6I", low, low, 0, high, high, 0)


def set_capabilities(sets: bytes) -> None:
    """capset(2) with what ``capability_sets`` gave."""
    _capset(_CAPABILITY_HEADER, sets)


class Filter:
    """``struct sock_fprog`` of an array of ``struct sock_filter``, laid out once for many tasks."""

    def __init__(self, bpf: bytes) -> None:
        self._code = ctypes.create_string_buffer(bpf, len(bpf))
        self._program = ctypes.create_string_buffer(
            struct.pack("@HP", len(bpf) // 8, ctypes.addressof(self._code))
        )
        self.address = ctypes.addressof(self._program)

    def install(self) -> None:
        """seccomp(2) SECCOMP_SET_MODE_FILTER."""
        _seccomp(SECCOMP_SET_MODE_FILTER, 0, self.address)


def install_filter(bpf: bytes) -> None:
    """seccomp(2) SECCOMP_SET_MODE_FILTER with ``struct sock_filter`` bytes."""
    Filter(bpf).install()
