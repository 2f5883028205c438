"""References to images: `python:3.12`, `registry.example:5000/team/tool@sha256:…`.

The grammar is that of the distribution project (`reference/regexp.go`), the defaults are Docker's: no registry
is `docker.io`, a single name there is in `library/`, no tag and no digest is `latest`. Nothing that this module
lets through can step out of a URL's path or a directory: no `..`, no percent sign, no slash but between names.
"""

import re

from pydantic import Field

from policies.model import Frozen

DOCKER_HUB = "docker.io"
DEFAULT_TAG = "latest"
NAME_MAX = 255
"""Characters of registry and repository together, as the distribution project has it."""

_HOST_PART = r"[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?"
_HOST = rf"(?:{_HOST_PART}(?:\.{_HOST_PART})*|\[[a-fA-F0-9:]{{2,45}}\])(?::[0-9]{{1,5}})?"
_PATH_PART = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_PATH = rf"{_PATH_PART}(?:/{_PATH_PART})*"
_DIGEST = r"sha256:[a-f0-9]{64}|sha512:[a-f0-9]{128}"

_host = re.compile(_HOST)
_path = re.compile(_PATH)
_tag = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_digest = re.compile(_DIGEST)

FORM = "[REGISTRY[:PORT]/]NAME[:TAG][@sha256:DIGEST], in lower case"


class ReferenceFormError(ValueError):
    """A text is no reference to an image; the message says what is wrong with it."""


class Reference(Frozen):
    """One image in one registry; its text is the canonical form, with every default written out."""

    registry: str = Field(description="Host of the registry, with its port where it has one.")
    repository: str = Field(description="Name of the image within the registry.")
    tag: str | None = Field(default=None, description="Tag; null when only a digest was given.")
    digest: str | None = Field(default=None, description="Digest of the manifest or index, `sha256:…`.")

    @property
    def name(self) -> str:
        """Registry and repository: what policies and rights are about."""
        return f"{self.registry}/{self.repository}"

    @property
    def wanted(self) -> str:
        """What to ask the registry for: the digest where there is one (a tag beside it is a comment)."""
        return self.digest or self.tag or DEFAULT_TAG

    def at(self, digest: str) -> "Reference":
        """The same image, held to a digest."""
        return self.model_copy(update={"digest": digest})

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        return f"{self.name}{tag}" + (f"@{self.digest}" if self.digest else "")


def is_digest(text: str) -> bool:
    """Whether `text` is a digest of a kind that is checked here: SHA-256 or SHA-512, lower case."""
    return _digest.fullmatch(text) is not None


def is_registry(text: str) -> bool:
    """Whether `text` is HOST or HOST:PORT."""
    return _host.fullmatch(text) is not None and _port_of(text) <= 65535


def is_repository(text: str) -> bool:
    """Whether `text` is a repository's name within a registry."""
    return _path.fullmatch(text) is not None and len(text) <= NAME_MAX


def parse_reference(text: str) -> Reference:
    """The reference that `text` is, its defaults filled in.

    Raises:
        ReferenceFormError: it is none.
    """
    name, at, digest = text.partition("@")
    if at and not is_digest(digest):
        raise _wrong(text, "its digest must be sha256: and 64, or sha512: and 128, of 0-9 and a-f")
    name, tag = _split_tag(name)
    if tag is not None and not _tag.fullmatch(tag):
        raise _wrong(
            text, "its tag must be 1 to 128 letters, digits, '_', '.', '-', and not begin with '.' or '-'"
        )
    registry, repository = _split_registry(name)
    if not is_registry(registry):
        raise _wrong(text, "its registry must be HOST or HOST:PORT")
    if not is_repository(repository):
        raise _wrong(text, "its name must be lower-case words joined by '/', '.', '_' or '-'")
    if len(registry) + 1 + len(repository) > NAME_MAX:
        raise _wrong(text, f"its name must be of at most {NAME_MAX} characters")
    if tag is None and not at:
        tag = DEFAULT_TAG
    return Reference(registry=registry, repository=repository, tag=tag, digest=digest if at else None)


def _split_tag(name: str) -> tuple[str, str | None]:
    """Name and tag: a colon after the last slash begins the tag, one before it is a port's."""
    path, colon, tag = name.rpartition(":")
    return (path, tag) if colon and "/" not in tag else (name, None)


def _split_registry(name: str) -> tuple[str, str]:
    """Registry and repository, as Docker tells them apart: a host has a dot, a port, capitals, or is localhost."""
    first, slash, rest = name.partition("/")
    named = slash and (first == "localhost" or first != first.lower() or any(c in first for c in ".:["))
    registry, repository = (first, rest) if named else (DOCKER_HUB, name)
    if registry in ("index.docker.io", DOCKER_HUB):
        registry = DOCKER_HUB
        repository = repository if "/" in repository else f"library/{repository}"
    return registry.lower(), repository


def _port_of(host: str) -> int:
    port = host.rpartition("]")[2].rpartition(":")[2]
    return int(port) if ":" in host.rpartition("]")[2] and port else 0


def _wrong(text: str, reason: str) -> ReferenceFormError:
    return ReferenceFormError(f"not an image: {text[:100]!r}; {reason}. It must be {FORM}")
