"""The way out: to the public internet alone, whatever form an address has and whatever a name resolves to."""

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from ipaddress import ip_address, ip_network
from typing import Any

import httpcore
import pytest

from api import egress
from api.egress import CheckedBackend, Egress, EgressError, is_allowed, url_fault
from tests.api.receiver import Receiver, receivers

LOOPBACK = (ip_network("127.0.0.0/8"), ip_network("::1"))


class Listener:
    """A listener inside; it remembers what connects, and the first bytes of it, and answers nothing."""

    def __init__(self) -> None:
        self.seen: list[bytes] = []
        self._sockets = [socket.create_server(("127.0.0.1", 0))]
        self.port: int = self._sockets[0].getsockname()[1]
        if socket.has_ipv6:
            self._sockets.append(socket.create_server(("::1", self.port), family=socket.AF_INET6))
        for each in self._sockets:
            threading.Thread(target=self._accept, args=(each,), daemon=True).start()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                self.seen.append(connection.recv(65536))

    def close(self) -> None:
        for each in self._sockets:
            each.shutdown(socket.SHUT_RDWR)
            each.close()


@pytest.fixture
def inside() -> Iterator[Listener]:
    """A listener on the loopback interface."""
    listener = Listener()
    yield listener
    listener.close()


class Network(httpcore.AsyncNetworkBackend):
    """Connects to the loopback interface for real; remembers every address, and refuses the others."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    async def connect_tcp(self, host: str, port: int, *_: Any) -> httpcore.AsyncNetworkStream:
        self.asked.append(host)
        if ip_address(host).is_loopback:
            return await httpcore.AnyIOBackend().connect_tcp(host, port)
        raise httpcore.ConnectError("no way")


def post(url: str, allowed: Sequence[Any] = (), backend: CheckedBackend | None = None) -> egress.Answer:
    """Send one request."""

    async def run() -> egress.Answer:
        way = Egress(allowed, backend)
        try:
            return await way.post(url, {}, b"{}")
        finally:
            await way.close()

    return asyncio.run(run())


def names(*answers: Sequence[str]) -> Callable[[str, int], Sequence[str]]:
    """A resolver that gives one answer after the other; the last for ever."""
    left = list(answers)
    return lambda host, port: left.pop(0) if len(left) > 1 else left[0]


INTERNAL = [
    *(
        "127.0.0.1",
        "127.1.2.3",
        "0.0.0.0",
        "0.1.2.3",
        "10.0.0.1",
        "172.16.0.1",
        "172.31.255.255",
        "192.168.0.1",
    ),
    *(
        "169.254.169.254",
        "168.63.129.16",
        "100.64.0.1",
        "100.100.100.200",
        "192.0.0.192",
        "192.88.99.1",
        "198.18.0.1",
    ),
    *(
        "192.0.2.1",
        "198.51.100.1",
        "203.0.113.1",
        "224.0.0.1",
        "239.255.255.250",
        "240.0.0.1",
        "255.255.255.255",
    ),
    *("::1", "::", "::127.0.0.1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:169.254.169.254"),
    *("::ffff:0:127.0.0.1", "64:ff9b::7f00:1", "64:ff9b::808:808", "64:ff9b:1::7f00:1", "2002:7f00:1::1"),
    *("2002:808:808::1", "2001:0:7f00:1::", "fd00:ec2::254", "fc00::1", "fe80::1", "fe80::1%1", "fec0::1"),
    *("ff02::1", "100::1", "2001:db8::1", "3fff::1", "5f00::1", "4000::1"),
]


@pytest.mark.parametrize("address", INTERNAL)
def test_an_internal_address_is_refused_however_it_is_reached(address: str) -> None:
    """Written out it is refused; a name that has it is refused, also when a public address is beside it."""
    assert not is_allowed(ip_address(address))
    literal = f"[{address}]" if ":" in address else address
    assert url_fault(f"http://{literal}/") is not None
    for found in ([address], ["8.8.8.8", address], [address, "8.8.8.8"]):
        network = Network()
        with pytest.raises(EgressError, match="public internet"):
            post("http://hooks.example/", backend=CheckedBackend((), names(found), network))
        assert network.asked == []


@pytest.mark.parametrize(
    "address", ["8.8.8.8", "1.1.1.1", "100.63.255.255", "2606:4700::1111", "::ffff:8.8.8.8"]
)
def test_a_public_address_is_allowed(address: str) -> None:
    """The table is no wider than it has to be."""
    assert is_allowed(ip_address(address))
    network = Network()
    with pytest.raises(EgressError, match="refused"):
        post("http://hooks.example/", backend=CheckedBackend((), names([address]), network))
    assert network.asked == [address]


@pytest.mark.parametrize(
    "host",
    [
        *(
            "127.0.0.1",
            "localhost",
            "LOCALHOST",
            "localhost.",
            "[::1]",
            "[::ffff:127.0.0.1]",
            "[::ffff:7f00:1]",
        ),
        *(
            "2130706433",
            "017700000001",
            "0x7f000001",
            "0x7f.1",
            "127.1",
            "0177.0.0.1",
            "127.0.0.1.",
            "0",
            "0.0.0.0",
        ),
        *("[::]", "[0:0:0:0:0:0:0:1]", "[::127.0.0.1]", "[::1%25lo]", "①②⑦.⓪.⓪.①", "127。0。0。1"),
        *(
            "user@127.0.0.1",
            "8.8.8.8@127.0.0.1",
            "127.0.0.1\\@8.8.8.8",
            "8.8.8.8\\@127.0.0.1",
            "%31%32%37.0.0.1",
        ),
        *("8.8.8.8 @127.0.0.1", "127.0.0.1\t", "127.0.0.1#@8.8.8.8", "[127.0.0.1]", "127.0.0.1:80:"),
    ],
)
def test_no_form_of_an_address_reaches_an_internal_listener(inside: Listener, host: str) -> None:
    """Hostile forms of loopback addresses, with the system's own resolver: nothing arrives at the listener."""
    for url in (f"http://{host}:{inside.port}/", f"https://{host}:{inside.port}/x"):
        with pytest.raises(EgressError):
            post(url)
    assert inside.seen == []


