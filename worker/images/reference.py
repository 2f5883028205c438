"""Names of images: ``python:3.12``, ``registry.example:5000/team/app:1``, ``…@sha256:…``, ``sha256:…``."""

import re
from dataclasses import dataclass

from worker.images.errors import ImageError
from worker.sandbox.images import DIGEST
from worker.sandbox.rootfs import HOST

_LABEL = r"[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?"
_REGISTRY = re.compile(rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[0-9a-fA-F:]+\])(?::[0-9]{{1,5}})?")
_PATH = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_LONGEST = 255


@dataclass(frozen=True)
class Reference:
    """A name, a digest, or both. registry: empty where the name has none. tag: ``latest`` unless one is given."""

    registry: str = ""
    path: str = ""
    tag: str = ""
    digest: str = ""

    def __str__(self) -> str:
        """The name in full; the digest alone where there is no name."""
        if not self.path:
            return self.digest
        name = f"{self.registry}/{self.path}" if self.registry else self.path
        return (
            name
            + (f":{self.tag}" if self.tag else "")
            + (f"@{self.digest}" if self.digest and not self.tag else "")
        )


def parse(text: str) -> Reference:
    """Read a name as people write it (the distribution project's grammar); ``ImageError`` when it is none.

    The part before the first slash is a registry when it has a dot or a colon or is ``localhost``.
    """
    if DIGEST.fullmatch(text):
        return Reference(digest=text)
    name, at, digest = text.partition("@")
    first, slash, rest = name.partition("/")
    registry = first if slash and ("." in first or ":" in first or first == "localhost") else ""
    path, colon, tag = (rest if registry else name).partition(":")
    tag = tag if colon or at else "latest"
    sound = (
        len(text) <= _LONGEST
        and (not at or DIGEST.fullmatch(digest))
        and (not registry or _REGISTRY.fullmatch(registry))
        and _PATH.fullmatch(path)
        and (_TAG.fullmatch(tag) or (at and not colon))
        and text != HOST
    )
    if not sound:
        raise _wrong(text)
    return Reference(registry, path, tag, digest)


def _wrong(text: str) -> ImageError:
    return ImageError("bad_name", f"{text[:255]!r} is no name of an image, such as python:3.12, or sha256:…")
