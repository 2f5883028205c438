"""Egress: the one way out to addresses that a tenant names, and only to where it is safe to go.

A name is resolved once, every address that it has is checked, and the connection goes to a checked address, so
that a name which resolves differently the next moment gains nothing. TLS and `Host` still speak of the name.
Redirects are answers like any other, proxies of the environment are not used, and no connection is used twice, so
that every request is checked anew. What is refused: everything but the public internet, this machine's own
addresses, and ports below 1024 other than 80 and 443. What the operator allows (`STOCKADE_WEBHOOK_ALLOW`) is exempt
from the check of addresses, not from that of ports.
"""

import asyncio
import re
import socket
import ssl
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Any
from urllib.parse import urlsplit

import certifi
import httpcore
from anyio import CapacityLimiter, to_thread

from jobs.settings import Network

CONNECT_TIME = 5.0  # seconds for resolving and connecting
TOTAL_TIME = 10.0  # seconds for a request from its first step to the part of the answer that is kept
KEPT = 1024  # bytes of an answer's body that are read; then the connection is closed
URL_MAX = 2048  # characters
RESOLVING = 64  # names that are resolved at a time: a thread each
TRIED = 2  # addresses of one name that are tried in turn

Address = IPv4Address | IPv6Address
Resolve = Callable[[str, int], Sequence[str]]

_URL = re.compile(r"[!-~]+")  # printable ASCII without space
_LABEL = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")
_NUMERIC = re.compile(r"[0-9]+|0[xX][0-9A-Fa-f]*")
_PUBLIC_V6 = ip_network("2000::/3")  # all that has been allocated for global unicast, RFC 3587
_SPECIAL = tuple(
    ip_network(special)
    for special in (
        "0.0.0.0/8",  # "this network": Linux connects to itself
        "10.0.0.0/8",
        "100.64.0.0/10",  # carrier-grade NAT, RFC 6598; also the metadata service of some clouds
        "127.0.0.0/8",
        "168.63.129.16/32",  # the platform of Azure, from every machine there: a public address for private use
        "169.254.0.0/16",  # link-local: metadata services
        "172.16.0.0/12",
        "192.0.0.0/24",  # protocol assignments, RFC 6890
        "192.0.2.0/24",  # documentation, this and the next but three
        "192.88.99.0/24",  # relays of 6to4, RFC 7526
        "192.168.0.0/16",
        "198.18.0.0/15",  # benchmarks of devices, RFC 2544
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/3",  # multicast, reserved and broadcast
        "2001::/23",  # protocol assignments, Teredo among them, which has an IPv4 address inside
        "2001:db8::/32",  # documentation
        "2002::/16",  # 6to4, which has an IPv4 address inside
        "3fff::/20",  # documentation, RFC 9637
    )
)


class EgressError(Exception):
    """A request that was not sent or not answered; the message is one sentence for the tenant."""


@dataclass(frozen=True)
class Answer:
    """What came back: the status, and the first bytes of the body."""

    status: int
    body: bytes


def url_fault(url: str, allowed: Sequence[Network] = ()) -> str | None:
    """What is wrong with a URL as a place to send to; None when its form is right.

    An address that is written out is checked here already; the addresses of a name only when something is sent.
    """
    if len(url) > URL_MAX or not _URL.fullmatch(url) or "\\" in url:
        return f"must be at most {URL_MAX} printable ASCII characters, without spaces and backslashes"
    try:
        parts = urlsplit(url)
        port, host = parts.port, parts.hostname
    except ValueError:
        return "must be a URL: http(s)://HOST[:PORT]/PATH"
    if parts.scheme not in ("https", "http") or not host:
        return "must be a URL: http(s)://HOST[:PORT]/PATH"
    if "@" in parts.netloc or "#" in url:
        return "must have no user, no password and no fragment"
    if parts.netloc.endswith(":") or (port is not None and port not in (80, 443) and port < 1024):
        return "must have port 80, 443, or one from 1024 on"
    return _host_fault(host, parts.netloc.startswith("["), allowed)


def _host_fault(host: str, bracketed: bool, allowed: Sequence[Network]) -> str | None:
    if bracketed or _NUMERIC.fullmatch(host.rstrip(".").rpartition(".")[2]):
        try:
            address = ip_address(host)  # refuses what only some parsers read: octal, hexadecimal, one number
        except ValueError:
            return "must write an IP address as 192.0.2.1 or [2001:db8::1]"
        return None if is_allowed(address, allowed) else "must not be an address outside the public internet"
    labels = host.removesuffix(".").split(".")
    if len(host) > 253 or not all(_LABEL.fullmatch(label) for label in labels):
        return "must name a host by letters, digits and hyphens (xn--… for others)"
    return None


