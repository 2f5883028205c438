"""Credentials for registries, from a file in the form of Docker's config.json. Never logged, never in a repr.

    {"auths": {"registry.example:5000": {"auth": "<base64 of user:password>"},
               "other.example": {"username": "u", "password": "p"},
               "hub.example": {"identitytoken": "…"}, "ci.example": {"registrytoken": "…"}}}

The file must belong to whoever reads it, or to root, and be closed to everyone else (mode 0600 or 0400).
Credential helpers (`credsStore`, `credHelpers`) are programs and are not run: a file that names one is refused.
"""

import base64
import binascii
import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import ConfigDict, Field, PlainSerializer, SecretStr, SerializationInfo, ValidationError

from policies.model import Frozen
from worker.images.remote.faults import Fault, RegistryError
from worker.images.remote.reference import DOCKER_HUB, is_registry

FILE_MAX = 1 << 20
"""Bytes of a file of credentials."""
_HUB_NAMES = ("index.docker.io", "registry-1.docker.io", DOCKER_HUB)


REVEAL = "reveal"
"""The serialization context in which secrets are written out: for the pipe to the puller, nowhere else."""


def _written(secret: SecretStr, info: SerializationInfo) -> str:
    return secret.get_secret_value() if info.context == REVEAL else str(secret)


Secret = Annotated[SecretStr, PlainSerializer(_written, when_used="json")]
"""Text that is shown as asterisks."""


class Credential(Frozen):
    """What one registry is told: a name and a password, or a token."""

    model_config = ConfigDict(hide_input_in_errors=True)

    username: str = Field(default="", repr=False)
    password: Secret = SecretStr("")
    identity_token: Secret = SecretStr("")
    """Changed for a bearer token by OAuth2 (`identitytoken`)."""
    registry_token: Secret = SecretStr("")
    """A bearer token, used as it is (`registrytoken`)."""

    @property
    def given(self) -> bool:
        """Whether there is anything in it."""
        return self != Credential()

    @property
    def basic(self) -> str | None:
        """The value of an `Authorization` header, None without a name."""
        if not self.username:
            return None
        pair = f"{self.username}:{self.password.get_secret_value()}"
        return "Basic " + base64.b64encode(pair.encode()).decode()


class _Entry(Frozen):
    """One value of `auths`, as Docker writes it."""

    model_config = ConfigDict(extra="ignore", hide_input_in_errors=True)

    auth: str = ""
    username: str = ""
    password: str = ""
    identitytoken: str = ""
    registrytoken: str = ""


def load_credentials(path: Path) -> Mapping[str, Credential]:
    """The credentials in a file, by registry (HOST or HOST:PORT).

    Raises:
        RegistryError: it cannot be read, is open to others, or is not of that form.
    """
    try:
        document = json.loads(_read(path))
    except OSError as error:
        raise _unusable(path, f"cannot be read: {error.strerror}") from None
    except ValueError:  # whose text may quote the file
        raise _unusable(path, "is not JSON") from None
    auths = document.get("auths", {}) if isinstance(document, dict) else None
    if not isinstance(auths, dict):
        raise _unusable(path, 'must be {"auths": {"REGISTRY": {"auth": "…"}}}')
    if document.get("credsStore") or document.get("credHelpers"):
        raise _unusable(
            path, "names a credential helper, and none is run", "write the credentials under auths"
        )
    return {_registry(path, name): _credential(path, name, entry) for name, entry in auths.items()}


def _read(path: Path) -> bytes:
    """The file's bytes, once it is certain that only its owner could read them."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb") as file:
        about = os.fstat(file.fileno())
        if not stat.S_ISREG(about.st_mode):
            raise _unusable(path, "is not a file")
        if about.st_mode & 0o077:
            mode = stat.S_IMODE(about.st_mode)
            raise _unusable(path, f"has mode {mode:04o}: others can read it", f"chmod 600 {path}")
        if about.st_uid not in (0, os.geteuid()):
            raise _unusable(path, f"belongs to user {about.st_uid}", f"chown {os.geteuid()} {path}")
        if about.st_size > FILE_MAX:
            raise _unusable(path, f"has {about.st_size} bytes, at most {FILE_MAX} are read")
        return file.read(FILE_MAX)


def _registry(path: Path, name: str) -> str:
    """The registry that a key of `auths` means; Docker's own keys may be URLs (`https://index.docker.io/v1/`)."""
    host = name.removeprefix("https://").removeprefix("http://").partition("/")[0].lower()
    if not is_registry(host):
        raise _unusable(path, f"auths: {name[:100]!r} is no registry: use HOST or HOST:PORT")
    return DOCKER_HUB if host in _HUB_NAMES else host


def _credential(path: Path, name: str, value: Any) -> Credential:
    try:
        entry = _Entry.model_validate(value)
        username, password = _pair(entry)
    except (ValidationError, ValueError):
        form = 'must be {"auth": "<base64 of user:password>"}'
        raise _unusable(path, f"auths[{name[:100]!r}] {form}") from None
    return Credential(
        username=username,
        password=SecretStr(password),
        identity_token=SecretStr(entry.identitytoken),
        registry_token=SecretStr(entry.registrytoken),
    )


def _pair(entry: _Entry) -> tuple[str, str]:
    if not entry.auth:
        return entry.username, entry.password
    try:
        text = base64.b64decode(entry.auth, validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        raise ValueError("auth") from None
    username, colon, password = text.partition(":")
    if not colon:
        raise ValueError("auth")
    return username, password


def _unusable(path: Path, reason: str, hint: str = "") -> RegistryError:
    return RegistryError(Fault.SETTINGS, str(path), reason, hint)
