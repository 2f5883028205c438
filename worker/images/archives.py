"""Images in files: an OCI layout (directory or tar), ``docker save``, or the tar archive of a root file system.

An outer archive is only looked through for its headers; the layers in it are read as what they are, a range of the
file, and go the way of all layers. Names in it are compared and never used as paths.
"""

import os
import posixpath
import stat
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Annotated, Protocol

from pydantic import Field, TypeAdapter, ValidationError

from worker.images import manifest, reference, tar
from worker.images.errors import ImageError, shown
from worker.images.hashes import BENEATH
from worker.images.manifest import Descriptor, Text
from worker.images.source import Blob, Described, Source, Undescribed
from worker.sandbox import syscalls as sc
from worker.sandbox.images import LAYERS_MAX

CHUNK = 1 << 20
FILES_MAX = 16384
"""Entries of an outer archive."""
_LAYOUT, _INDEX, _DOCKER = "oci-layout", "index.json", "manifest.json"


class _Saved(manifest.Lenient):
    """One image in the ``manifest.json`` of ``docker save``."""

    config: Text = Field(alias="Config")
    tags: Annotated[tuple[Text, ...] | None, Field(max_length=FILES_MAX)] = Field(
        default=None, alias="RepoTags"
    )
    layers: tuple[Text, ...] = Field(alias="Layers", min_length=1, max_length=LAYERS_MAX)


_SAVED = TypeAdapter(tuple[_Saved, ...])


class _Files(Protocol):
    """The files of a directory or an archive, by their path in it."""

    def __contains__(self, name: str) -> bool: ...

    def read(self, name: str) -> bytes:
        """A small file as a whole."""

    def open(self, name: str) -> AbstractContextManager[Iterator[bytes]]:
        """A file in chunks."""


@contextmanager
def opened(path: Path) -> Iterator[tuple[Source, str | None]]:
    """The image in a file or directory, and the name that came with it; whatever it is is found out here.

    Raises:
        ImageError: it holds no image for this machine, or more than one.
        OSError: it cannot be read.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        status = os.fstat(fd)
        if stat.S_ISDIR(status.st_mode):
            yield _oci(_Directory(fd)), None
        elif not stat.S_ISREG(status.st_mode):
            raise ImageError("no_image", f"{path} is neither a file nor a directory")
        elif os.pread(fd, 5, 257) != b"ustar":
            yield _rootfs(fd), None  # compressed, or no archive at all, which unpacking tells
        else:
            files = _Archive(fd, status.st_size)
            if _LAYOUT in files:
                yield _oci(files), None
            elif _DOCKER in files:
                yield _docker(files)
            else:
                yield _rootfs(fd), None
    finally:
        os.close(fd)


# ---- the three kinds


def _oci(files: _Files) -> Source:
    """OCI image-spec, image-layout.md."""
    if _INDEX not in files:
        raise ImageError("no_image", f"it is no OCI layout: it has no {_INDEX}")
    found = manifest.for_this_machine(manifest.read_index(files.read(_INDEX)).manifests)
    for _ in range(manifest.NESTING_MAX):
        content = _content(files, found)
        if not manifest.is_index(content):
            read = manifest.read_manifest(content)
            return Described(content, _content(files, read.config), lambda each: files.open(_blob(each)))
        found = manifest.for_this_machine(manifest.read_index(content).manifests)
    raise ImageError("manifest_invalid", f"more than {manifest.NESTING_MAX} indexes stand within one another")


def _blob(descriptor: Descriptor) -> str:
    return "blobs/" + descriptor.digest.replace(":", "/")


def _content(files: _Files, descriptor: Descriptor) -> bytes:
    content = files.read(_blob(descriptor))
    manifest.check_content(descriptor, content)
    return content


def _docker(files: _Files) -> tuple[Source, str | None]:
    """What ``docker save`` writes: configurations and plain layers, by paths that manifest.json tells."""
    try:
        saved = _SAVED.validate_json(files.read(_DOCKER))
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        raise ImageError("manifest_invalid", f"{_DOCKER}: {first['msg']}"[:500]) from None
    if len(saved) != 1:
        raise ImageError("no_image", f"the archive has {len(saved)} images; save them one by one")
    config = files.read(posixpath.normpath(saved[0].config))
    diff_ids = manifest.read_config(config).rootfs.diff_ids
    names = [posixpath.normpath(each) for each in saved[0].layers]
    manifest.check_counts(len(names), len(diff_ids))
    for name in names:
        if name not in files:
            raise ImageError("no_image", f"the archive has no {shown(name.encode())}, which {_DOCKER} names")
    layers = [Blob(_opener(files, name), diff_id=each) for name, each in zip(names, diff_ids, strict=True)]
    tag = saved[0].tags[0] if saved[0].tags else None
    return Undescribed(tuple(layers), config), str(reference.parse(tag)) if tag else None


def _opener(files: _Files, name: str) -> Callable[[], AbstractContextManager[Iterator[bytes]]]:
    return lambda: files.open(name)


def _rootfs(fd: int) -> Source:
    return Undescribed((Blob(lambda: _range(fd, 0, os.fstat(fd).st_size)),))


# ---- files


@contextmanager
def _range(fd: int, begin: int, size: int) -> Iterator[Iterator[bytes]]:
    """Part of an open file in chunks."""

    def chunks() -> Iterator[bytes]:
        at, end = begin, begin + size
        while at < end and (chunk := os.pread(fd, min(CHUNK, end - at), at)):
            at += len(chunk)
            yield chunk

    yield chunks()


class _Directory:
    """Files below a directory; no symlink is followed."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def __contains__(self, name: str) -> bool:
        try:
            os.close(self._open(name))
        except ImageError:
            return False
        return True

    def _open(self, name: str) -> int:
        try:
            fd = sc.openat2(self._fd, name, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY, BENEATH)
        except OSError as problem:
            raise ImageError("no_image", f"{name} cannot be read: {problem.strerror}") from None
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise ImageError("no_image", f"{name} is no file")
        return fd

    def read(self, name: str) -> bytes:
        fd = self._open(name)
        with open(fd, "rb") as file:
            return file.read(manifest.MANIFEST_MAX + 1)

    @contextmanager
    def open(self, name: str) -> Iterator[Iterator[bytes]]:
        fd = self._open(name)
        try:
            with _range(fd, 0, os.fstat(fd).st_size) as chunks:
                yield chunks
        finally:
            os.close(fd)


