"""The system calls that the confined children may make, as filters.

Compiled here, by their parent and once, so that they need not load the compiler. What is not named is refused with
EPERM.
"""

from __future__ import annotations

from functools import cache

from worker.sandbox import seccomp

_COMMON = (
    "read readv write close lseek fstat fcntl brk mmap munmap mremap mprotect madvise futex "
    "rt_sigaction rt_sigprocmask rt_sigreturn getrandom clock_gettime exit exit_group"
).split()
_FILES = (
    "pread64 newfstatat openat openat2 readlinkat getdents64 dup getpid gettid "
    "mkdirat mknodat symlinkat linkat unlinkat fchown fchownat fchmod utimensat ftruncate "
    "fsetxattr fgetxattr flistxattr"
).split()
_CALLS = {"unpacker": _COMMON + _FILES, "decompressor": _COMMON}


@cache
def of(module: str) -> bytes:
    """The filter of a child, by the name of its module."""
    rule = {"names": _CALLS[module], "action": "SCMP_ACT_ALLOW"}
    return seccomp.compile_profile({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [rule]})
