"""The wire to one registry: connections that go nowhere but where they may, and end in time.

httpcore, the engine of httpx, is used itself, because it lets us choose the address that is connected to: a name is
resolved here, its addresses are judged, and the connection is made to one that was judged (a name that resolves to
something else a moment later changes nothing). Redirects, cookies, environment and decoding of bodies do not exist.
"""

import ipaddress
import logging
import socket
import ssl
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from enum import StrEnum
from typing import Any
from urllib.parse import unquote, urlsplit

import httpcore
from pydantic import Field

from policies.model import Frozen
from worker.images.remote.faults import Fault, RegistryError
from worker.images.remote.registries import Endpoint, is_loopback
from worker.images.remote.urls import Url

logging.getLogger("httpcore").setLevel(
    logging.WARNING
)  # its debug log has Location headers, which hold signatures

READ = 256 << 10
"""Bytes read at once from a connection."""
_USER_AGENT = "stockade"
_METADATA = frozenset(  # services of cloud providers that hand out the machine's identity to whoever asks
    ipaddress.ip_address(text) for text in ("fd00:ec2::254", "100.100.100.200", "168.63.129.16")
)
_PRIVATE = tuple(
    ipaddress.ip_network(text)
    for text in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "fc00::/7")
)
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class Zone(StrEnum):
    """Where an address is."""

    PUBLIC = "public"
    PRIVATE = "private"
    LOOPBACK = "loopback"
    FORBIDDEN = "forbidden"
    """Link-local, multicast, reserved, a tunnel, a cloud's metadata service: no registry is there."""


def zone_of(address: Address) -> Zone:
    """Where an address is; an IPv4 address within an IPv6 one is judged as itself."""
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped
        if inner is None and address in _NAT64:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF)
        if inner is not None:
            return zone_of(inner)
        if address.sixtofour is not None or address.teredo is not None:
            return Zone.FORBIDDEN
    if address in _METADATA:
        return Zone.FORBIDDEN
    if address.is_loopback:
        return Zone.LOOPBACK
    if any(address in network for network in _PRIVATE if network.version == address.version):
        return Zone.PRIVATE
    special = address.is_multicast or address.is_link_local or address.is_reserved or address.is_unspecified
    return Zone.PUBLIC if address.is_global and not special else Zone.FORBIDDEN


class Patience(Frozen):
    """How long a registry may take, in seconds."""

    connect: float = Field(default=10.0, description="To accept a connection.")
    silence: float = Field(default=30.0, description="To send the next byte.")
    total: float = Field(
        default=60.0,
        description="For a small answer with all its tries; a blob has this and its size over `slowest`.",
    )
    slowest: int = Field(
        default=32 << 10, description="Bytes a second that a blob must come with on the whole."
    )
    tries: int = Field(default=5, description="Failures in a row after which we give up.")
    pause: float = Field(default=0.5, description="Before the second try; doubled for each further one.")
    pause_max: float = Field(default=30.0, description="The longest of these pauses.")


class BrokenError(Exception):
    """A connection could not be made, broke or fell silent: another try may do."""


class _Clock(threading.local):
    """The deadline of the exchange that this thread is in (time.monotonic)."""

    deadline = float("inf")

    def left(self, timeout: float | None) -> float:
        """Seconds that may be waited for: never more than are left of the whole."""
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise httpcore.ReadTimeout("it took too long on the whole")
        return left if timeout is None else min(timeout, left)


class _Stream(httpcore.NetworkStream):
    """A connection that heeds the deadline of whoever uses it: many short waits are one long one (slow loris)."""

    def __init__(self, stream: httpcore.NetworkStream, clock: _Clock) -> None:
        self._stream, self._clock = stream, clock

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max(max_bytes, READ), self._clock.left(timeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, self._clock.left(timeout))

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        secured = self._stream.start_tls(ssl_context, server_hostname, self._clock.left(timeout))
        return _Stream(secured, self._clock)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