class _Seeking(tar.Stream):
    """A stream over a file that steps over what is not wanted, and knows where it is."""

    def __init__(self, fd: int, size: int) -> None:
        os.lseek(fd, 0, os.SEEK_SET)
        super().__init__(fd, size)

    @property
    def position(self) -> int:
        return self.read_bytes - (self._end - self._at)

    def skip(self, size: int) -> None:
        ahead = size - (self._end - self._at)
        if ahead <= 0:
            self._at += size
            return
        if self.read_bytes + ahead > self._most:
            raise ImageError("layer_truncated", "the archive ends in the middle of an entry")
        os.lseek(self._fd, ahead, os.SEEK_CUR)
        self.read_bytes += ahead
        self._at = self._end

    def finish(self) -> None:
        """What is behind the last entry is nobody's."""


class _Archive:
    """The files of an outer archive: where each begins, and how long it is."""

    def __init__(self, fd: int, size: int) -> None:
        self._fd = fd
        self._places: dict[str, tuple[int, int]] = {}
        links: dict[str, str] = {}
        stream = _Seeking(fd, size)
        for entry in tar.Reader(stream, FILES_MAX):
            name = posixpath.normpath(os.fsdecode(entry.name))
            if name in self._places or name in links:
                raise ImageError("no_image", f"{shown(entry.name)} stands twice in the archive")
            if entry.kind == tar.FILE and entry.extents in ((), ((0, entry.size),)):
                self._places[name] = (stream.position, entry.size)
            elif entry.kind in (tar.SYMLINK, tar.HARD_LINK):
                # Older versions of Docker save a layer once and link to it.
                above = posixpath.dirname(name) if entry.kind == tar.SYMLINK else ""
                links[name] = posixpath.normpath(posixpath.join(above, os.fsdecode(entry.link)))
        for name, target in links.items():
            if target in self._places:
                self._places[name] = self._places[target]

    def __contains__(self, name: str) -> bool:
        return name in self._places

    def read(self, name: str) -> bytes:
        begin, size = self._place(name)
        return os.pread(self._fd, min(size, manifest.MANIFEST_MAX + 1), begin)

    def open(self, name: str) -> AbstractContextManager[Iterator[bytes]]:
        return _range(self._fd, *self._place(name))

    def _place(self, name: str) -> tuple[int, int]:
        if name not in self._places:
            raise ImageError(
                "no_image", f"the archive has no {shown(name.encode('utf-8', 'surrogateescape'))}"
            )
        return self._places[name]
