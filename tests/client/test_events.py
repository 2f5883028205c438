"""Streams of events: read however they are cut, and taken up again where they broke off."""

import json
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stockade.client import NotFound, Unreachable
from stockade.client.plan import SILENCE, followed
from stockade.client.sse import Decoder, Message
from tests.client.by_hand import ByHand, problem

STREAM = (
    b"retry: 1500\n\n: keep-alive\n\nid: 1\nevent: state\ndata: {}\n\r\nid:2\r\nevent:output\r\ndata: a\r\ndata:b\r\n"
    b"unknown: x\r\n\r\nevent: dropped\n\ndata: plain\r\rid: 3\nid: a\0b\ndata: \xc3\xa4\n\ndata: cut"
)
MESSAGES = [
    Message("state", "1", "{}"),
    Message("output", "2", "a\nb"),
    Message("message", "2", "plain"),
    Message("message", "3", "ä"),
]


@given(st.lists(st.integers(0, len(STREAM))))
def test_however_a_stream_is_cut_the_events_are_the_same(cuts: list[int]) -> None:
    """Within a line end, within a character, anywhere; what is not whole at the end is none."""
    edges = [0, *sorted(cuts), len(STREAM)]
    decoder = Decoder()
    found = [message for a, b in pairwise(edges) for message in decoder.feed(STREAM[a:b])]
    assert found == MESSAGES
    assert (decoder.last_id, decoder.retry) == ("3", 1.5)


AT = "2026-01-01T00:00:00Z"
OUTCOME = {"kind": "exited", "exit_code": 0, "message": "It exited."}
STORY: list[tuple[str, dict[str, Any]]] = [
    ("state", {"state": "queued", "attempt": 0, "at": AT}),
    ("novel", {"of": "a newer service"}),
    ("state", {"state": "running", "attempt": 1, "at": AT, "novel": 1}),
    *(
        ("output", {"attempt": 1, "step": 0, "stream": "stdout", "offset": n, "bytes": 1, "text": "x", "base64": None})
        for n in range(4)
    ),
    ("finished", {"state": "finished", "attempt": 1, "at": AT, "outcome": OUTCOME}),
]  # fmt: skip
KNOWN = [number for number, (name, _) in enumerate(STORY) if name != "novel"]


def stream(begin: int, count: int | None = None, end: Exception | None = None) -> Iterator[bytes]:
    """Some of the story as the API sends it."""
    yield b"retry: 250\n\n"
    for number, (name, data) in list(enumerate(STORY))[begin:][:count]:
        yield f"id: {number}\nevent: {name}\ndata: {json.dumps(data)}\n\n".encode()
    if end is not None:
        yield b"id: 99\nevent: output\nda"
        raise end


def after(request: httpx.Request) -> int:
    return int(request.headers.get("Last-Event-ID", "-1")) + 1


@pytest.mark.parametrize("end", [None, httpx.ReadError("reset"), httpx.ReadTimeout("silent")])
def test_a_stream_that_breaks_off_is_taken_up_again(end: Exception | None) -> None:
    """One event a connection: all come once, in order, and the pauses are those that the service asks for."""
    service = ByHand(lambda request, _: httpx.Response(200, content=stream(after(request), 1, end)))
    told = service.told(followed("job_1", None, service.patience(5)))
    assert [int(event.id) for event in told] == KNOWN
    assert told[-1].data.outcome.succeeded
    assert set(service.slept) == {0.25}


def test_a_service_that_is_away_for_a_while_is_waited_for() -> None:
    """503, too many streams, a refused connection, a stream without news: then it goes on after the last event."""
    hindrances: list[Any] = [
        httpx.Response(200, content=stream(0, 4)),
        problem(503, "unavailable", retry_after=1),
        problem(429, "too-many-streams", retry_after=1),
        httpx.ConnectError("refused"),
        httpx.Response(200, content=stream(0, 0)),
    ]

    def script(request: httpx.Request, number: int) -> httpx.Response | Exception:
        if number <= len(hindrances):
            return hindrances[number - 1]
        return httpx.Response(200, content=stream(after(request)))

    service = ByHand(script)
    told = service.told(followed("job_1", None, service.patience(5)))
    assert [int(event.id) for event in told] == KNOWN
    assert service.requests[-1].headers["Last-Event-ID"] == "3"


def test_streams_that_never_have_news_end_with_the_patience() -> None:
    """A service that only hangs up is not asked for ever."""
    service = ByHand(lambda *_: httpx.Response(200, content=stream(0, 0)))
    with pytest.raises(Unreachable, match="job_1 ends before its end"):
        service.told(followed("job_1", None, service.patience(20)))
    assert 10 < service.now <= 20


def test_a_quiet_job_is_followed_for_as_long_as_it_takes() -> None:
    """A stream without news that lasted is no failure: the service ends each after a while."""

    def script(request: httpx.Request, number: int) -> httpx.Response:
        def quiet() -> Iterator[bytes]:
            yield b": keep-alive\n\n"
            service.now += SILENCE + 1

        return httpx.Response(200, content=quiet() if number < 50 else stream(after(request)))

    service = ByHand(script)
    assert len(service.told(followed("job_1", None, service.patience(5)))) == len(KNOWN)


def test_what_is_over_or_gone_is_not_followed() -> None:
    """204 after the last event; 404 once the job is deleted."""
    over = ByHand(lambda *_: httpx.Response(204))
    assert over.told(followed("job_1", "7", over.patience(5))) == []
    gone = ByHand(
        lambda _, number: (
            httpx.Response(200, content=stream(0, 2)) if number == 1 else problem(404, "not-found")
        )
    )
    with pytest.raises(NotFound):
        gone.told(followed("job_1", None, gone.patience(5)))
