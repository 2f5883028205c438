"""Where an image comes from: what `Store.add` needs of an archive, a directory or a registry."""

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from worker.images import manifest
from worker.images.errors import ImageError
from worker.images.manifest import Config, Descriptor
from worker.sandbox.images import TREE

Progress = Callable[[int], None]
"""Told how many bytes of the blob at work have come, time and again."""


@dataclass(frozen=True)
class Blob:
    """One layer that can be had: ``open`` gives its bytes, compressed or not, in chunks.

    digest, size: of these bytes, as they were announced; checked where they are known.
    diff_id: the digest of the archive in them; None where only unpacking tells.
    """

    open: Callable[[], AbstractContextManager[Iterable[bytes]]]
    digest: str | None = None
    size: int | None = None
    diff_id: str | None = None


@dataclass(frozen=True)
class Layer:
    """An unpacked layer, in its directory of the store.

    archive: bytes of the archive that it came from. size: bytes of its files. left_out: how many entries or attributes
    of each kind were not taken in.
    """

    diff_id: str
    directory: Path
    archive: int
    size: int
    entries: int
    opaque: tuple[str, ...]
    left_out: dict[str, int]


class Source(Protocol):
    """One image, already resolved to this machine's platform, its manifest and configuration read and checked."""

    @property
    def layers(self) -> Sequence[Blob]:
        """The lowest first."""

    def describe(self, layers: Sequence[Layer]) -> tuple[bytes, bytes, Config]:
        """The manifest, the configuration, and what the latter says; asked when all layers are there."""


@dataclass(frozen=True)
class Described:
    """A source whose manifest came with it. `open_blob` gives the bytes of a layer by its descriptor."""

    manifest: bytes
    config: bytes
    open_blob: Callable[[Descriptor], AbstractContextManager[Iterable[bytes]]]

    @property
    def layers(self) -> tuple[Blob, ...]:
        """One blob for each layer; ``ImageError`` when manifest and configuration do not agree."""
        found = manifest.read_manifest(self.manifest)
        diff_ids = manifest.read_config(self.config).rootfs.diff_ids
        manifest.check_content(found.config, self.config)
        manifest.check_counts(len(found.layers), len(diff_ids))
        return tuple(
            Blob(lambda each=each: self.open_blob(each), each.digest, each.size, diff_id)  # type: ignore[misc]
            for each, diff_id in zip(found.layers, diff_ids, strict=True)
        )

    def describe(self, layers: Sequence[Layer]) -> tuple[bytes, bytes, Config]:
        """What came with it."""
        return self.manifest, self.config, manifest.read_config(self.config)


@dataclass(frozen=True)
class Undescribed:
    """A source without a manifest: one is made of what there is, the same for the same content."""

    layers: tuple[Blob, ...]
    config: bytes | None = None

    def describe(self, layers: Sequence[Layer]) -> tuple[bytes, bytes, Config]:
        """The manifest that says what is there; its layers are the archives, not compressed.

        Raises ``ImageError`` when what was taken for a root file system is the archive of an image: only unpacking
        tells, where it is compressed.
        """
        if self.config is None:
            _must_be_root(layers[0].directory / TREE)
        config = self.config or _encoded(
            {
                "architecture": manifest.architecture(),
                "os": "linux",
                "config": {},
                "rootfs": {"type": "layers", "diff_ids": [layer.diff_id for layer in layers]},
            }
        )
        value = {
            "schemaVersion": 2,
            "mediaType": manifest.MANIFESTS[0],
            "config": {
                "mediaType": manifest.CONFIGS[0],
                "digest": f"sha256:{hashlib.sha256(config).hexdigest()}",
                "size": len(config),
            },
            "layers": [
                {"mediaType": manifest.LAYERS[0], "digest": layer.diff_id, "size": layer.archive}
                for layer in layers
            ],
        }
        return _encoded(value), config, manifest.read_config(config)


def _must_be_root(tree: Path) -> None:
    for mark, sign in (("oci-layout", b"imageLayoutVersion"), ("manifest.json", b'"Layers"')):
        path = tree / mark
        if path.is_symlink() or not path.is_file():
            continue
        with path.open("rb") as file:
            if sign in file.read(manifest.MANIFEST_MAX):
                raise ImageError(
                    "no_image", f"it holds an image ({mark}), no root file system; decompress it first"
                )


def _encoded(value: dict[str, Any]) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
