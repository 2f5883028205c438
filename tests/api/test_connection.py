"""Connections: a stranger can neither fill the memory nor hold a connection for nothing."""

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import closing

import httpx
import pytest

from api import connection


@pytest.fixture
def connect(stranger: httpx.Client) -> Iterator[Callable[[], socket.socket]]:
    """Opens connections to the application."""
    opened: list[socket.socket] = []

    def open_one() -> socket.socket:
        opened.append(socket.create_connection(("127.0.0.1", stranger.base_url.port or 0), timeout=10))
        return opened[-1]

    yield open_one
    for each in opened:
        each.close()


def everything(opened: socket.socket) -> bytes:
    """What the service says until it ends the connection."""
    said = b""
    try:
        while part := opened.recv(65536):
            said += part
    except ConnectionResetError:
        pass
    return said


@pytest.mark.parametrize(
    "endless",
    [
        b"GET /" + b"a" * 65536,
        b"GET / HTTP/1.1\r\nX: " + b"a" * 65536,
        b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 11000,
    ],
)
def test_an_endless_head_is_cut_off(connect: Callable[[], socket.socket], endless: bytes) -> None:
    """One long address, one long field or many short ones: the connection ends soon after 64 KiB."""
    opened = connect()
    sent = 0
    with pytest.raises(OSError):
        opened.sendall(endless)
        while sent < 64 * 2**20:
            opened.sendall(b"a: b\r\n" * 1000 if endless.endswith(b"\n") else b"a" * 6000)
            sent += 6000
    assert sent < 32 * 2**20, "it was still listening"


def test_a_head_that_is_too_large_is_told_so(connect: Callable[[], socket.socket]) -> None:
    """431, as a problem detail."""
    opened = connect()
    opened.sendall(b"GET / HTTP/1.1\r\nX: " + b"a" * connection.MAX_HEAD)
    said = everything(opened)
    assert said.startswith(b"HTTP/1.1 431 ")
    assert b"application/problem+json" in said


def test_a_large_head_within_the_bound_is_served(stranger: httpx.Client) -> None:
    """60 KB of header fields are no offence."""
    assert stranger.get("/healthz", headers={"X": "a" * 60_000}).status_code == 200


@pytest.mark.parametrize("begun", [b"", b"GET / HTTP/1.1\r\nHost:"])
def test_a_head_that_does_not_come_is_given_up(
    connect: Callable[[], socket.socket], monkeypatch: pytest.MonkeyPatch, begun: bytes
) -> None:
    """A connection on which nothing, or half a head, comes is answered 408 and ended."""
    monkeypatch.setattr(connection, "HEAD_TIME", 0.2)
    opened = connect()
    opened.sendall(begun)
    assert everything(opened).startswith(b"HTTP/1.1 408 ")


def test_a_slow_but_honest_second_request_is_served(
    connect: Callable[[], socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock of a head does not run between the requests of a connection."""
    monkeypatch.setattr(connection, "HEAD_TIME", 0.2)
    opened = connect()
    for _ in range(3):
        opened.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert opened.recv(65536).startswith(b"HTTP/1.1 200 ")
        time.sleep(0.3)


def test_a_refused_body_is_not_read_on(connect: Callable[[], socket.socket]) -> None:
    """After a 401 the rest of an endless body is not waited for: the connection ends."""
    opened = connect()
    head = b"POST /v1/jobs HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    opened.sendall(head + b"1\r\nx\r\n")
    said = everything(opened)
    assert said.startswith(b"HTTP/1.1 401 ")


def test_pipelined_requests_are_answered_in_order(connect: Callable[[], socket.socket]) -> None:
    """Requests sent at once each get their answer on the same connection."""
    opened = connect()
    opened.sendall(
        b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n" * 2 + b"GET /x HTTP/1.1\r\nConnection: close\r\n\r\n"
    )
    with closing(opened):
        said = everything(opened)
    assert said.count(b"HTTP/1.1 200 ") == 2
    assert said.count(b"HTTP/1.1 404 ") == 1


@pytest.mark.parametrize(
    "request_",
    [
        b"POST /v1/jobs HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /v1/jobs HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
        b"POST /v1/jobs HTTP/1.1\r\nHost: x\r\nContent-Length: +5\r\n\r\n",
        b"POST /v1/jobs HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        b"POST /v1/jobs HTTP/1.1\r\nHost: x\r\nContent-Length : 5\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: x\r\n X: folded\r\n\r\n",
        b"GET /healthz HTTP/1.1\nHost: x\n\n",
        b"GET /healthz HTTP/9.9\r\nHost: x\r\n\r\n",
        b"GET /a b HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01",
    ],
)
def test_nothing_is_smuggled_behind_a_doubtful_request(
    connect: Callable[[], socket.socket], request_: bytes
) -> None:
    """What two parsers could read in two ways is 400, as a problem, and what follows on the connection is not read."""
    opened = connect()
    opened.sendall(request_ + b"GET /healthz HTTP/1.1\r\nHost: smuggled\r\n\r\n")
    said = everything(opened)
    assert said.startswith(b"HTTP/1.1 400 "), said
    assert b"urn:stockade:problem:malformed" in said
    assert said.count(b"HTTP/1.1 ") == 1


def test_a_body_that_breaks_off_its_chunks_is_malformed(
    connect: Callable[[], socket.socket], key: str
) -> None:
    """A chunk that is none, after a head that was well: 400, once, and the end."""
    opened = connect()
    head = f"POST /v1/jobs HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\nContent-Type: application/json\r\n"
    opened.sendall(head.encode() + b"Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n")
    time.sleep(0.1)
    opened.sendall(b"no chunk\r\n")
    said = everything(opened)
    assert said.startswith(b"HTTP/1.1 400 ")
    assert said.count(b"HTTP/1.1 ") == 1
