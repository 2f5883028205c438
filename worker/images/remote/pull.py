"""Pulling: from a reference to an image's manifest, config and layers, each checked against its digest.

    resolve(reference)  one HEAD: the digest that a tag stands for now, which is what admission writes down
    pull(reference)     manifest, through an index to this machine's; config; layers, three at a time

The operator's mirrors are asked first. One that does not have it, does not answer, or sends something else than it
should is passed over; the registry itself is asked last, and what it says is what is told.
"""

import contextlib
import io
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import AbstractContextManager
from pathlib import Path
from typing import BinaryIO, Protocol, TypeVar

from pydantic import ConfigDict, Field

from policies.model import Frozen
from worker.images import manifest as manifests
from worker.images.errors import ImageError
from worker.images.manifest import Descriptor, Index, Manifest
from worker.images.remote.credentials import load_credentials
from worker.images.remote.faults import Fault, RegistryError
from worker.images.remote.reference import Reference
from worker.images.remote.registries import Endpoint, Registries
from worker.images.remote.registry import CONNECTIONS, Document, Registry
from worker.images.remote.transport import Patience

IMAGE_MAX = 64 << 30
"""Bytes of an image's blobs together, where nobody says less."""
_TOLD_EVERY = 0.1
"""Seconds between two calls of a progress callback."""

_Result = TypeVar("_Result")


class BlobSink(Protocol):
    """Where blobs go."""

    def has(self, blob: Descriptor) -> bool:
        """Whether it need not be fetched.

        Only for what came from this very repository before: a manifest may name any digest, and a layer of another's
        private image must not be had by knowing its name.
        """
        ...

    def blob(self, blob: Descriptor) -> AbstractContextManager[BinaryIO]:
        """An empty file to write it to: kept when the block ends well, and gone when not. Used by several threads."""
        ...


class Progress(Frozen):
    """How far a pull is."""

    bytes: int = Field(description="Bytes that came, of what has to come.")
    bytes_total: int
    blobs: int = Field(description="Blobs that are complete.")
    blobs_total: int
    rate: float = Field(description="Bytes a second since the beginning.")


class Pulled(Frozen):
    """One image that is here, every blob of it checked."""

    model_config = ConfigDict(ser_json_bytes="base64", val_json_bytes="base64")

    reference: Reference = Field(description="The image, held to its digest.")
    digest: str = Field(description="What the reference stands for: of the index, where there is one.")
    manifest_digest: str = Field(description="Of this machine's manifest.")
    manifest: bytes
    media_type: str = Field(description="Of the manifest.")
    config: bytes
    config_blob: Descriptor
    layers: tuple[Descriptor, ...] = Field(description="Lowest first.")


class Sources(Frozen):
    """Whom to ask for an image, and how."""

    endpoints: tuple[Endpoint, ...] = Field(description="Mirrors in order, and last the registry itself.")
    patience: Patience = Patience()
    image_max: int = Field(default=IMAGE_MAX, description="Bytes that an image's blobs may have together.")


def sources_of(
    reference: Reference, registries: Path | None, credentials: Path | None, patience: Patience | None = None
) -> Sources:
    """Whom to ask for an image, as the operator's two files say; of the credentials only those that are for them.

    Raises:
        RegistryError: a file cannot be used.
    """
    known = load_credentials(credentials) if credentials is not None else {}
    endpoints = Registries.load(registries).endpoints(reference, known)
    return Sources(endpoints=endpoints, patience=patience or Patience())


def resolve(reference: Reference, sources: Sources) -> str:
    """The digest that a reference stands for: its own, or the one that its tag has now.

    Raises:
        RegistryError: nobody says.
    """
    if reference.digest is not None:
        return reference.digest
    return _first(sources, lambda registry: registry.digest_of(reference.wanted))


def pull(
    reference: Reference, into: BlobSink, progress: Callable[[Progress], None], sources: Sources
) -> Pulled:
    """Fetch an image for this machine.

    Args:
        reference: the image.
        into: takes the layers that it does not have.
        progress: called now and then, from several threads but never from two at once.
        sources: whom to ask.

    Raises:
        RegistryError: it cannot be had, or is not what it should be.
    """
    return _first(sources, lambda registry: _Pull(registry, reference, sources).checked(into, progress))


def _first(sources: Sources, ask: Callable[[Registry], _Result]) -> _Result:
    """What the first endpoint that can says."""
    *mirrors, home = sources.endpoints
    for mirror in mirrors:
        with contextlib.suppress(RegistryError), Registry(mirror, sources.patience) as registry:
            return ask(registry)
    with Registry(home, sources.patience) as registry:
        return ask(registry)


