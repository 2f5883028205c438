"""Where connections may go: zones of addresses, URLs, challenges."""

import ipaddress
import socket
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.images.remote.authorization import Challenge, parse_challenges
from worker.images.remote.faults import RegistryError
from worker.images.remote.registries import Endpoint
from worker.images.remote.transport import BrokenError, Patience, Wire, Zone, zone_of
from worker.images.remote.urls import Url


@pytest.mark.parametrize(
    ("address", "zone"),
    [
        ("8.8.8.8", Zone.PUBLIC),
        ("2606:4700::1", Zone.PUBLIC),
        ("10.0.0.1", Zone.PRIVATE),
        ("172.31.255.255", Zone.PRIVATE),
        ("192.168.1.1", Zone.PRIVATE),
        ("100.64.0.1", Zone.PRIVATE),
        ("fd12::1", Zone.PRIVATE),
        ("127.0.0.1", Zone.LOOPBACK),
        ("127.255.0.1", Zone.LOOPBACK),
        ("::1", Zone.LOOPBACK),
        ("169.254.169.254", Zone.FORBIDDEN),
        ("fe80::1", Zone.FORBIDDEN),
        ("0.0.0.0", Zone.FORBIDDEN),
        ("0.1.2.3", Zone.FORBIDDEN),
        ("::", Zone.FORBIDDEN),
        ("224.0.0.1", Zone.FORBIDDEN),
        ("ff02::1", Zone.FORBIDDEN),
        ("255.255.255.255", Zone.FORBIDDEN),
        ("240.0.0.1", Zone.FORBIDDEN),
        ("192.0.2.1", Zone.FORBIDDEN),
        ("198.18.0.1", Zone.FORBIDDEN),
        ("2001:db8::1", Zone.FORBIDDEN),
        ("fd00:ec2::254", Zone.FORBIDDEN),
        ("100.100.100.200", Zone.FORBIDDEN),
        ("168.63.129.16", Zone.FORBIDDEN),
        ("::ffff:127.0.0.1", Zone.LOOPBACK),
        ("::ffff:169.254.169.254", Zone.FORBIDDEN),
        ("64:ff9b::169.254.169.254", Zone.FORBIDDEN),
        ("64:ff9b::8.8.8.8", Zone.PUBLIC),
        ("2002:a9fe:a9fe::1", Zone.FORBIDDEN),
        ("2002:0808:0808::1", Zone.FORBIDDEN),
        ("2001::1", Zone.FORBIDDEN),
    ],
)
def test_every_address_has_a_zone(address: str, zone: Zone) -> None:
    """An IPv4 address that is dressed up as an IPv6 one is judged as what it is."""
    assert zone_of(ipaddress.ip_address(address)) is zone


@given(st.ip_addresses())
def test_what_is_not_global_is_not_public(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> None:
    """Public is only what the registries of the internet call global."""
    if zone_of(address) is Zone.PUBLIC and address not in ipaddress.ip_network("64:ff9b::/96"):
        assert address.is_global and not address.is_multicast


def test_a_name_that_resolves_to_loopback_is_not_a_registry_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who owns a name decides where it points; to reach loopback it has to be written as loopback."""
    monkeypatch.setattr(
        socket,
        "getaddrinfo",
        lambda *_, **__: [(2, 1, 6, "", ("127.0.0.1", 443)), (2, 1, 6, "", ("::1", 443))],
    )
    url = Url.parse("https://registry.example/")
    wire = Wire(Endpoint(host="registry.example", url=url, repository="x"), Patience(), 1)
    with (
        pytest.raises(RegistryError, match=r"its address 127.0.0.1 is loopback, where nothing may lead"),
        wire.exchange("GET", url, {}, time.monotonic() + 5),
    ):
        pass


def test_a_name_that_nobody_knows_is_a_broken_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """A resolver may be back in a moment."""

    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    url = Url.parse("https://registry.example/")
    wire = Wire(Endpoint(host="registry.example", url=url, repository="x"), Patience(), 1)
    with (
        pytest.raises(BrokenError, match=r"registry.example is no known host"),
        wire.exchange("GET", url, {}, time.monotonic() + 5),
    ):
        pass


@pytest.mark.parametrize(
    ("text", "shown", "target"),
    [
        ("https://R.example", "https://r.example/", "/"),
        ("https://r.example:8443/a?b=c#d", "https://r.example:8443/a", "/a?b=c"),
        ("/layer?x=1", "http://home.example:5000/layer", "/layer?x=1"),
        ("//cdn.example/x", "http://cdn.example/x", "/x"),
        ("https://[::1]:5000/x", "https://[::1]:5000/x", "/x"),
    ],
)
def test_a_location_is_absolute_or_relative(text: str, shown: str, target: str) -> None:
    """As RFC 3986 has it; shown without its query."""
    url = Url.parse(text, Url.parse("http://home.example:5000/v2/x"))
    assert (str(url), url.target) == (shown, target)
    assert "b=c" not in f"{url} {url!r}"


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            "x" * 9000,
            "ftp://x/",
            "http://",
            "http://a b/",
            "http://a\n/",
            "http://u:p@x/",
            "http://x:99999/",
        ),
        *("http://x\\@y/", "http://x%00/", "http://[::1/", "http://\u00e4/", "javascript:alert(1)"),
    ],
)
def test_what_is_no_url_of_ours(text: str) -> None:
    """Refused as a ValueError."""
    with pytest.raises(ValueError, match=r".*"):
        Url.parse(text)


@pytest.mark.parametrize(
    ("header", "found"),
    [
        ("Basic realm=x", [Challenge("basic", "x")]),
        (
            'Bearer realm="https://a/t",service="s",scope="repository:x:pull"',
            [Challenge("bearer", "https://a/t", "s")],
        ),
        ('bearer realm="https://a/t"', [Challenge("bearer", "https://a/t")]),
        ('Basic realm="a, b", Bearer realm="c"', [Challenge("basic", "a, b"), Challenge("bearer", "c")]),
        (r'Basic realm="say \"x\""', [Challenge("basic", 'say "x"')]),
        ("Negotiate", []),
        ("", []),
        ('Bearer realm="' + "x" * 100_000, [Challenge("bearer")]),
    ],
)
def test_challenges_are_read_as_the_rfc_has_them(header: str, found: list[Challenge]) -> None:
    """One or several, quoted or not; what we cannot answer is passed over."""
    assert [
        Challenge(each.scheme, each.realm[:50], each.service) for each in parse_challenges(header)
    ] == found


@given(st.text(max_size=300))
def test_no_challenge_is_too_strange(header: str) -> None:
    """Whatever it is, it is read or passed over."""
    assert all(each.scheme in ("basic", "bearer") for each in parse_challenges(header))
