"""Manifests: what an image is made of, as the OCI image specification and Docker's schema 2 write it.

Whoever wrote a manifest is not trusted. It is read from at most 4 MiB, is plain JSON without a key twice, is
either an index or a manifest and never both (CVE-2021-41190), names blobs by digest and size, and has at most 128
layers of a kind that can be unpacked. What is not used is not read: no `urls`, no inline `data`.
"""

import json
import os
from collections.abc import Iterator
from typing import Annotated, Any, TypeVar

from annotated_types import Ge, Le, MaxLen
from pydantic import AfterValidator, ConfigDict, Field, Strict, ValidationError

from policies.model import Frozen
from policies.units import SIZE_MAX
from worker.images.remote.faults import Fault, RegistryError
from worker.images.remote.reference import is_digest

MANIFEST_MAX = 4 << 20
"""Bytes of a manifest, of an index and of a config: what containers/image takes."""
LAYERS_MAX = 128
"""Layers of an image."""
INDEX_MAX = 1000
"""Manifests in an index."""

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
DOCKER_INDEX = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
INDEXES, MANIFESTS = (OCI_INDEX, DOCKER_INDEX), (OCI_MANIFEST, DOCKER_MANIFEST)
CONFIGS = ("application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json")
LAYERS = (
    "application/vnd.oci.image.layer.v1.tar",
    "application/vnd.oci.image.layer.v1.tar+gzip",
    "application/vnd.oci.image.layer.v1.tar+zstd",
    "application/vnd.oci.image.layer.nondistributable.v1.tar",
    "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
    "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd",
    "application/vnd.docker.image.rootfs.diff.tar",
    "application/vnd.docker.image.rootfs.diff.tar.gzip",
    "application/vnd.docker.image.rootfs.diff.tar.zstd",
    "application/vnd.docker.image.rootfs.foreign.diff.tar",
    "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
)

_ARCHITECTURES = {  # uname -m: the name that Go, and so OCI, has for it
    "x86_64": "amd64",
    "aarch64": "arm64",
    "armv7l": "arm",
    "i686": "386",
    "loongarch64": "loong64",
}
_VARIANTS = {"arm": ("v7", "v6", "v5"), "arm64": ("v8",)}


def _checked_digest(text: str) -> str:
    if not is_digest(text):
        raise ValueError("must be sha256: and 64, or sha512: and 128, of 0-9 and a-f")
    return text


Digest = Annotated[str, MaxLen(140), AfterValidator(_checked_digest)]


class _Foreign(Frozen):
    """A model of others' JSON: its unknown keys are theirs, and are not kept."""

    model_config = ConfigDict(extra="ignore", hide_input_in_errors=True, populate_by_name=True)


_Model = TypeVar("_Model", bound=_Foreign)


class Platform(_Foreign):
    """What a manifest is for, in Go's words."""

    os: Annotated[str, MaxLen(64)] = ""
    architecture: Annotated[str, MaxLen(64)] = ""
    variant: Annotated[str, MaxLen(64)] = ""

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)


class Descriptor(_Foreign):
    """A blob as a manifest names it: what it is, its digest and its size in bytes."""

    media_type: Annotated[str, MaxLen(255)] = Field(alias="mediaType")
    digest: Digest
    size: Annotated[int, Strict(), Ge(0), Le(SIZE_MAX)]
    platform: Platform | None = None


class Manifest(_Foreign):
    """One image: its config and its layers, lowest first."""

    config: Descriptor
    layers: Annotated[tuple[Descriptor, ...], MaxLen(LAYERS_MAX)]


class Index(_Foreign):
    """Manifests of one image for several platforms."""

    manifests: Annotated[tuple[Descriptor, ...], MaxLen(INDEX_MAX)]


class _RootFs(_Foreign):
    diff_ids: Annotated[tuple[Digest, ...], MaxLen(LAYERS_MAX)]


class _Config(Platform):
    rootfs: _RootFs


def this_platform() -> Platform:
    """The platform of this machine (uname(2))."""
    machine = os.uname().machine
    return Platform(os="linux", architecture=_ARCHITECTURES.get(machine, machine))