class _Guard(httpcore.NetworkBackend):
    """Makes connections to addresses in the zones that are open.

    The registry itself may be anywhere but in a forbidden zone, and on loopback only when it is written so. Whatever
    it leads to, redirects and token services, is public or in a zone where the registry itself was found.
    """

    def __init__(self, endpoint: Endpoint, clock: _Clock) -> None:
        self._home = (endpoint.url.host, endpoint.url.port)
        self._home_zones = {Zone.PUBLIC, Zone.LOOPBACK if is_loopback(endpoint.host) else Zone.PRIVATE}
        self._others = {Zone.PUBLIC}
        proxy = (
            None if endpoint.proxy is None else Url.parse(endpoint.proxy.get_secret_value(), userinfo=True)
        )
        self._proxy = None if proxy is None else (proxy.host, proxy.port)
        self._clock = clock
        self._backend = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:
        addresses = self._open(host, port)
        for last, address in ((address is addresses[-1], address) for address in addresses):
            left = self._clock.left(timeout)
            try:
                stream = self._backend.connect_tcp(str(address), port, left, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout):
                if last:
                    raise
                continue
            if (host, port) == self._home:
                self._others.add(zone_of(address))
            return _Stream(stream, self._clock)
        raise AssertionError("there is at least one address")

    def check(self, url: Url) -> None:
        """Refuse an address that is written out and not open; names are judged when they are resolved.

        Through a proxy this is all that can be judged here: the proxy resolves names.
        """
        try:
            address = ipaddress.ip_address(url.host)
        except ValueError:
            return
        self._judge(url.host, url.port, [address])

    def _open(self, host: str, port: int) -> list[Address]:
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except OSError as error:
            raise httpcore.ConnectError(f"{host} is no known host: {error.strerror}") from None
        addresses = list(
            dict.fromkeys(ipaddress.ip_address(str(entry[4][0]).partition("%")[0]) for entry in found)
        )
        return addresses if (host, port) == self._proxy else self._judge(host, port, addresses)

    def _judge(self, host: str, port: int, addresses: list[Address]) -> list[Address]:
        zones = self._home_zones if (host, port) == self._home else self._others
        allowed = [address for address in addresses if zone_of(address) in zones]
        if not allowed:
            where = zone_of(addresses[0])
            raise RegistryError(
                Fault.REFUSED, host, f"its address {addresses[0]} is {where}, where nothing may lead"
            )
        return allowed


class Wire:
    """The connections to one endpoint, and to where it leads; may be used by several threads."""

    def __init__(self, endpoint: Endpoint, patience: Patience, connections: int) -> None:
        self._patience = patience
        self._clock = _Clock()
        self._guard = _Guard(endpoint, self._clock)
        common: dict[str, Any] = {
            "ssl_context": _context(endpoint),
            "network_backend": self._guard,
            "max_connections": 2 * connections + 2,
            "keepalive_expiry": 30.0,
        }
        if endpoint.proxy is None:
            self._pool = httpcore.ConnectionPool(**common)
        else:
            self._pool = httpcore.HTTPProxy(**_proxy(endpoint.proxy.get_secret_value()), **common)

    def close(self) -> None:
        """Close all connections."""
        self._pool.close()

    @contextmanager
    def exchange(
        self, method: str, url: Url, headers: Mapping[str, str], deadline: float, content: bytes | None = None
    ) -> Iterator[httpcore.Response]:
        """One request; its answer, whose body is read within the block.

        Args:
            deadline: when all of it must be over, the reading of the body included (time.monotonic).

        Raises:
            BrokenError: the connection could not be made or broke; another try may do.
            RegistryError: the address may not be connected to, or its certificate is not right.
        """
        self._guard.check(url)
        patience = self._patience
        waits = {
            "connect": patience.connect,
            "read": patience.silence,
            "write": patience.silence,
            "pool": None,
        }
        sent = {"Host": url.authority, "User-Agent": _USER_AGENT, "Accept-Encoding": "identity", **headers}
        where = httpcore.URL(scheme=url.scheme, host=url.host, port=url.port, target=url.target)
        self._clock.deadline = deadline
        try:
            with self._pool.stream(
                method, where, headers=list(sent.items()), content=content, extensions={"timeout": waits}
            ) as response:
                yield response
        except (
            httpcore.NetworkError,
            httpcore.TimeoutException,
            httpcore.ProtocolError,
            httpcore.ProxyError,
        ) as error:
            failure = _tls_failure(error)
            if failure is not None:
                reason = f"its certificate is not accepted: {failure}"
                raise RegistryError(Fault.REFUSED, url.authority, reason, "see `ca` of its entry") from None
            raise BrokenError(_what(error)) from None


def _context(endpoint: Endpoint) -> ssl.SSLContext:
    """TLS as Python has it by default: 1.2 or later, the certificate and the name in it verified."""
    try:
        return ssl.create_default_context(cadata=endpoint.ca)
    except ssl.SSLError:
        raise RegistryError(Fault.SETTINGS, endpoint.host, "its `ca` holds no certificate (PEM)") from None


def _proxy(address: str) -> dict[str, Any]:
    """The proxy's arguments: its URL, and its user where the address has one."""
    parts, url = urlsplit(address), Url.parse(address, userinfo=True)
    arguments: dict[str, Any] = {"proxy_url": url.whole}
    if parts.username is not None:
        arguments["proxy_auth"] = (unquote(parts.username), unquote(parts.password or ""))
    return arguments


def _tls_failure(error: BaseException | None) -> str | None:
    """What TLS says is wrong with the certificate, where that is the cause."""
    while error is not None:
        if isinstance(error, ssl.SSLCertVerificationError):
            return error.verify_message
        error = error.__cause__ or error.__context__
    return None


def _what(error: Exception) -> str:
    if isinstance(error, httpcore.TimeoutException):
        return "it did not answer in time"
    return f"the connection failed: {str(error)[:200] or type(error).__name__}"
