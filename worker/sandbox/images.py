"""The store of images as the launcher uses it: a digest becomes a list of layers, held for as long as a job runs in it.

``worker.images`` writes the store; this side reads two kinds of files that only root may write:

    names.json              {"python:3.12": "sha256:..."}
    images/<hex>            one image: {"digest", "layers": [diff_id, the lowest first], "config": {...}, ...}
    layers/<hex>/tree       one layer, shared by all images that have it
    at/<16 of hex>          a symlink to that, short enough for mount(2) to take 128 of them

Nothing that a peer says is used as a path: a digest is hexadecimal or it is refused. Whoever runs a job in an image
holds a shared flock(2) on its file; whoever wants to remove it needs the exclusive one.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
from collections.abc import Iterator
from typing import Any

from worker.sandbox.errors import SandboxError
from worker.sandbox.rootfs import HOST, SKELETON, Rootfs

DIGEST = re.compile(r"^sha256:[0-9a-f]{64}$")
LAYERS_MAX = 128
"""Layers of one image."""
IMAGES, LAYERS, NAMES, TREE, LINKS = "images", "layers", "names.json", "tree", "at"
RECORD_MAX = 128 << 10
NAMES_MAX = 128 << 10


def hexadecimal(digest: str) -> str:
    """The file name of a digest; ``ValueError`` when it is none."""
    if not DIGEST.fullmatch(digest):
        raise ValueError(f"no digest: {digest!r}")
    return digest.removeprefix("sha256:")


def link_name(digest: str) -> str:
    """The short name of a layer: so much of its digest that nobody finds another one with the same."""
    return hexadecimal(digest)[:16]


class Images:
    """What this host has: the built-in image, where it is on, and those of the store."""

    def __init__(self, store: int, host: Rootfs | None) -> None:
        """store: descriptor of the store's directory, which nobody but root may write to."""
        self._store, self._host = store, host
        self._held: dict[str, tuple[int, Rootfs, int]] = {}

    def __contains__(self, image: str) -> bool:
        if image == HOST:
            return self._host is not None
        if image in self._held:
            return True
        if not DIGEST.fullmatch(image):
            return False
        try:
            os.stat(f"{IMAGES}/{hexadecimal(image)}", dir_fd=self._store, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return True

    def __iter__(self) -> Iterator[str]:
        """The names that need no store; for messages."""
        return iter([HOST] if self._host else [])

    def take(self, image: str) -> Rootfs:
        """The image's layers; until ``drop`` was called as often, nobody removes them."""
        if image == HOST and self._host:
            return self._host
        lock, rootfs, users = self._held.get(image) or (*self._hold(image), 0)
        self._held[image] = (lock, rootfs, users + 1)
        return rootfs

    def drop(self, image: str) -> None:
        """One job less runs in it."""
        if image == HOST:
            return
        lock, rootfs, users = self._held[image]
        if users > 1:
            self._held[image] = (lock, rootfs, users - 1)
        else:
            del self._held[image]
            os.close(lock)

    def _hold(self, image: str) -> tuple[int, Rootfs]:
        path = f"{IMAGES}/{hexadecimal(image)}"
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._store)
        except OSError as problem:
            raise SandboxError("image", problem.errno or 0, image, "it is not on this host") from problem
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
            # It may have been removed between our open and our lock.
            if os.fstat(fd).st_nlink == 0:
                raise BlockingIOError
            record = json.loads(os.pread(fd, RECORD_MAX, 0))
            rootfs = self._rootfs(image, record["layers"])
            os.utime(fd)  # when it was last used
            return fd, rootfs
        except BlockingIOError as problem:
            os.close(fd)
            raise SandboxError("image", 0, image, "it is being removed") from problem
        except BaseException:
            os.close(fd)
            raise

    def _rootfs(self, image: str, layers: list[str]) -> Rootfs:
        """Topmost first, as overlayfs takes them; all of them must be there."""
        for layer in layers:
            try:
                os.stat(f"{LAYERS}/{hexadecimal(layer)}/{TREE}", dir_fd=self._store, follow_symlinks=False)
            except FileNotFoundError as problem:
                hint = f"its layer {layer} is not in the store, or was found damaged; import it again"
                raise SandboxError("image", problem.errno or 0, image, hint) from problem
        # One idmapped mount of the store for all layers: each mount of a sandbox costs at its birth and at its end.
        # overlayfs refuses a layer that stands twice (Docker writes empty ones); the upper one covers the other.
        lowers = [f"l/1/{LINKS}/{link_name(layer)}" for layer in dict.fromkeys(reversed(layers))]
        return Rootfs((f"own/{SKELETON}", "store"), ("l/0", *lowers))

    def find(self, image: str) -> dict[str, Any] | None:
        """What is recorded of an image, by name or digest, and all ``names`` that it has now."""
        names = self.names()
        digest = image if DIGEST.fullmatch(image) else names.get(image)
        if digest is None:
            return None
        try:
            fd = os.open(
                f"{IMAGES}/{hexadecimal(digest)}",
                os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC,
                dir_fd=self._store,
            )
        except (FileNotFoundError, ValueError):
            return None
        try:
            record: dict[str, Any] = json.loads(os.pread(fd, RECORD_MAX, 0))
        finally:
            os.close(fd)
        return record | {"names": [name for name, each in names.items() if each == digest]}

    def names(self) -> dict[str, str]:
        """The digest of every name."""
        try:
            fd = os.open(NAMES, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._store)
        except FileNotFoundError:
            return {}
        try:
            names: dict[str, str] = json.loads(os.pread(fd, NAMES_MAX, 0))
        finally:
            os.close(fd)
        return names
