"""Access: where the service is and the key that opens it, from arguments or from the environment."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address

import httpx

from stockade.client.errors import ConfigurationError

URL_VARIABLE, KEY_VARIABLE = "STOCKADE_URL", "STOCKADE_KEY"


@dataclass(frozen=True)
class Access:
    """A usable address and key; the key is in no repr."""

    url: str
    key: str = field(repr=False)

    @property
    def headers(self) -> dict[str, str]:
        """What every request carries."""
        return {"Authorization": f"Bearer {self.key}", "Accept": "*/*"}

    @property
    def local(self) -> bool:
        """Whether the address is this machine itself, which no proxy can reach for us."""
        host = httpx.URL(self.url).host
        try:
            address = ip_address(host)
        except ValueError:
            return host == "localhost"
        return address.is_loopback or address.is_unspecified


def access(url: str | None, key: str | None, environment: Mapping[str, str] = os.environ) -> Access:
    """What was given, else what `STOCKADE_URL` and `STOCKADE_KEY` say.

    Raises:
        ConfigurationError: one is missing or cannot be used; the message does not repeat the key.
    """
    return Access(
        _address(url or environment.get(URL_VARIABLE) or ""), _key(key or environment.get(KEY_VARIABLE) or "")
    )


def _address(text: str) -> str:
    text = text.strip().rstrip("/")
    if not text:
        raise ConfigurationError(f"no address of the service: give `url` or set {URL_VARIABLE}")
    try:
        url = httpx.URL(text)
    except httpx.InvalidURL:
        url = httpx.URL()
    if url.scheme not in ("http", "https") or not url.host or url.userinfo or url.query or url.fragment:
        raise ConfigurationError(
            f"the address of the service ({URL_VARIABLE}) must be http(s)://HOST[:PORT][/PATH], nothing more"
        )
    return text


def _key(text: str) -> str:
    key = text.strip()
    if not key:
        raise ConfigurationError(f"no API key: give `key` or set {KEY_VARIABLE}")
    if not key.isascii() or not key.isprintable() or " " in key:
        raise ConfigurationError(f"the API key ({KEY_VARIABLE}) must be printable ASCII without spaces")
    return key
