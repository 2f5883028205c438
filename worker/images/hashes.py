"""What is in a layer's tree, as lines that two trees can be compared by; standard library only.

    kind mode uid gid what xattrs<TAB>path<NUL>

kind: ``f`` file, ``d`` directory, ``l`` symlink, ``w`` whiteout, ``?`` what no layer may have. what: of a file the
SHA-256 of its content, of a symlink that of its target. xattrs: the SHA-256 of the extended attributes, or ``-``.
Times are not in it. Lines are in the order of their paths.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator, Mapping

from worker.sandbox import syscalls as sc

CHUNK = 1 << 20
BENEATH = sc.RESOLVE_BENEATH | sc.RESOLVE_NO_SYMLINKS | sc.RESOLVE_NO_XDEV


def line(kind: str, mode: int, uid: int, gid: int, what: str, xattrs: Mapping[bytes, bytes]) -> bytes:
    """A line without its path."""
    text = "-"
    if xattrs:
        total = hashlib.sha256()
        for name, value in sorted(xattrs.items()):
            total.update(b"%d %s %d %s " % (len(name), name, len(value), value))
        text = total.hexdigest()
    return f"{kind} {mode:04o} {uid} {gid} {what} {text}".encode()


def link_line(target: bytes, uid: int, gid: int) -> bytes:
    """The line of a symlink; a symlink's mode means nothing."""
    return line("l", 0o777, uid, gid, hashlib.sha256(target).hexdigest(), {})


WHITEOUT = line("w", 0, 0, 0, "-", {})


def write(fd: int, lines: Mapping[bytes, bytes]) -> None:
    """Write the lines of a tree, by path, to a descriptor."""
    with open(fd, "wb", closefd=False) as stream:
        for path in sorted(lines):
            stream.write(lines[path] + b"\t" + path + b"\0")


def walk(root: int) -> Iterator[tuple[bytes, bytes]]:
    """(path, line) of all below the directory ``root`` and of itself, which is ``.``; in no order.

    One directory is open at a time; nothing is followed out of ``root``.
    """
    pending = [b"."]
    while pending:
        parent = pending.pop()
        directory = sc.openat2(root, parent, os.O_RDONLY | os.O_DIRECTORY, BENEATH)
        try:
            about = os.fstat(directory)
            yield (
                parent,
                line(
                    "d", stat.S_IMODE(about.st_mode), about.st_uid, about.st_gid, "-", user_xattrs(directory)
                ),
            )
            for name in map(os.fsencode, os.listdir(directory)):
                path = name if parent == b"." else parent + b"/" + name
                about = os.stat(name, dir_fd=directory, follow_symlinks=False)
                if stat.S_ISDIR(about.st_mode):
                    pending.append(path)
                else:
                    yield path, _line_of(name, directory, about)
        finally:
            os.close(directory)


def _line_of(name: bytes, directory: int, about: os.stat_result) -> bytes:
    mode, uid, gid = stat.S_IMODE(about.st_mode), about.st_uid, about.st_gid
    if stat.S_ISLNK(about.st_mode):
        return link_line(os.readlink(name, dir_fd=directory), uid, gid)
    if stat.S_ISCHR(about.st_mode) and about.st_rdev == 0:
        return WHITEOUT
    if not stat.S_ISREG(about.st_mode):
        return line("?", mode, uid, gid, "-", {})
    fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
    try:
        return line("f", mode, uid, gid, _sha256(fd), user_xattrs(fd))
    finally:
        os.close(fd)


def _sha256(fd: int) -> str:
    total = hashlib.sha256()
    while chunk := os.read(fd, CHUNK):
        total.update(chunk)
    return total.hexdigest()


def user_xattrs(fd: int) -> dict[bytes, bytes]:
    """The extended attributes ``user.*`` of an open file."""
    names = [name for name in os.listxattr(fd) if name.startswith("user.")]
    return {os.fsencode(name): os.getxattr(fd, name) for name in names}
