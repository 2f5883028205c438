"""What an image is called in a registry: a name as people write it, with Docker's defaults written out.

The grammar is that of `worker.images.reference`. No registry is `docker.io`, a single name there is in `library/`, no
tag and no digest is `latest`. What comes out is fit for a URL's path: no `..`, no percent sign, no slash but between
names.
"""

import re

from pydantic import Field

from policies.model import Frozen
from worker.images import reference
from worker.images.errors import ImageError

DOCKER_HUB = "docker.io"
DEFAULT_TAG = "latest"
_HUB_NAMES = (DOCKER_HUB, "index.docker.io", "")
_port = re.compile(r":([0-9]+)$")


class Reference(Frozen):
    """One image in one registry; its text is the canonical form."""

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


def parse_reference(text: str) -> Reference:
    """The image in a registry that `text` means.

    Raises:
        ImageError: it is no name, or a digest alone, which no registry is known for.
    """
    named = reference.parse(text)
    if not named.path or not _is_port(named.registry):
        raise ImageError(
            "bad_name", f"{text[:255]!r} is in no registry: it must be [HOST[:PORT]/]NAME[:TAG][@sha256:…]"
        )
    registry, repository = named.registry.lower(), named.path
    if registry in _HUB_NAMES:
        registry = DOCKER_HUB
        repository = repository if "/" in repository else f"library/{repository}"
    return Reference(
        registry=registry, repository=repository, tag=named.tag or None, digest=named.digest or None
    )


def is_registry(text: str) -> bool:
    """Whether `text` is HOST or HOST:PORT as names have it: with a dot, a port, or localhost."""
    try:
        return reference.parse(f"{text}/x").registry == text and _is_port(text)
    except ImageError:
        return False


def is_repository(text: str) -> bool:
    """Whether `text` is an image's name within a registry, without a tag."""
    try:
        return reference.parse(f"localhost/{text}").path == text
    except ImageError:
        return False


def _is_port(registry: str) -> bool:
    found = _port.search(registry)
    return found is None or int(found[1]) <= 65535
