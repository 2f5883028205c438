"""URLs as a registry may give them: http or https, a host, a port, a target. Shown without their query."""

import re
from typing import Self
from urllib.parse import urljoin, urlsplit

from policies.model import Frozen

URL_MAX = 8192
"""Characters of a URL."""
_PORTS = {"http": 80, "https": 443}
_plain = re.compile(r"[\x21-\x7e]+")
_host = re.compile(r"[A-Za-z0-9._-]+|[A-Fa-f0-9:.]+")


class Url(Frozen):
    """An http or https URL. Its text has no query, because queries of storage services are credentials."""

    scheme: str
    host: str
    """In lower case, an IPv6 address without brackets."""
    port: int
    target: str
    """Path and query."""

    @classmethod
    def parse(cls, text: str, base: "Url | None" = None, *, userinfo: bool = False) -> Self:
        """The URL that `text` is, relative to `base` where there is one.

        Raises:
            ValueError: it is none, has a user in it without `userinfo`, or a character that no URL has.
        """
        if len(text) > URL_MAX or not _plain.fullmatch(text):
            raise ValueError("not a URL")
        parts = urlsplit(urljoin(base.whole, text) if base else text)
        host, scheme = (parts.hostname or "").lower(), parts.scheme
        if scheme not in _PORTS or not _host.fullmatch(host) or "\\" in parts.netloc:
            raise ValueError("not an http or https URL")
        if "@" in parts.netloc and not userinfo:
            raise ValueError("a URL with a user in it")
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        return cls(scheme=scheme, host=host, port=parts.port or _PORTS[scheme], target=target)

    @property
    def origin(self) -> tuple[str, str, int]:
        """Scheme, host and port: who gets what is sent there."""
        return self.scheme, self.host, self.port

    @property
    def authority(self) -> str:
        """Host and, where it is not the scheme's own, port: the `Host` header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def whole(self) -> str:
        """The URL with its query, which is not for messages."""
        return f"{self.scheme}://{self.authority}{self.target}"

    def to(self, target: str) -> "Url":
        """Another target at the same origin."""
        return self.model_copy(update={"target": target})

    def __str__(self) -> str:
        return f"{self.scheme}://{self.authority}{self.target.partition('?')[0]}"

    def __repr__(self) -> str:
        return f"Url({self})"
