"""Small images made by hand: an OCI layout in a directory, from nothing but dictionaries and bytes."""

import gzip
import hashlib
import io
import json
import os
import subprocess
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from worker.images.manifest import INDEXES, MANIFESTS, architecture

ARCHITECTURE = architecture()
OCI_MANIFEST, OCI_INDEX = MANIFESTS[0], INDEXES[0]
LAYER = "application/vnd.oci.image.layer.v1.tar"


def digest_of(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def tar_of(files: Mapping[str, bytes]) -> bytes:
    """A tar archive of files."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def compressed(content: bytes, how: str) -> bytes:
    """The content as gzip, zstd, or as it is."""
    if how == "gzip":
        return gzip.compress(content, 1, mtime=0)
    if how == "zstd":
        return subprocess.run(["zstd", "-q", "-c"], input=content, check=True, capture_output=True).stdout
    return content


@dataclass
class Layout:
    """An OCI layout in memory."""

    blobs: dict[str, bytes] = field(default_factory=dict)
    tops: list[dict[str, Any]] = field(default_factory=list)

    def add(self, content: bytes, media_type: str, **more: Any) -> dict[str, Any]:
        """Add a blob; its descriptor."""
        digest = digest_of(content)
        self.blobs[digest] = content
        return {"mediaType": media_type, "digest": digest, "size": len(content), **more}

    def image(
        self, layers: Sequence[bytes], how: str = "gzip", machine: str = ARCHITECTURE, **more: Any
    ) -> dict[str, Any]:
        """Add an image of these tar archives; the descriptor of its manifest. `more` goes into each layer's."""
        config = {
            "os": "linux",
            "architecture": machine,
            "config": {"Env": ["PATH=/bin"]},
            "rootfs": {"type": "layers", "diff_ids": [digest_of(layer) for layer in layers]},
        }
        kind = LAYER if how == "none" else f"{LAYER}+{how}"
        manifest = {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": self.add(json.dumps(config).encode(), "application/vnd.oci.image.config.v1+json"),
            "layers": [self.add(compressed(layer, how), kind, **more) for layer in layers],
        }
        return self.document(manifest, OCI_MANIFEST)

    def index(self, manifests: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
        """Add an index of manifests by platform ("linux/amd64")."""
        entries = []
        for platform, descriptor in manifests.items():
            system, machine = platform.split("/")
            entries.append({**descriptor, "platform": {"os": system, "architecture": machine}})
        return self.document({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}, OCI_INDEX)

    def document(self, content: dict[str, Any], media_type: str) -> dict[str, Any]:
        """Add a JSON blob; its descriptor."""
        return self.add(json.dumps(content).encode(), media_type)

    def write(self, directory: Path, top: dict[str, Any]) -> Path:
        """Write it as a directory whose index.json names `top`."""
        (directory / "blobs" / "sha256").mkdir(parents=True)
        for digest, content in self.blobs.items():
            (directory / "blobs" / "sha256" / digest.partition(":")[2]).write_bytes(content)
        (directory / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
        index = {
            "schemaVersion": 2,
            "manifests": [{**top, "annotations": {"org.opencontainers.image.ref.name": "it"}}],
        }
        (directory / "index.json").write_text(json.dumps(index))
        return directory


def random_layers(count: int, size: int) -> list[bytes]:
    """Tar archives with a file each that cannot be compressed."""
    return [tar_of({f"file-{number}": os.urandom(size)}) for number in range(count)]


def blobs_in(directory: Path) -> dict[str, bytes]:
    """The blobs of a layout on disk, each under the digest that it really has."""
    return {
        digest_of(path.read_bytes()): path.read_bytes() for path in (directory / "blobs" / "sha256").iterdir()
    }
