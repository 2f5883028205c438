"""What an image says of itself: index, manifest, configuration. Read strictly where we use it, else ignored.

OCI image-spec v1.1 and Docker's image manifest v2 schema 2, which differ in media types only. Nothing here has an
effect; every function takes bytes and gives a frozen value or raises ``ImageError``.
"""

import hashlib
import json
import os
import posixpath
from collections.abc import Iterable
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, Strict, StringConstraints, ValidationError

from worker.images.errors import ImageError
from worker.sandbox.images import DIGEST, LAYERS_MAX

MANIFEST_MAX = 4 << 20
"""Bytes of a manifest, an index or a configuration, as the registries and containers/image have it."""
BLOB_MAX = 1 << 40
INDEX_MAX = 1024
NESTING_MAX = 3
"""Indexes within one another."""
ENV_MAX, ENV_BYTES = 256, 32 << 10

MANIFESTS = (
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
)
INDEXES = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)
CONFIGS = ("application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json")
LAYERS = (
    "application/vnd.oci.image.layer.v1.tar",
    "application/vnd.oci.image.layer.v1.tar+gzip",
    "application/vnd.oci.image.layer.v1.tar+zstd",
    "application/vnd.docker.image.rootfs.diff.tar",
    "application/vnd.docker.image.rootfs.diff.tar.gzip",
)
_MACHINES = {"x86_64": "amd64", "aarch64": "arm64"}

Digest = Annotated[str, Strict(), StringConstraints(pattern=DIGEST.pattern)]
Text = Annotated[str, Strict(), StringConstraints(max_length=4096, pattern=r"^[^\x00]*$")]
Size = Annotated[int, Strict(), Field(ge=0, le=BLOB_MAX)]


class Lenient(BaseModel):
    """The specification has readers ignore what they do not know."""

    model_config = ConfigDict(frozen=True, extra="ignore", populate_by_name=True)


class Platform(Lenient):
    """What a manifest of an index is for."""

    architecture: Text
    os: Text
    variant: Text = ""


class Descriptor(Lenient):
    """A piece of content by its digest. ``urls`` and ``data`` of the specification are not read."""

    media_type: Text = Field(alias="mediaType")
    digest: Digest
    size: Size
    platform: Platform | None = None


class Manifest(Lenient):
    """One image: its configuration and its layers, the lowest first."""

    schema_version: Annotated[int, Strict()] = Field(alias="schemaVersion")
    media_type: Text = Field(default=MANIFESTS[0], alias="mediaType")
    config: Descriptor
    layers: tuple[Descriptor, ...] = Field(min_length=1, max_length=LAYERS_MAX)


class Index(Lenient):
    """Manifests of one image for several platforms, or of several images."""

    schema_version: Annotated[int, Strict()] = Field(alias="schemaVersion")
    media_type: Text = Field(default=INDEXES[0], alias="mediaType")
    manifests: tuple[Descriptor, ...] = Field(min_length=1, max_length=INDEX_MAX)


def _listed(value: Any) -> Any:
    return () if value is None else value


def _text(value: Any) -> Any:
    return "" if value is None else value


Words = Annotated[tuple[Text, ...], BeforeValidator(_listed), Field(max_length=ENV_MAX)]
Word = Annotated[Text, BeforeValidator(_text)]


class Defaults(Lenient):
    """How the image's program is to be run, unless somebody says otherwise."""

    user: Word = Field(default="", alias="User")
    env: Words = Field(default=(), alias="Env")
    entrypoint: Words = Field(default=(), alias="Entrypoint")
    command: Words = Field(default=(), alias="Cmd")
    directory: Word = Field(default="", alias="WorkingDir")


class RootFs(Lenient):
    """The layers as they are unpacked, the lowest first."""

    type: Text
    diff_ids: tuple[Digest, ...] = Field(min_length=1, max_length=LAYERS_MAX)


class Config(Lenient):
    """An image's configuration."""

    architecture: Text
    os: Text
    rootfs: RootFs
    config: Annotated[Defaults, BeforeValidator(lambda value: {} if value is None else value)] = Defaults()


Model = TypeVar("Model", bound=BaseModel)


def architecture() -> str:
    """This machine's, as images name it."""
    return _MACHINES.get(os.uname().machine, os.uname().machine)


def read_manifest(data: bytes) -> Manifest:
    """A manifest that can be used: known media types, no more layers than an overlay takes."""
    value = _object(data, "manifest_invalid", "the manifest")
    if "manifests" in value:
        raise ImageError("manifest_invalid", "it has both manifests and layers, so it means two things")
    manifest = _model(Manifest, value, "manifest_invalid")
    _known(manifest.schema_version, manifest.media_type, MANIFESTS)
    if manifest.config.media_type not in CONFIGS:
        raise ImageError("manifest_invalid", f"this is no image, but {manifest.config.media_type}")
    if manifest.config.size > MANIFEST_MAX:
        raise ImageError("image_too_large", f"a configuration of {manifest.config.size} bytes")
    for layer in manifest.layers:
        if "foreign" in layer.media_type or "nondistributable" in layer.media_type:
            raise ImageError(
                "layer_foreign", f"the layer {layer.digest} is kept elsewhere; it is not fetched from there"
            )
        if layer.media_type not in LAYERS:
            raise ImageError("manifest_invalid", f"a layer of the unknown type {layer.media_type}")
    return manifest


