"""The store of images: content-addressed, below one directory that only root may enter.

    layers/<hex>/tree, lines, about.json    an unpacked layer by its diff_id; ``lines`` is what `hashes` wrote of it
    at/<16 of hex>                          a symlink to the tree, by which the launcher mounts it
    content/<hex>                           manifests and configurations, byte for byte
    images/<hex>                            what is recorded of an image, by the digest of its manifest
    names.json                              name -> digest
    temporary/                              what is being made; nothing else is ever half there
    quarantine/                             layers that were found damaged
    locks/                                  flock(2): one for each digest at work, ``store``, ``names``

Whatever appears under its final name was complete and on disk before. Each temporary thing is made under a lock that
the kernel drops with its holder, so whoever comes next knows what is abandoned, and clears it away. Whoever adds or
reads holds ``store`` shared, whoever removes holds it exclusively; a job holds its image's file
(`worker.sandbox.images`).
"""

import fcntl
import hashlib
import json
import os
import secrets
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pydantic import Field

from policies.model import Frozen
from worker.images import pipeline, users
from worker.images.errors import ImageError
from worker.images.manifest import directory_of
from worker.images.reference import Reference
from worker.images.source import Blob, Layer, Progress, Source
from worker.images.tree import Caps
from worker.sandbox import syscalls as sc
from worker.sandbox.errors import SandboxError
from worker.sandbox.images import (
    IMAGES,
    LAYERS,
    LINKS,
    NAMES,
    NAMES_MAX,
    RECORD_MAX,
    TREE,
    hexadecimal,
    link_name,
)

CONTENT, TEMPORARY, QUARANTINE, _LOCKS = "content", "temporary", "quarantine", "locks"
LINES, _ABOUT = "lines", "about.json"
_ABOUT_FIELDS = ("archive", "size", "entries", "opaque", "left_out")


class ImageRecord(Frozen):
    """One image as it is recorded, and as the launcher tells workers of it."""

    digest: str = Field(description="Of its manifest.")
    config_digest: str = Field(description="Of its configuration.")
    layers: tuple[str, ...] = Field(description="diff_ids, the lowest first.")
    size: int = Field(description="Bytes of the files in its layers.")
    created: float = Field(description="When it came into the store, in seconds since the epoch.")
    env: tuple[str, ...] = Field(description="NAME=VALUE of the image.")
    entrypoint: tuple[str, ...] = Field(description="What its program begins with.")
    command: tuple[str, ...] = Field(description="What comes after that, unless arguments are given.")
    directory: str = Field(description="Where its program starts; empty where the image says nothing.")
    user: int | None = Field(description="Id of its user; null where the image says nothing.")
    group: int | None = Field(description="Id of its group; null where the image says nothing.")


