"""Where a pulled image lands: a directory in OCI image layout, which is what `import` takes too.

    DIRECTORY/oci-layout, index.json, blobs/sha256/…        (image-layout.md of the OCI image specification)

A blob has its name only once it is complete and checked, and `index.json` is written last: a directory without one
holds nothing that counts. It is a way station, so nothing is synced: whoever takes it into the store does that.
"""

import json
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from worker.images.manifest import Descriptor
from worker.images.remote.pull import Pulled
from worker.sandbox.images import hexadecimal

REFERENCE_ANNOTATION = "org.opencontainers.image.ref.name"


class LayoutSink:
    """An empty directory that becomes an OCI layout of one image.

    directory: it exists, and nobody else writes to it.
    present: digests of blobs that need not be fetched (see BlobSink.has).
    """

    def __init__(self, directory: Path, present: Collection[str] = ()) -> None:
        self._directory, self._present = directory, frozenset(present)

    def has(self, blob: Descriptor) -> bool:
        """Whether the blob need not be fetched."""
        return blob.digest in self._present

    @contextmanager
    def blob(self, blob: Descriptor) -> Iterator[BinaryIO]:
        """A new file; at the end of the block it gets its name, after a failure it is gone."""
        target = self._path(blob.digest)
        partial = target.with_name(f"{target.name}.partial")
        try:
            with partial.open("xb") as file:
                yield file
            partial.rename(target)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise

    def finish(self, pulled: Pulled) -> None:
        """Add manifest, config and index."""
        self._put(pulled.config_blob.digest, pulled.config)
        self._put(pulled.manifest_digest, pulled.manifest)
        manifest = {
            "mediaType": pulled.media_type,
            "digest": pulled.manifest_digest,
            "size": len(pulled.manifest),
            "annotations": {REFERENCE_ANNOTATION: str(pulled.reference)},
        }
        (self._directory / "oci-layout").write_text(json.dumps({"imageLayoutVersion": "1.0.0"}))
        (self._directory / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [manifest]}))

    def _put(self, digest: str, content: bytes) -> None:
        self._path(digest).write_bytes(content)

    def _path(self, digest: str) -> Path:
        folder = self._directory / "blobs" / "sha256"
        folder.mkdir(parents=True, exist_ok=True)
        return folder / hexadecimal(digest)