def parse_manifest(body: bytes, media_type: str, subject: str) -> Manifest | Index:
    """The manifest or index that a registry sent, or an archive holds.

    Args:
        body: its bytes, whose digest is checked already where one was asked for.
        media_type: what it was said to be.
        subject: the image, for messages.

    Raises:
        RegistryError: it is neither, or breaks a rule of this module.
    """
    if media_type not in INDEXES + MANIFESTS:
        raise _refused(subject, f"its manifest is of type {media_type[:80]!r}, and schema 2 or OCI is needed")
    document = _document(body, subject)
    said = document.get("mediaType", media_type)
    if said != media_type:
        raise _refused(
            subject, f"its manifest was sent as {media_type} and says that it is {str(said)[:80]!r}"
        )
    if type(document.get("schemaVersion")) is not int or document["schemaVersion"] != 2:
        raise _refused(subject, "its manifest is not of schemaVersion 2")
    if "manifests" in document and ("layers" in document or "config" in document):
        raise _refused(subject, "its manifest is a manifest and an index at once")
    if media_type in INDEXES:
        return _parsed(Index, document, subject, "index")
    manifest = _parsed(Manifest, document, subject, "manifest")
    _check_kinds(manifest, subject)
    return manifest


def choose(index: Index, platform: Platform, subject: str) -> Descriptor:
    """The manifest in `index` for a platform: of the best variant that runs here, and the first of those.

    Raises:
        RegistryError: there is none.
    """
    variants = _VARIANTS.get(platform.architecture, ())
    ranks = {"": 0, **{variant: rank for rank, variant in enumerate(variants)}}
    fitting = [
        (ranks[each.platform.variant], number, each)
        for number, each in enumerate(index.manifests)
        if each.platform is not None
        and (each.platform.os, each.platform.architecture) == (platform.os, platform.architecture)
        and each.platform.variant in ranks
    ]
    if not fitting:
        there = ", ".join(dict.fromkeys(str(each.platform) for each in index.manifests if each.platform))
        raise _refused(subject, f"there is none for {platform}; there is: {there[:300] or 'nothing'}")
    chosen = min(fitting)[2]
    if chosen.media_type not in MANIFESTS:
        raise _refused(subject, f"its index leads to {chosen.media_type[:80]!r}, not to a manifest")
    return chosen


def check_config(body: bytes, manifest: Manifest, platform: Platform, subject: str) -> None:
    """Refuse a config that is not of this platform, or counts other layers than its manifest.

    Raises:
        RegistryError: it is so, or is no config.
    """
    config = _parsed(_Config, _document(body, subject), subject, "config")
    if (config.os, config.architecture) != (platform.os, platform.architecture):
        raise _refused(
            subject, f"it is for {Platform(os=config.os, architecture=config.architecture)}, not {platform}"
        )
    there, said = len(manifest.layers), len(config.rootfs.diff_ids)
    if there != said:
        raise _refused(subject, f"its manifest has {there} layers, its config {said}")


def _check_kinds(manifest: Manifest, subject: str) -> None:
    kinds = [(manifest.config, CONFIGS), *((layer, LAYERS) for layer in manifest.layers)]
    for blob, allowed in kinds:
        if blob.media_type not in allowed:
            raise _refused(subject, f"it is no image: it holds {blob.media_type[:80]!r}")
    if manifest.config.size > MANIFEST_MAX:
        raise _refused(
            subject, f"its config has {manifest.config.size} bytes, at most {MANIFEST_MAX} are read"
        )


def _document(body: bytes, subject: str) -> dict[str, Any]:
    """A JSON object, each of its keys once at every depth."""
    if len(body) > MANIFEST_MAX:
        raise _refused(subject, f"its manifest has {len(body)} bytes, at most {MANIFEST_MAX} are read")
    try:
        document = json.loads(body, object_pairs_hook=_once)
    except (ValueError, RecursionError):
        raise _refused(subject, "its manifest or config is not JSON, or has a key twice") from None
    if not isinstance(document, dict):
        raise _refused(subject, "its manifest or config is no JSON object")
    return document


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key twice")
    return found


def _parsed(model: type[_Model], document: dict[str, Any], subject: str, what: str) -> _Model:
    try:
        return model.model_validate(document)
    except ValidationError as error:
        wrong = "; ".join(_wrong(error))
        raise _refused(subject, f"its {what} cannot be used: {wrong[:300]}") from None


def _wrong(error: ValidationError) -> Iterator[str]:
    for found in error.errors(include_input=False, include_url=False)[:3]:
        yield f"{'.'.join(str(part) for part in found['loc'])}: {found['msg'].removeprefix('Value error, ')}"


def _refused(subject: str, reason: str) -> RegistryError:
    return RegistryError(Fault.REFUSED, subject, reason)