def test_a_name_is_resolved_once_for_each_request(inside: Listener) -> None:
    """DNS rebinding: public when it is checked, internal a moment later. The connection goes to what was checked."""
    network = Network()
    backend = CheckedBackend((), names(["8.8.8.8"], ["127.0.0.1"]), network)
    for reason in ("refused", "public internet", "public internet"):
        with pytest.raises(EgressError, match=reason):
            post(f"http://rebinding.example:{inside.port}/", backend=backend)
    assert network.asked == ["8.8.8.8"]
    assert inside.seen == []


@pytest.mark.parametrize(
    "url",
    [
        *(
            "",
            "x",
            "//h/",
            "ftp://h/",
            "file:///etc/passwd",
            "gopher://h/",
            "unix:///run/x",
            "http:///x",
            "http://",
        ),
        *(
            "http://h:22/",
            "http://h:25/",
            "http://h:0/",
            "http://h:1023/",
            "http://h:70000/",
            "http://h:x/",
            "http://h:/",
        ),
        *(
            "http://u:p@h/",
            "http://@h/",
            "http://h/#f",
            "http://h/#",
            "http://h/ x",
            "http://h/\r\nx: y",
            "http://h/é",
        ),
        *(
            "http://-h/",
            "http://h..i/",
            "http://h_/..\\",
            "http://" + "a" * 64 + "/",
            "http://h/" + "x" * 2048,
        ),
        *(
            "http://[::1/",
            "http://[x]/",
            "http://1.2.3/",
            "http://8.8.8.8.8/",
            "http://0x8.8.8.8/",
            "http://a.0x1/",
        ),
    ],
)
def test_what_is_no_address_of_a_receiver_is_refused(url: str) -> None:
    """One strict form: what two parsers might read in two ways is not read at all."""
    assert url_fault(url) is not None
    with pytest.raises(EgressError):
        post(url, LOOPBACK)


