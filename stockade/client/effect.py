"""Effects: what a conversation with the API needs of the world, without saying how it is done.

A conversation is written once, as a *plan*: a generator that yields effects and is given what comes of them. It
neither blocks nor awaits; `Client` carries plans out by blocking, `AsyncClient` in an event loop, and a test
by hand. What the network refuses is thrown into the plan as `httpx.RequestError`.
"""

from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import httpx

T = TypeVar("T")


@dataclass(frozen=True)
class Request:
    """One request, relative to the address of the service."""

    method: str
    path: str
    query: tuple[tuple[str, str], ...] = ()
    body: bytes | None = None
    headers: tuple[tuple[str, str], ...] = ()
    silence: float = 0.0
    """Seconds for which the service may say nothing, over those that any answer may take."""


@dataclass(frozen=True)
class Send:
    """Send a request; comes back with the answer, its body read."""

    request: Request


@dataclass(frozen=True)
class Open:
    """Send a request; comes back with the answer. The body of a 200 is read with `Next`, any other is read."""

    request: Request


@dataclass(frozen=True)
class Next:
    """Read on in the answer that was opened last; comes back with bytes, at the end with None."""


@dataclass(frozen=True)
class Sleep:
    """Let some seconds pass."""

    seconds: float


@dataclass(frozen=True)
class Work:
    """Call what may block for a moment, such as a write to a file; comes back with its result."""

    call: Callable[[], Any] = field(repr=False)


@dataclass(frozen=True)
class Give(Generic[T]):
    """Hand an item to whoever iterates over the plan."""

    item: T


Effect = Send | Open | Next | Sleep | Work
Plan = Generator[Effect, Any, T]
"""A conversation that ends with one result."""
Giving = Generator[Effect | Give[T], Any, None]
"""A conversation that hands out items as it goes."""


def send(request: Request) -> Plan[httpx.Response]:
    """One request and its answer."""
    answer = yield Send(request)
    assert isinstance(answer, httpx.Response)
    return answer


def open_answer(request: Request) -> Plan[httpx.Response]:
    """One request and the head of its answer."""
    answer = yield Open(request)
    assert isinstance(answer, httpx.Response)
    return answer


def next_bytes() -> Plan[bytes | None]:
    """The next bytes of the answer that was opened last; None at its end."""
    chunk = yield Next()
    assert chunk is None or isinstance(chunk, bytes)
    return chunk


def given(plan: Plan[T]) -> Giving[T]:
    """The same conversation, handing out its result as its only item."""
    yield Give((yield from plan))
