"""One layer's way from bytes to a tree: starts the confined children, moves the bytes, takes the answers."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from io import FileIO
from itertools import chain
from typing import Any

from worker.images import confinement, filters
from worker.images.errors import ImageError
from worker.images.hashes import BENEATH
from worker.images.tree import Caps
from worker.sandbox import syscalls as sc
from worker.sandbox.errors import SandboxError
from worker.sandbox.host import FIRST_ID, IdRange
from worker.sandbox.init import IDS

UNPACKER_IDS = FIRST_ID - IDS
"""The first host id of the children's user namespace: below those of all sandboxes, nobody's in any other way."""

_ATTRIBUTES = sc.MOUNT_ATTR_NOSUID | sc.MOUNT_ATTR_NODEV | sc.MOUNT_ATTR_NOEXEC
_MAGIC = ((b"\x1f\x8b", "gzip"), (b"\x28\xb5\x2f\xfd", "zstd"), (b"\xfd7zXZ\0", "xz"))
_PIPE = 1 << 20
_MAGIC_SIZE = 6
_OPAQUE = "trusted.overlay.opaque"


@dataclass(frozen=True, slots=True)
class Unpacked:
    """What became of a layer. blob_sha256: of the bytes that came in; sha256: of the archive in them, the diff_id.

    archive: bytes of that archive. size: bytes of its files. left_out: how many entries or attributes of each kind
    were not taken in.
    """

    blob_sha256: str
    blob_size: int
    sha256: str
    archive: int
    size: int
    entries: int
    opaque: tuple[str, ...]
    left_out: dict[str, int]


class Ids:
    """The user namespace of the children."""

    def __init__(self) -> None:
        proc = os.open("/proc", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self.userns = IdRange(UNPACKER_IDS, proc).userns
        finally:
            os.close(proc)

    def __enter__(self) -> int:
        return self.userns

    def __exit__(self, *_: object) -> None:
        os.close(self.userns)


class _Child:
    """A confined child and the pipe that it answers on."""

    def __init__(
        self, stack: ExitStack, module: str, arguments: list[str], before: list[int], after: list[int]
    ) -> None:
        """Start it, with the writing end of the pipe between the descriptors ``before`` and ``after``."""
        self._module = module
        self._answer, report = _pipe(stack)
        fds = [*before, report.fileno(), *after]
        self._pid = confinement.start(module, arguments, fds, filters.of(module), site=arguments == ["zstd"])
        report.close()
        stack.callback(self._end)

    def answer(self) -> dict[str, Any]:
        """Wait for its end. ``ImageError`` when the image is at fault, ``SandboxError`` when we are."""
        said, (status, cpu) = self._answer.read(), self._wait()
        if not said:
            if cpu >= confinement.CPU_SECONDS:
                raise ImageError(
                    "image_too_large", f"the {self._module} took more than {cpu:.0f} s of CPU time"
                )
            raise SandboxError(self._module, 0, f"ended with status {status} and said nothing")
        answer: dict[str, Any] = json.loads(said)
        if "code" in answer:
            raise ImageError(answer["code"], answer["message"])
        if "step" in answer:
            raise SandboxError(self._module, answer["errno"], answer["step"], answer.get("hint", ""))
        return answer

    def _wait(self) -> tuple[int, float]:
        """Its exit status, negative for a signal, and the seconds of CPU time that it took."""
        _, status, usage = os.wait4(self._pid, 0)
        self._pid = 0
        return os.waitstatus_to_exitcode(status), usage.ru_utime + usage.ru_stime

    def _end(self) -> None:
        if self._pid:
            os.kill(self._pid, signal.SIGKILL)
            self._wait()


def unpack(
    chunks: Iterable[bytes], tree: int, lines: int, lock: int, caps: Caps, progress: Callable[[int], None]
) -> Unpacked:
    """Unpack a layer into the empty directory ``tree``.

    Args:
        chunks: the layer's bytes as they come, compressed or not.
        tree: descriptor of the directory, on a file system with idmapped mounts.
        lines: descriptor of the file for what `hashes.write` writes.
        lock: a lock that the unpacker is to hold for as long as it lives.
        progress: told how many bytes have come, time and again.

    Raises:
        ImageError: the layer cannot be used. What is in ``tree`` is then to be thrown away.
        SandboxError: we failed.
    """
    arriving = iter(chunks)
    first = next(arriving, b"")
    while first and len(first) < _MAGIC_SIZE and (more := next(arriving, b"")):
        first += more
    kind = next((name for magic, name in _MAGIC if first.startswith(magic)), None)
    with ExitStack() as stack:
        userns = stack.enter_context(Ids())
        mount = stack.enter_context(_idmapped(tree, userns, 0))
        archive, feed = _pipe(stack)
        arguments = ["unpack", str(caps.size), str(caps.entries)]
        children = [
            _Child(stack, "unpacker", arguments, [archive.fileno()], [lines, mount, userns, lock]),
        ]
        archive.close()
        if kind:
            compressed, feed_of_kind = _pipe(stack)
            fds = [compressed.fileno(), feed.fileno()]
            children.insert(0, _Child(stack, "decompressor", [kind], fds, [userns]))
            # Only the children hold these ends: when one dies, the other learns of it.
            compressed.close()
            feed.close()
            feed = feed_of_kind
        total, count = _feed(chain((first,), arriving), feed, progress)
        answers = [child.answer() for child in children]
    answer = answers[-1]
    _hide(tree, answer["opaque"])
    return Unpacked(
        blob_sha256=total,
        blob_size=count,
        sha256=answer["sha256"],
        archive=answer["read"],
        size=answer["size"],
        entries=answer["entries"],
        opaque=tuple(answer["opaque"]),
        left_out=answer["left_out"],
    )


def list_tree(tree: int, lines: int) -> None:
    """Write what is in a tree now to ``lines``, as `unpack` did when it was made."""
    with ExitStack() as stack:
        userns = stack.enter_context(Ids())
        mount = stack.enter_context(_idmapped(tree, userns, sc.MOUNT_ATTR_RDONLY))
        _Child(stack, "unpacker", ["list"], [lines], [mount, userns]).answer()


def hidden(tree: int, paths: Iterable[str]) -> bool:
    """Whether all these directories still hide what lower layers have in them."""
    for path in paths:
        with _directory(tree, path) as fd:
            if _OPAQUE not in os.listxattr(fd):
                return False
    return True


def _hide(tree: int, paths: Iterable[str]) -> None:
    """Mark directories as opaque: the one attribute that needs power over the host, so the child can't set it."""
    for path in paths:
        with _directory(tree, path) as fd:
            os.setxattr(fd, _OPAQUE, b"y")