def is_allowed(address: Address, allowed: Iterable[Network] = ()) -> bool:
    """Whether it is an address of the public internet, or in one of the networks that are allowed besides."""
    if isinstance(address, IPv6Address):
        if address.scope_id is not None:
            return False
        address = address.ipv4_mapped or address  # the kernel connects to the IPv4 address
    if any(address in network for network in allowed):
        return True
    if isinstance(address, IPv6Address) and address not in _PUBLIC_V6:
        return False  # NAT64, mapped and translated forms, local and multicast: all outside
    special = any(address in network for network in _SPECIAL)
    return address.is_global and not special and not _is_own(address)


def _is_own(address: Address) -> bool:
    """Whether packets to it would stay on this machine: the kernel then sends from that very address.

    Connecting a datagram socket chooses the address to send from, and sends nothing (udp(7)).
    """
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((str(address), 9))
            return ip_address(probe.getsockname()[0]) == address
        except OSError:
            return False  # no way there at all


def resolve(host: str, port: int) -> Sequence[str]:
    """The addresses of a name, or of an address, as the system knows them. Raises OSError."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(entry[4][0]) for entry in found]


class CheckedBackend(httpcore.AsyncNetworkBackend):
    """Makes httpcore's connections: resolves, checks, and connects to an address that was checked."""

    def __init__(
        self,
        allowed: Sequence[Network],
        resolve: Resolve = resolve,
        network: httpcore.AsyncNetworkBackend | None = None,
    ) -> None:
        """`resolve` and `network`: how names become addresses, and addresses connections."""
        self._allowed = allowed
        self._resolve = resolve
        self._network = network or httpcore.AnyIOBackend()
        self._limiter = CapacityLimiter(RESOLVING)

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Connect to the host, all within `timeout` seconds. Raises EgressError."""
        try:
            async with asyncio.timeout(timeout):
                return await self._connect(host, port, local_address, socket_options)
        except TimeoutError:
            raise EgressError(f"No connection was made within {timeout:g} seconds.") from None

    async def _connect(self, host: str, port: int, *options: Any) -> httpcore.AsyncNetworkStream:
        for address in (await self._checked(host, port))[:TRIED]:
            try:
                return await self._network.connect_tcp(address, port, None, *options)
            except httpcore.ConnectError:
                continue
        raise EgressError("The connection was refused, or the host cannot be reached.")

    async def _checked(self, host: str, port: int) -> list[str]:
        """The host's addresses; none unless all of them are allowed."""
        try:
            found = await to_thread.run_sync(
                self._resolve, host, port, abandon_on_cancel=True, limiter=self._limiter
            )
        except (OSError, UnicodeError):
            found = []
        if not found or not all(is_allowed(ip_address(address), self._allowed) for address in found):
            # One text for both: what names there are inside is nobody's business outside.
            raise EgressError("The host has no address, or one outside the public internet.")
        return list(dict.fromkeys(found))


@cache
def _tls() -> ssl.SSLContext:
    """How certificates are checked: by the system's authorities (or SSL_CERT_FILE), and certifi's."""
    context = ssl.create_default_context()
    context.load_verify_locations(certifi.where())
    return context


class Egress:
    """Sends requests to addresses that tenants name. Belongs to one event loop."""

    def __init__(self, allowed: Sequence[Network], backend: CheckedBackend | None = None) -> None:
        """`allowed`: networks that may be reached besides the public internet."""
        self.allowed = allowed
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=_tls(),
            max_connections=None,
            max_keepalive_connections=0,
            network_backend=backend or CheckedBackend(allowed),
        )

    async def post(self, url: str, headers: dict[str, str], body: bytes) -> Answer:
        """Send one request and return what came back, whatever its status; no redirect is followed.

        Raises EgressError: the address is refused, or nothing that is an answer came in time.
        """
        if fault := url_fault(url, self.allowed):
            raise EgressError(f"The URL {fault}.")
        try:
            async with asyncio.timeout(TOTAL_TIME):
                return await self._post(url, headers, body)
        except TimeoutError:
            raise EgressError(f"There was no answer within {TOTAL_TIME:g} seconds.") from None
        except httpcore.ConnectError:  # after the connection: TLS
            raise EgressError(
                "The TLS connection failed: its certificate is not valid for the host."
            ) from None
        except (httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException, OSError) as error:
            kind = type(error).__name__
            raise EgressError(f"The connection broke before there was an answer: {kind}.") from None

    async def _post(self, url: str, headers: dict[str, str], body: bytes) -> Answer:
        timeout = {"timeout": {"connect": CONNECT_TIME}}
        sent = [("host", urlsplit(url).netloc), *headers.items()]
        async with self._pool.stream("POST", url, headers=sent, content=body, extensions=timeout) as answer:
            kept = b""
            async for chunk in answer.aiter_stream():
                kept += chunk
                if len(kept) >= KEPT:
                    break
            return Answer(answer.status, kept[:KEPT])

    async def close(self) -> None:
        """Close what is open."""
        await self._pool.aclose()