class _Pull:
    """One image from one endpoint."""

    def __init__(self, registry: Registry, reference: Reference, sources: Sources) -> None:
        self._registry, self._reference, self._sources = registry, reference, sources
        self._subject = str(reference)

    def checked(self, into: BlobSink, progress: Callable[[Progress], None]) -> Pulled:
        """The image; what is wrong with its manifest or config is told of the image."""
        try:
            return self._run(into, progress)
        except ImageError as error:
            raise self._refused(error.message) from None

    def _run(self, into: BlobSink, progress: Callable[[Progress], None]) -> Pulled:
        top, document, manifest = self._manifest()
        layers = tuple({layer.digest: layer for layer in manifest.layers}.values())
        self._bound(manifest)
        config = self._config(manifest)
        manifests.check_counts(len(manifest.layers), len(manifests.read_config(config).rootfs.diff_ids))
        self._fetch([layer for layer in layers if not into.has(layer)], into, progress)
        return Pulled(
            reference=self._reference.at(top.digest),
            digest=top.digest,
            manifest_digest=document.digest,
            manifest=document.body,
            media_type=document.media_type,
            config=config,
            config_blob=manifest.config,
            layers=manifest.layers,
        )

    def _manifest(self) -> tuple[Document, Document, Manifest]:
        """What the reference names, this machine's manifest, and that manifest read."""
        top = document = self._registry.manifest(self._reference.wanted)
        found = _read(top)
        if isinstance(found, Index):
            chosen = manifests.for_this_machine(found.manifests)
            document = self._registry.manifest(chosen.digest)
            if (len(document.body), document.media_type) != (chosen.size, chosen.media_type):
                raise self._refused("its manifest has another size or type than its index says")
            found = _read(document)
        if isinstance(found, Index):
            raise self._refused("its index leads to an index")
        return top, document, found

    def _bound(self, manifest: Manifest) -> None:
        """Refuse too many bytes before the first one of them comes."""
        sizes: dict[str, int] = {}
        for blob in (manifest.config, *manifest.layers):
            if sizes.setdefault(blob.digest, blob.size) != blob.size:
                raise self._refused(f"its manifest gives {blob.digest} two sizes")
        if (total := sum(sizes.values())) > self._sources.image_max:
            raise self._refused(f"it has {total} bytes, at most {self._sources.image_max} are allowed")

    def _config(self, manifest: Manifest) -> bytes:
        buffer = io.BytesIO()
        self._registry.blob(manifest.config, buffer, lambda _: None)
        return buffer.getvalue()

    def _fetch(self, wanted: list[Descriptor], into: BlobSink, progress: Callable[[Progress], None]) -> None:
        """Fetch blobs, the largest first; the first failure ends all."""
        tally = _Tally(wanted, progress)

        def fetch(blob: Descriptor) -> None:
            with into.blob(blob) as file:
                self._registry.blob(blob, file, tally.moved)
            tally.done()

        with ThreadPoolExecutor(CONNECTIONS, "pull") as threads:
            started = [threads.submit(fetch, blob) for blob in sorted(wanted, key=lambda blob: -blob.size)]
            try:
                for ended in as_completed(started):
                    ended.result()
            except BaseException:
                self._registry.stop()
                threads.shutdown(cancel_futures=True)
                raise

    def _refused(self, reason: str) -> RegistryError:
        return RegistryError(Fault.REFUSED, self._subject, reason)


def _read(document: Document) -> Manifest | Index:
    """What came, if it is what it was said to be: nothing is guessed from its content (CVE-2021-41190).

    Raises:
        ImageError: it is not.
    """
    kind = document.media_type
    if kind not in manifests.MANIFESTS + manifests.INDEXES:
        raise ImageError(
            "manifest_invalid", f"its type is {kind[:80]!r}, and OCI or Docker's schema 2 is needed"
        )
    read = manifests.read_index if kind in manifests.INDEXES else manifests.read_manifest
    found: Manifest | Index = read(document.body)
    if found.media_type != kind:
        raise ImageError("manifest_invalid", f"it was sent as {kind} and says that it is {found.media_type}")
    return found


class _Tally:
    """Counts what comes, over all threads, and tells it now and then and at the end."""

    def __init__(self, wanted: list[Descriptor], tell: Callable[[Progress], None]) -> None:
        self._tell, self._lock = tell, threading.Lock()
        self._start = self._told = time.monotonic()
        self._bytes, self._total = 0, sum(blob.size for blob in wanted)
        self._blobs, self._blobs_total = 0, len(wanted)

    def moved(self, count: int) -> None:
        with self._lock:
            self._bytes += count
            if time.monotonic() - self._told >= _TOLD_EVERY:
                self._report()

    def done(self) -> None:
        with self._lock:
            self._blobs += 1
            self._report()

    def _report(self) -> None:
        self._told = time.monotonic()
        rate = self._bytes / max(self._told - self._start, 1e-6)
        self._tell(
            Progress(
                bytes=self._bytes,
                bytes_total=self._total,
                blobs=self._blobs,
                blobs_total=self._blobs_total,
                rate=rate,
            )
        )
