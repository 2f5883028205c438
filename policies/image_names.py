"""Names of images: ``python:3.12``, ``registry.example:5000/team/app:1``, ``…@sha256:…``, ``sha256:…``."""

import re
from dataclasses import dataclass

HOST_IMAGE = "host"
"""The built-in image: a read-only view of the machine's own toolchain directories."""

DIGEST = re.compile(r"sha256:[0-9a-f]{64}")

_LABEL = r"[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?"
_REGISTRY = re.compile(rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[0-9a-fA-F:]+\])(?::[0-9]{{1,5}})?")
_PATH = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_LONGEST = 255
_LATEST = "latest"


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
        return (
            self.repository
            + (f":{self.tag}" if self.tag else "")
            + (f"@{self.digest}" if self.digest and not self.tag else "")
        )

    @property
    def repository(self) -> str:
        """The name without tag and digest."""
        return f"{self.registry}/{self.path}" if self.registry else self.path

    def means(self, name: "Reference") -> bool:
        """Whether an image that is called `name` can be meant: a digest beside a name does not open another image."""
        if not self.path:
            return True
        return self.repository == name.repository and (not self.tag or self.tag == name.tag)


def parse(text: str) -> Reference:
    """Read a name as people write it (the distribution project's grammar); ``ValueError`` when it is none.

    The part before the first slash is a registry when it has a dot or a colon or is ``localhost``.
    """
    if DIGEST.fullmatch(text):
        return Reference(digest=text)
    name, at, digest = text.partition("@")
    first, slash, rest = name.partition("/")
    registry = first if slash and ("." in first or ":" in first or first == "localhost") else ""
    path, colon, tag = (rest if registry else name).partition(":")
    tag = tag if colon or at else _LATEST
    sound = (
        len(text) <= _LONGEST
        and (not at or DIGEST.fullmatch(digest))
        and (not registry or _REGISTRY.fullmatch(registry))
        and _PATH.fullmatch(path)
        and (_TAG.fullmatch(tag) or (at and not colon))
        and text != HOST_IMAGE
    )
    if not sound:
        raise ValueError(f"{text[:255]!r} is no name of an image, such as python:3.12, or sha256:…")
    return Reference(registry, path, tag, digest)


def names_digest(image: str) -> bool:
    """Whether a name, of which it is not said that it is one, has a digest in it or is one."""
    return "@" in image or DIGEST.fullmatch(image) is not None


def without_digest(image: str) -> str | None:
    """The part before ``@`` of a name that has both a tag and a digest; None of any other."""
    name, at, _ = image.partition("@")
    return name if at and ":" in name.rpartition("/")[2] else None


def spellings(name: str) -> tuple[str, ...]:
    """How a request may write a name that is in full: with its tag, and without it where that is ``latest``."""
    short = name.removesuffix(f":{_LATEST}")
    return (name, short) if short != name else (name,)