def read_index(data: bytes) -> Index:
    """An index of manifests."""
    value = _object(data, "manifest_invalid", "the index")
    if "layers" in value or "config" in value:
        raise ImageError("manifest_invalid", "it has both manifests and layers, so it means two things")
    index = _model(Index, value, "manifest_invalid")
    _known(index.schema_version, index.media_type, INDEXES)
    return index


def is_index(data: bytes) -> bool:
    """Whether these bytes claim to be an index rather than a manifest."""
    return "manifests" in _object(data, "manifest_invalid", "the manifest")


def for_this_machine(descriptors: Iterable[Descriptor]) -> Descriptor:
    """The one that runs here. One without a platform is taken where nothing else is there."""
    found = list(descriptors)
    for each in found:
        if each.platform and (each.platform.os, each.platform.architecture) == ("linux", architecture()):
            return each
    if len(found) == 1 and found[0].platform is None:
        return found[0]
    offered = {f"{each.platform.os}/{each.platform.architecture}" for each in found if each.platform}
    raise ImageError(
        "wrong_platform", f"there is no image for linux/{architecture()}, only {', '.join(sorted(offered))}"
    )


def read_config(data: bytes) -> Config:
    """A configuration that can be run with; paths and variables are sound."""
    value = _object(data, "config_invalid", "the configuration")
    config = _model(Config, value, "config_invalid")
    if (config.os, config.architecture) != ("linux", architecture()):
        what = f"{config.os}/{config.architecture}"
        raise ImageError("wrong_platform", f"the image is for {what}, this machine is linux/{architecture()}")
    if config.rootfs.type != "layers":
        raise ImageError("config_invalid", f"rootfs.type is {config.rootfs.type!r}, not 'layers'")
    defaults = config.config
    if sum(len(each.encode()) + 1 for each in defaults.env) > ENV_BYTES:
        raise ImageError("config_invalid", f"Env is longer than {ENV_BYTES} bytes")
    for each in defaults.env:
        if each.find("=") < 1:
            raise ImageError("config_invalid", f"Env has {each[:100]!r}, which is not NAME=VALUE")
    directory_of(defaults)
    return config


def directory_of(defaults: Defaults) -> str:
    """WorkingDir, normalised; empty where it says nothing but the root."""
    if not defaults.directory or defaults.directory.strip("/") == "":
        return ""
    path = posixpath.normpath("/" + defaults.directory.lstrip("/"))
    if not defaults.directory.startswith("/") or ".." in defaults.directory.split("/"):
        raise ImageError(
            "config_invalid", f"WorkingDir {defaults.directory[:200]!r} is no plain absolute path"
        )
    if path.split("/")[1] in ("proc", "sys", "dev"):
        raise ImageError(
            "config_invalid", f"WorkingDir {path[:200]!r} is none of the image's own directories"
        )
    return path


def check_content(descriptor: Descriptor, content: bytes) -> None:
    """Hold content against what was said of it."""
    if descriptor.size > MANIFEST_MAX:
        raise ImageError(
            "image_too_large", f"{descriptor.digest} has {descriptor.size} bytes, {MANIFEST_MAX} are read"
        )
    if len(content) != descriptor.size:
        raise ImageError(
            "digest_mismatch", f"{descriptor.digest} has not the {descriptor.size} bytes that were announced"
        )
    if f"sha256:{hashlib.sha256(content).hexdigest()}" != descriptor.digest:
        raise ImageError("digest_mismatch", f"the content of {descriptor.digest} has another digest")


def check_counts(layers: int, diff_ids: int) -> None:
    """Manifest and configuration speak of the same layers."""
    if layers != diff_ids:
        raise ImageError("config_invalid", f"the manifest has {layers} layers, the configuration {diff_ids}")


def _known(version: int, media_type: str, types: tuple[str, ...]) -> None:
    if version != 2:
        raise ImageError("manifest_invalid", f"schemaVersion is {version}, and only 2 is read")
    if media_type not in types:
        raise ImageError("manifest_invalid", f"mediaType is {media_type!r}, expected {' or '.join(types)}")


def _object(data: bytes, code: str, what: str) -> dict[str, Any]:
    if len(data) > MANIFEST_MAX:
        raise ImageError("image_too_large", f"{what} has {len(data)} bytes, at most {MANIFEST_MAX} are read")
    try:
        value = json.loads(data, object_pairs_hook=_without_duplicates)
    except (ValueError, RecursionError) as problem:
        raise ImageError(code, f"{what} is no JSON: {str(problem)[:200]}") from None
    if not isinstance(value, dict):
        raise ImageError(code, f"{what} is no JSON object")
    return value


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a key stands twice")
    return value


def _model(model: type[Model], value: dict[str, Any], code: str) -> Model:
    try:
        return model.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        where = ".".join(str(each) for each in first["loc"])
        raise ImageError(code, f"{where}: {first['msg']}"[:500]) from None