@pytest.mark.parametrize(
    "url",
    [
        *(
            "https://hooks.example.com/a/b?c=d",
            "http://example.com",
            "https://example.com:8443/",
            "HTTPS://Example.COM/",
        ),
        *(
            "https://xn--bcher-kva.example/",
            "https://8.8.8.8/",
            "https://[2606:4700::1111]:443/",
            "https://a_b.example./",
        ),
    ],
)
def test_usual_addresses_are_fine(url: str) -> None:
    """What receivers have is taken."""
    assert url_fault(url) is None


@pytest.fixture
def receiver() -> Iterator[Callable[..., Receiver]]:
    """Makes receivers that answer with these statuses, then with 200."""
    yield from receivers()


def test_what_the_operator_allows_is_reached(receiver: Callable[..., Receiver]) -> None:
    """The exception counts for the networks that it names, in every form of their addresses, and for no other."""
    told = receiver()
    for host in ("127.0.0.1", "localhost", "[::ffff:127.0.0.1]"):
        found = CheckedBackend(LOOPBACK, names(["127.0.0.1"])) if host == "localhost" else None
        assert post(f"http://{host}:{told.port}/", LOOPBACK, found).status == 200
    assert [each.headers["host"] for each in told.requests] == [
        f"{host}:{told.port}" for host in ("127.0.0.1", "localhost", "[::ffff:127.0.0.1]")
    ]
    with pytest.raises(EgressError):
        post(f"http://127.0.0.1:{told.port}/", [ip_network("10.0.0.0/8")])
    assert len(told.requests) == 3


def test_redirects_are_answers(receiver: Callable[..., Receiver], inside: Listener) -> None:
    """A public receiver cannot send the service on to an internal one."""
    for status in (301, 302, 303, 307, 308):
        told = receiver(status, headers={"location": f"http://127.0.0.1:{inside.port}/"})
        assert post(told.url, LOOPBACK).status == status
    assert inside.seen == []


def test_proxies_of_the_environment_are_not_used(
    receiver: Callable[..., Receiver], inside: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checks are about where a connection goes, which a proxy would decide anew."""
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{inside.port}")
    assert post(receiver().url, LOOPBACK).status == 200
    assert inside.seen == []


def test_tls_is_spoken_with_the_name_and_not_the_address(inside: Listener) -> None:
    """The pinned address is only where the packets go: server name and certificate are those of the URL's host."""
    backend = CheckedBackend(LOOPBACK, names(["127.0.0.1"]))
    with pytest.raises(EgressError, match=r"TLS|broke"):
        post(f"https://hooks.example:{inside.port}/", LOOPBACK, backend)
    (hello,) = inside.seen
    assert b"hooks.example" in hello


def test_an_own_public_address_is_internal(monkeypatch: pytest.MonkeyPatch) -> None:
    """What this machine has as an address leads to its own services, be it public or not."""
    monkeypatch.setattr(egress, "_is_own", lambda address: str(address) == "8.8.8.8")
    assert not is_allowed(ip_address("8.8.8.8"))
    assert is_allowed(ip_address("8.8.4.4"))
    monkeypatch.undo()
    assert egress._is_own(ip_address("127.0.0.1"))
    assert egress._is_own(ip_address("::1"))
    assert not egress._is_own(ip_address("8.8.8.8"))


def test_an_endless_wait_ends(receiver: Callable[..., Receiver], monkeypatch: pytest.MonkeyPatch) -> None:
    """A receiver that takes the request and says nothing costs the time that a request may take, and no more."""
    monkeypatch.setattr(egress, "TOTAL_TIME", 0.1)
    told = receiver()
    told.open.clear()
    with pytest.raises(EgressError, match="no answer within"):
        post(told.url, LOOPBACK)


def test_a_resolver_that_hangs_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """The name server is the tenant's: it gets the time of a connection."""
    monkeypatch.setattr(egress, "CONNECT_TIME", 0.1)
    hang = threading.Event()

    def resolve(host: str, port: int) -> Sequence[str]:
        hang.wait(20)
        return ["127.0.0.1"]

    with pytest.raises(EgressError, match="No connection"):
        post("http://slow.example/", LOOPBACK, CheckedBackend(LOOPBACK, resolve))
    hang.set()
