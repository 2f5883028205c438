"""What the operator says about registries: mirrors, plain HTTP, own authorities, proxies. Nothing else decides.

A YAML file, one entry for each registry that is not simply `https://` with a certificate that this machine trusts:

    docker.io:
      mirrors: [mirror.example/dockerhub, cache.lan:5000]   # asked first, in this order
    cache.lan:5000:
      insecure: true              # plain HTTP; only for a network that nobody else is in
    registry.example:
      ca: /etc/stockade/registry-ca.pem     # trusted for this registry instead of the machine's own
      proxy: http://proxy.example:3128      # the environment's *_proxy variables are not read

Certificates are always verified. Only loopback is spoken to in plain HTTP without being named here.
"""

import ipaddress
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Self

import yaml
from annotated_types import MaxLen
from pydantic import AfterValidator, Field, RootModel, SecretStr, ValidationError

from policies.model import Frozen
from worker.images.remote.credentials import Credential, Secret
from worker.images.remote.faults import Fault, RegistryError
from worker.images.remote.reference import DOCKER_HUB, Reference, is_registry, is_repository
from worker.images.remote.urls import Url

_HUB_HOST = "registry-1.docker.io"
"""Where Docker Hub, whose name is docker.io, answers the distribution API."""
MIRRORS_MAX = 8
"""Mirrors of one registry."""


def _registry(text: str) -> str:
    if not is_registry(text) or text != text.lower():
        raise ValueError("must be HOST or HOST:PORT, in lower case")
    return text


def _mirror(text: str) -> str:
    host, slash, path = text.partition("/")
    _registry(host)
    if slash and not is_repository(path):
        raise ValueError("must be HOST[:PORT][/PATH]")
    return text


def _proxy(text: SecretStr) -> SecretStr:
    try:
        url = Url.parse(text.get_secret_value(), userinfo=True)
    except ValueError:
        raise ValueError("must be http://HOST:PORT") from None
    if url.target != "/":
        raise ValueError("must be http://HOST:PORT")
    return text


class RegistrySettings(Frozen):
    """The operator's word about one registry."""

    mirrors: Annotated[tuple[Annotated[str, AfterValidator(_mirror)], ...], MaxLen(MIRRORS_MAX)] = Field(
        default=(), description="Registries that are asked first, HOST[:PORT][/PATH]."
    )
    insecure: bool | None = Field(
        default=None, description="Whether it is spoken to in plain HTTP; unsaid, only loopback is."
    )
    ca: str | None = Field(
        default=None, description="File of the authorities that may sign its certificate (PEM)."
    )
    proxy: Annotated[Secret, AfterValidator(_proxy)] | None = Field(
        default=None, description="HTTP proxy through which it is reached."
    )


class Endpoint(Frozen):
    """One place to ask: the registry itself, or a mirror of it."""

    host: str = Field(description="HOST or HOST:PORT.")
    url: Url = Field(description="Its base, without /v2/.")
    repository: str = Field(description="The image's name there.")
    ca: str | None = Field(
        default=None, description="PEM of the authorities to trust instead of the machine's."
    )
    proxy: Secret | None = None
    credential: Credential = Credential()


class Registries(RootModel[dict[Annotated[str, AfterValidator(_registry)], RegistrySettings]]):
    """All that the operator says, by registry; `ca` holds certificates here, not a path."""

    @classmethod
    def load(cls, path: Path | None) -> Self:
        """Read the file; None is an empty one.

        Raises:
            RegistryError: it cannot be used.
        """
        if path is None:
            return cls({})
        try:
            found = cls.model_validate(yaml.safe_load(path.read_text()) or {})
        except OSError as error:
            raise _unusable(path, f"cannot be read: {error.strerror}") from None
        except (UnicodeDecodeError, yaml.YAMLError):
            raise _unusable(path, "is not YAML") from None
        except ValidationError as error:
            wrong = (
                f"{'.'.join(map(str, each['loc']))}: {each['msg']}"
                for each in error.errors(include_input=False)
            )
            raise _unusable(path, "; ".join(wrong)) from None
        return cls({name: _with_certificates(each) for name, each in found.root.items()})

    def endpoints(self, reference: Reference, credentials: Mapping[str, Credential]) -> tuple[Endpoint, ...]:
        """Where to ask for an image: the mirrors in order, then the registry itself."""
        mirrors = self._of(reference.registry).mirrors
        places = [mirror.partition("/")[::2] for mirror in mirrors]
        names = [
            (host, f"{path}/{reference.repository}" if path else reference.repository)
            for host, path in places
        ]
        names.append((reference.registry, reference.repository))
        return tuple(self._endpoint(host, name, credentials.get(host, Credential())) for host, name in names)

    def _of(self, host: str) -> RegistrySettings:
        return self.root.get(host, RegistrySettings())

    def _endpoint(self, host: str, repository: str, credential: Credential) -> Endpoint:
        said = self._of(host)
        insecure = is_loopback(host) if said.insecure is None else said.insecure
        address = _HUB_HOST if host == DOCKER_HUB else host
        return Endpoint(
            host=host,
            url=Url.parse(f"{'http' if insecure else 'https'}://{address}/"),
            repository=repository,
            ca=said.ca,
            proxy=said.proxy,
            credential=credential,
        )


def is_loopback(host: str) -> bool:
    """Whether HOST[:PORT] is written as this machine itself: localhost, 127.0.0.0/8, [::1]."""
    name = Url.parse(f"http://{host}/").host
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name == "localhost"


def _with_certificates(said: RegistrySettings) -> RegistrySettings:
    """The same with the file's content for its path: who connects may not be able to read it."""
    if said.ca is None:
        return said
    path = Path(said.ca)
    try:
        return said.model_copy(update={"ca": path.read_text()})
    except (OSError, UnicodeDecodeError):
        raise _unusable(path, "cannot be read as PEM") from None


def _unusable(path: Path, reason: str) -> RegistryError:
    return RegistryError(Fault.SETTINGS, str(path), reason)
