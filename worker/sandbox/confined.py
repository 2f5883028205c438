"""Work on a job's files after its processes are dead, each in a short-lived child locked into the workspace.

``collect`` finds output files and hands them over as descriptors; ``clean`` removes what a step left outside of
the workspace directory. Both run chrooted into the job's tmpfs, without network and with next to no privilege;
nothing of the job runs beside them, so what they see holds still.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import re
import resource
import signal
import socket
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

from worker.sandbox import syscalls as sc
from worker.sandbox import wire
from worker.sandbox.init import ALL_CAPABILITIES

_BENEATH = sc.RESOLVE_BENEATH | sc.RESOLVE_NO_SYMLINKS | sc.RESOLVE_NO_XDEV
MAX_ENTRIES, MAX_DEPTH, MAX_ERRORS, MAX_SECONDS = 100_000, 64, 50, 10.0
_CAP_DAC_OVERRIDE, _CAP_FOWNER = 1, 3


def fork(root: int, owner: int, keep: socket.socket | None, work: Callable[[], None]) -> tuple[int, int]:
    """Run ``work`` in a child chrooted to the directory ``root``: (pid, pidfd).

    With an ``owner`` the child is that uid without capabilities; with 0 it is root left with CAP_DAC_OVERRIDE
    and CAP_FOWNER. It exits 0 when ``work`` returned.
    """
    pid, pidfd = sc.clone3(sc.CLONE_NEWNET, pidfd=True)
    if pid == 0:
        _confine(root, owner, keep, work)
    return pid, pidfd


def _confine(root: int, owner: int, keep: socket.socket | None, work: Callable[[], None]) -> NoReturn:
    status = 1
    with contextlib.suppress(BaseException):
        gc.disable()
        sc.prctl(sc.PR_SET_PDEATHSIG, signal.SIGKILL)
        os.fchdir(root)
        os.chroot(".")
        spared = keep.fileno() if keep else 2
        os.closerange(3, spared)
        os.closerange(max(3, spared + 1), 2**31 - 1)
        resource.setrlimit(resource.RLIMIT_CPU, (60, 60))
        os.setgroups([])
        if owner:
            os.setresgid(owner, owner, owner)
            os.setresuid(owner, owner, owner)
        kept = frozenset() if owner else frozenset({_CAP_DAC_OVERRIDE, _CAP_FOWNER})
        if not owner:
            sc.drop_from_bounding_set(ALL_CAPABILITIES - kept)
        sc.set_capabilities(sc.capability_sets(kept))
        sc.prctl(sc.PR_SET_NO_NEW_PRIVS, 1)
        sc.prctl(sc.PR_SET_PDEATHSIG, signal.SIGKILL)
        work()
        status = 0
    os._exit(status)


# --- clean -----------------------------------------------------------------------------------------------


def clean(names: tuple[str, ...]) -> None:
    """Remove these trees of the root directory, however deep, with one directory open at a time.

    A directory that is not empty is moved up to the top and emptied there: no recursion, no long paths.
    """
    top = os.open("/", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    pending, serial = list(names), 0
    while pending:
        position = len(pending) - 1
        name = pending[position]
        with contextlib.suppress(FileNotFoundError):
            directory = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=top)
            try:
                for entry in os.listdir(directory):
                    if not _remove(entry, directory):
                        serial += 1
                        os.rename(entry, f".gone-{serial}", src_dir_fd=directory, dst_dir_fd=top)
                        pending.append(f".gone-{serial}")
            finally:
                os.close(directory)
            os.rmdir(name, dir_fd=top)
        # From the end: one directory may have put a hundred thousand behind it.
        del pending[position]


def _remove(name: str, directory: int) -> bool:
    """Unlink a file or an empty directory; False for a directory with something in it."""
    try:
        os.unlink(name, dir_fd=directory)
    except IsADirectoryError:
        try:
            os.rmdir(name, dir_fd=directory)
        except OSError as problem:
            if problem.errno == errno.ENOTEMPTY:
                return False
            raise
    return True


# --- collect ---------------------------------------------------------------------------------------------


class _Full(Exception):
    """A cap on the number or size of files, or on the time taken, is reached."""


def collect(connection: socket.socket, patterns: tuple[str, ...], max_files: int, max_bytes: int) -> None:
    """Send each regular file that a pattern names as a ``file`` message with its descriptor, then ``collected``
    with the errors: at most ``max_files`` files of ``max_bytes`` together."""
    errors: list[dict[str, str]] = []
    sent: set[str] = set()
    left, count = max_bytes, 0
    try:
        work = os.open("/work", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as problem:
        closed = [{"path": pattern[:1024]} | _why(problem) for pattern in patterns[:MAX_ERRORS]]
        wire.send(connection, {"op": "collected", "errors": closed})
        return
    try:
        for path, asked in _candidates(work, patterns, errors):
            if path in sent:
                continue
            sent.add(path)
            if count >= max_files:
                raise _Full(f"more than {max_files} files match")
            size = _send(connection, work, path, asked, left, errors)
            if size is not None:
                count, left = count + 1, left - size
    except _Full as reason:
        errors.append({"path": "", "error": "too_many", "message": str(reason)})
    # A reply is one packet: what does not fit is left out, and the paths in it are cut.
    cut = [{key: value[:1024] for key, value in each.items()} for each in errors[:MAX_ERRORS]]
    wire.send(connection, {"op": "collected", "errors": cut})


def _send(
    connection: socket.socket, work: int, path: str, asked: bool, left: int, errors: list[dict[str, str]]
) -> int | None:
    """Open one file safely and send it: its size, or ``None`` with the reason in ``errors``."""
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_NOCTTY
    try:
        fd = sc.openat2(work, path, flags, _BENEATH)
    except OSError as problem:
        if asked or problem.errno != errno.ENOENT:
            errors.append({"path": path} | _why(problem))
        return None
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            errors.append(
                {"path": path, "error": "not_regular_file", "message": "only regular files are collected"}
            )
            return None
        if status.st_size > left:
            message = f"{status.st_size} bytes do not fit into the {left} bytes that are left"
            errors.append({"path": path, "error": "too_large", "message": message})
            return None
        head = {"op": "file", "path": path, "size": status.st_size, "mode": stat.S_IMODE(status.st_mode)}
        wire.send(connection, head, (fd,))
        return status.st_size
    finally:
        os.close(fd)


def _why(problem: OSError) -> dict[str, str]:
    known = {
        errno.ENOENT: ("not_found", "no such file"),
        errno.ENOTDIR: ("not_found", "no such file"),
        errno.ELOOP: ("not_regular_file", "a symbolic link is not followed"),
        errno.ENXIO: ("not_regular_file", "only regular files are collected"),
        errno.EACCES: ("unreadable", "its mode does not let the job's own user read it"),
    }
    error, message = known.get(problem.errno or 0, ("unreadable", problem.strerror or ""))
    return {"error": error, "message": message}


def _candidates(
    work: int, patterns: tuple[str, ...], errors: list[dict[str, str]]
) -> Iterator[tuple[str, bool]]:
    """(path, named literally) of everything that may be sent; plain names first, then one walk for the globs."""
    globs = [pattern for pattern in patterns if re.search(r"[*?\[]", pattern)]
    for pattern in patterns:
        if pattern not in globs:
            yield pattern, True
    if not globs:
        return
    wanted = [_segments(pattern) for pattern in globs]
    for path, kind in _walk(work, errors):
        parts = path.split("/")
        if any(_matches(parts, segments, None, _segment_matches) for segments in wanted):
            if kind == stat.S_IFREG:
                yield path, False
            elif kind != stat.S_IFDIR:
                errors.append(
                    {"path": path, "error": "not_regular_file", "message": "only regular files are collected"}
                )


def _walk(work: int, errors: list[dict[str, str]]) -> Iterator[tuple[str, int]]:
    """(path, file type) of every entry below ``work``, within the caps, never through a symlink."""
    deadline, seen, pending = time.monotonic() + MAX_SECONDS, 0, ["."]
    while pending:
        parent = pending.pop()
        try:
            fd = sc.openat2(work, parent, os.O_RDONLY | os.O_DIRECTORY, _BENEATH)
        except OSError as problem:
            errors.append({"path": parent} | _why(problem))
            continue
        try:
            for name in sorted(os.listdir(fd)):
                seen += 1
                if seen > MAX_ENTRIES or time.monotonic() > deadline:
                    raise _Full(
                        f"the workspace has more than {MAX_ENTRIES} entries or takes too long to search"
                    )
                path = name if parent == "." else f"{parent}/{name}"
                kind = stat.S_IFMT(os.stat(name, dir_fd=fd, follow_symlinks=False).st_mode)
                if kind == stat.S_IFDIR and path.count("/") < MAX_DEPTH:
                    pending.append(path)
                yield path, kind
        finally:
            os.close(fd)


def _segments(pattern: str) -> list[list[str] | None]:
    """A glob as one entry per directory: its tokens, or ``None`` for ``**``, which crosses directories."""
    return [
        None if part == "**" else re.findall(r"\[!?[^]]+\]|.", part, re.DOTALL) for part in pattern.split("/")
    ]


def _segment_matches(name: str, tokens: list[str]) -> bool:
    return _matches(name, tokens, "*", _character_matches)


def _character_matches(character: str, token: str) -> bool:
    if len(token) == 1:
        return token in ("?", character)
    inside, negated = token[1:-1].removeprefix("!"), token[1] == "!"
    found = any(
        low <= character <= high for low, high in re.findall(r"(.)-(.)", inside, re.DOTALL)
    ) or character in re.sub(r".-.", "", inside, flags=re.DOTALL)
    return found != negated


def _matches(
    items: Sequence[Any], pattern: Sequence[Any], star: Any, same: Callable[[Any, Any], bool]
) -> bool:
    """Wildcard match in at most len(items) x len(pattern) steps: on a mismatch only the last star is moved."""
    at = position = 0
    back = -1
    resume = 0
    while at < len(items):
        if position < len(pattern) and pattern[position] == star:
            back, resume = position, at
            position += 1
        elif position < len(pattern) and same(items[at], pattern[position]):
            at, position = at + 1, position + 1
        elif back >= 0:
            resume += 1
            at, position = resume, back + 1
        else:
            return False
    return all(each == star for each in pattern[position:])