@contextmanager
def _directory(tree: int, path: str) -> Iterator[int]:
    fd = sc.openat2(tree, path, os.O_RDONLY | os.O_DIRECTORY, BENEATH)
    try:
        yield fd
    finally:
        os.close(fd)


@contextmanager
def _idmapped(tree: int, userns: int, attributes: int) -> Iterator[int]:
    """A detached mount of the directory in which its ids are those of the user namespace."""
    try:
        mount = sc.clone_mount("", tree)
    except OSError as problem:
        raise SandboxError("layer", problem.errno or 0, "open_tree") from problem
    try:
        sc.set_mount_attributes(mount, attributes | _ATTRIBUTES, userns)
        yield mount
    except OSError as problem:
        hint = "the state directory must be on a file system with idmapped mounts (ext4, xfs, btrfs)"
        raise SandboxError("layer", problem.errno or 0, "mount_setattr", hint) from problem
    finally:
        os.close(mount)


def _pipe(stack: ExitStack) -> tuple[FileIO, FileIO]:
    """Reading and writing end, with as much room as the kernel gives; closing an end twice does no harm."""
    ends = os.pipe2(os.O_CLOEXEC)
    with suppress(OSError):
        fcntl.fcntl(ends[1], fcntl.F_SETPIPE_SZ, _PIPE)
    return stack.enter_context(FileIO(ends[0], "rb")), stack.enter_context(FileIO(ends[1], "wb"))


def _feed(chunks: Iterable[bytes], feed: FileIO, progress: Callable[[int], None]) -> tuple[str, int]:
    """Write all to the first child, or until it is gone: the SHA-256 and the number of the bytes that came."""
    total, count = hashlib.sha256(), 0
    with feed, suppress(BrokenPipeError):
        for chunk in chunks:
            total.update(chunk)
            count += len(chunk)
            progress(count)
            view = memoryview(chunk)
            while view:
                view = view[os.write(feed.fileno(), view) :]
    return total.hexdigest(), count