class Store:
    """One store. Safe with any number of processes on it, each of which may die at any time."""

    def __init__(self, directory: Path) -> None:
        """Make what is missing and clear away what dead processes have left."""
        self.directory = directory
        for name in ("", LAYERS, LINKS, IMAGES, CONTENT, TEMPORARY, QUARANTINE, _LOCKS):
            (directory / name).mkdir(mode=0o700, parents=True, exist_ok=True)
        status = directory.stat()
        if status.st_uid != 0 or status.st_mode & 0o077:
            os.chown(directory, 0, 0)
            directory.chmod(0o700)
        self._sweep()

    # ---- locks

    @contextmanager
    def shared(self) -> Iterator[None]:
        """Nothing is removed meanwhile; waits for who removes."""
        with self.lock("store", fcntl.LOCK_SH):
            yield

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Nobody adds or reads meanwhile; ``SandboxError`` when somebody does now."""
        try:
            with self.lock("store", fcntl.LOCK_EX | fcntl.LOCK_NB):
                yield
        except BlockingIOError:
            raise SandboxError(
                "images", 0, str(self.directory), "an image is just being added; try again"
            ) from None

    @contextmanager
    def lock(self, name: str, how: int) -> Iterator[int]:
        """flock(2) on a file of that name, which is gone afterwards unless others wait for it."""
        path = self.directory / _LOCKS / name
        while True:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(fd, how)
                if os.fstat(fd).st_nlink:
                    break
            except BaseException:
                os.close(fd)
                raise
            os.close(fd)  # removed by its last holder between our open and our lock
        try:
            yield fd
        finally:
            if how & fcntl.LOCK_EX:
                path.unlink(missing_ok=True)
            os.close(fd)

    # ---- layers

    def layer(self, diff_id: str) -> Layer | None:
        """An unpacked layer, or None."""
        directory = self.directory / LAYERS / hexadecimal(diff_id)
        try:
            about = json.loads((directory / _ABOUT).read_bytes())
        except FileNotFoundError:
            return None
        return Layer(diff_id, directory, **about | {"opaque": tuple(about["opaque"])})

    def add_layer(self, blob: Blob, caps: Caps, progress: Progress) -> Layer:
        """The layer, unpacked now if it was not before. Call it with the store ``shared``.

        However many want the same layer at one time, one of them unpacks it and the others wait.

        Raises:
            ImageError: the blob is not what its digest, size or diff_id says, or no layer.
            SandboxError: we failed.
        """
        key = hexadecimal(blob.diff_id) if blob.diff_id else f"new-{secrets.token_hex(8)}"
        with self.lock(key, fcntl.LOCK_EX) as lock:
            if blob.diff_id and (found := self.layer(blob.diff_id)):
                progress(blob.size or 0)
                return found
            temporary = self.directory / TEMPORARY / key
            try:
                made = self._unpack(blob, temporary, lock, caps, progress)
                return self._put(temporary, made, locked=blob.diff_id is not None)
            finally:
                _remove(temporary)

    def _unpack(
        self, blob: Blob, temporary: Path, lock: int, caps: Caps, progress: Progress
    ) -> pipeline.Unpacked:
        _remove(temporary)
        (temporary / TREE).mkdir(parents=True, mode=0o755)
        tree = os.open(temporary / TREE, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        lines = os.open(temporary / LINES, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with blob.open() as chunks:
                made = pipeline.unpack(_bounded(chunks, blob.size), tree, lines, lock, caps, progress)
            _check(blob, made)
            about = {name: getattr(made, name) for name in _ABOUT_FIELDS}
            (temporary / _ABOUT).write_text(json.dumps(about))
            sc.syncfs(tree)
        finally:
            os.close(tree)
            os.close(lines)
        return made

    def _put(self, temporary: Path, made: pipeline.Unpacked, locked: bool) -> Layer:
        diff_id = f"sha256:{made.sha256}"
        if not locked:
            with self.lock(made.sha256, fcntl.LOCK_EX):
                if self.layer(diff_id) is None:
                    self._place(temporary, diff_id)
        else:
            self._place(temporary, diff_id)
        layer = self.layer(diff_id)
        assert layer is not None
        return layer

    def _place(self, temporary: Path, diff_id: str) -> None:
        """The link first, which leads nowhere until the layer has its name."""
        link, target = self.directory / LINKS / link_name(diff_id), self._target(diff_id)
        if not link.is_symlink():
            link.symlink_to(target)
        elif os.readlink(link) != target:
            raise ImageError("layer_digest_mismatch", f"{diff_id} begins as the digest of another layer does")
        _rename(temporary, self.directory / LAYERS / hexadecimal(diff_id))

    @staticmethod
    def _target(diff_id: str) -> str:
        return f"../{LAYERS}/{hexadecimal(diff_id)}/{TREE}"

    # ---- images

    def add(self, source: Source, caps: Caps, progress: Progress) -> ImageRecord:
        """Bring an image in: every layer that is missing, then its record. Call it with the store ``shared``."""
        size = 0
        layers = []
        for blob in source.layers:
            layer = self.add_layer(blob, caps._replace(size=max(0, caps.size - size)), progress)
            size += layer.size
            if size > caps.size:
                raise ImageError("image_too_large", f"the files of the image are over {caps.size} bytes")
            layers.append(layer)
        manifest, config_bytes, config = source.describe(layers)
        user, group = users.resolve(config.config.user, [layer.directory / TREE for layer in layers])
        record = ImageRecord(
            digest=f"sha256:{hashlib.sha256(manifest).hexdigest()}",
            config_digest=f"sha256:{hashlib.sha256(config_bytes).hexdigest()}",
            layers=tuple(layer.diff_id for layer in layers),
            size=size,
            created=time.time(),
            env=config.config.env,
            entrypoint=config.config.entrypoint,
            command=config.config.command,
            directory=directory_of(config.config),
            user=user,
            group=group,
        )
        text = record.model_dump_json().encode()
        if len(text) > RECORD_MAX:
            raise ImageError(
                "config_invalid", f"what is to be kept of the configuration is over {RECORD_MAX} bytes"
            )
        for digest, content in ((record.digest, manifest), (record.config_digest, config_bytes)):
            self._write(f"{CONTENT}/{hexadecimal(digest)}", content)
        path = f"{IMAGES}/{hexadecimal(record.digest)}"
        if found := self.image(record.digest):
            return found  # never written anew: a job may hold it
        self._write(path, text)
        return record

    def left_out(self, record: ImageRecord) -> dict[str, int]:
        """What of the image's archives was not taken in, by kind."""
        total: Counter[str] = Counter()
        for diff_id in record.layers:
            layer = self.layer(diff_id)
            total.update(layer.left_out if layer else {})
        return dict(total)

    def content(self, digest: str) -> bytes:
        """A manifest or configuration, byte for byte; ``KeyError`` when it is not there."""
        try:
            return (self.directory / CONTENT / hexadecimal(digest)).read_bytes()
        except FileNotFoundError:
            raise KeyError(digest) from None

    def images(self) -> list[ImageRecord]:
        """All images, the latest first."""
        found = [ImageRecord.model_validate_json(path.read_bytes()) for path in self._records()]
        return sorted(found, key=lambda record: -record.created)

    def image(self, digest: str) -> ImageRecord | None:
        """The image of that digest, or None."""
        try:
            return ImageRecord.model_validate_json(
                (self.directory / IMAGES / hexadecimal(digest)).read_bytes()
            )
        except FileNotFoundError:
            return None

    def find(self, reference: Reference) -> ImageRecord | None:
        """The image that a name or a digest means here, or None."""
        digest = reference.digest or self.names().get(str(reference))
        return self.image(digest) if digest else None

    def last_used(self, digest: str) -> float:
        """When a job was last started in it, or when it came, in seconds since the epoch."""
        return (self.directory / IMAGES / hexadecimal(digest)).stat().st_mtime

    def _records(self) -> list[Path]:
        return list((self.directory / IMAGES).iterdir())

    # ---- names

    def names(self) -> dict[str, str]:
        """The digest of every name."""
        try:
            names: dict[str, str] = json.loads((self.directory / NAMES).read_bytes())
        except FileNotFoundError:
            return {}
        return names

    def rename(self, change: Callable[[dict[str, str]], None]) -> None:
        """Change the names: all of the change or nothing of it, and one after the other."""
        with self.lock("names", fcntl.LOCK_EX):
            names = self.names()
            change(names)
            text = json.dumps(names, sort_keys=True).encode()
            if len(text) > NAMES_MAX:
                raise ImageError("too_many_names", f"the names of all images are over {NAMES_MAX} bytes")
            self._write(NAMES, text)

    def tag(self, reference: Reference, digest: str) -> None:
        """Give an image a name; another that had it has it no more."""
        self.rename(lambda names: names.update({str(reference): digest}))

    # ---- files

    def _write(self, path: str, content: bytes) -> None:
        """Write a file as a whole: complete and on disk before it has its name."""
        key = f"new-{secrets.token_hex(8)}"
        with self.lock(key, fcntl.LOCK_EX):
            temporary = self.directory / TEMPORARY / key
            try:
                with temporary.open("xb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
                _rename(temporary, self.directory / path)
            finally:
                temporary.unlink(missing_ok=True)

    def _sweep(self) -> None:
        """Clear away what was being made by processes that are gone: nobody holds its lock."""
        for path in (self.directory / TEMPORARY).iterdir():
            with suppress(BlockingIOError), self.lock(path.name, fcntl.LOCK_EX | fcntl.LOCK_NB):
                _remove(path)
        for path in (self.directory / _LOCKS).iterdir():
            if path.name not in ("store", "names"):
                with suppress(BlockingIOError), self.lock(path.name, fcntl.LOCK_EX | fcntl.LOCK_NB):
                    pass  # it goes as it is let go


def _check(blob: Blob, made: pipeline.Unpacked) -> None:
    if blob.size is not None and made.blob_size != blob.size:
        raise ImageError(
            "layer_size_mismatch", f"a layer of {made.blob_size} bytes, {blob.size} were announced"
        )
    if blob.digest and blob.digest != f"sha256:{made.blob_sha256}":
        raise ImageError(
            "layer_digest_mismatch", f"the layer has sha256:{made.blob_sha256}, not {blob.digest}"
        )
    if blob.diff_id and blob.diff_id != f"sha256:{made.sha256}":
        raise ImageError(
            "layer_digest_mismatch", f"the layer unpacks to sha256:{made.sha256}, not {blob.diff_id}"
        )


def _bounded(chunks: Iterable[bytes], size: int | None) -> Iterator[bytes]:
    """No more than was announced is looked at."""
    left = size
    for chunk in chunks:
        if left is not None:
            left -= len(chunk)
            if left < 0:
                raise ImageError(
                    "layer_size_mismatch", f"a layer of more than the {size} bytes that were announced"
                )
        yield chunk


def _rename(source: Path, target: Path) -> None:
    """rename(2), and on disk."""
    os.rename(source, target)
    directory = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _remove(path: Path) -> None:
    """Remove a file or a tree that nobody writes to any more; symlinks are not followed."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
