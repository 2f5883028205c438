"""Request bodies: bounded while they arrive, and one JSON document with one meaning when they are here.

A body is read only after its sender is known, is never decompressed, and is refused as soon as its
length is declared, or has been seen to be, too large, or when it crawls. The bytes of all bodies at once are
bounded too, and those of one tenant, so that there is room for others. What JSON parsers disagree about is
refused instead of guessed: duplicate keys, NaN and Infinity, text that is not UTF-8. A few megabytes of
`[],[],` would become gigabytes of objects, and of errors about each: so the values and the levels are counted
before anything is made of them.
"""

import asyncio
import json
import re
from collections import Counter, deque
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from itertools import islice
from typing import NoReturn

from fastapi import Request

from api.problems import (
    BODY_TIMEOUT,
    BODY_TOO_LARGE,
    INVALID_REQUEST,
    UNSUPPORTED_MEDIA,
    ProblemError,
    invalid,
    unavailable,
)
from policies.violation import VIOLATIONS_MAX, Violation, field_path, shown

MAX_BODIES = 256 * 2**20  # bytes of all bodies that are being read or parsed
SMALL_BODY = 64 * 1024  # bytes of a body that is no job: a key or a webhook to be made
SHARE = 4  # one tenant may hold this part of them, or one body where that is more
BODY_TIME = 60.0  # seconds from the first byte of a body to its last
PATIENCE = 5.0  # seconds of them for which it may come as slowly as it likes
BODY_RATE = 64 * 1024  # bytes that must have come for each second after those

MAX_VALUES = 50_000  # values in one document: 10,000 files, the most of any policy, have 40,000
MAX_LEVELS = 64  # lists and objects inside one another; a batch of jobs has 6

_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)  # takes a string without end too: so it is linear
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_CLOSE = {"Connection": "close"}  # the rest of a refused body is not waited for


class BodyReader:
    """Reads request bodies, and counts the bytes that all of them hold together."""

    def __init__(
        self,
        max_body: int,
        max_bodies: int = MAX_BODIES,
        body_time: float = BODY_TIME,
        patience: float = PATIENCE,
    ) -> None:
        self._max_body = max_body
        self._max_bodies = max_bodies
        self._body_time, self._patience = body_time, patience
        self._held: Counter[str] = Counter()

    def take(self, max_body: int) -> None:
        """Take bodies of up to so many bytes from now on."""
        self._max_body = max_body

    @asynccontextmanager
    async def read(self, request: Request, tenant: str, most: int | None = None) -> AsyncIterator[bytes]:
        """The whole body; its bytes count against the bounds of all and of the tenant until the block is left.

        `most`: bytes that it may have, where that is less than bodies may have otherwise.

        Raises:
            ProblemError: 408, 413, 415, or 503 when too many bodies are here already.
        """
        _check_headers(request)
        most = self._max_body if most is None else min(most, self._max_body)
        _check_size(int(request.headers.get("content-length", 0)), most)
        self._check_held(tenant)
        chunks: list[bytes] = []
        size = 0
        try:
            async for chunk in self._in_time(request.stream()):
                size += len(chunk)
                self._held[tenant] += len(chunk)
                _check_size(size, most)
                self._check_held(tenant)
                chunks.append(chunk)
            yield b"".join(chunks)
        finally:
            self._held[tenant] -= size
            if not self._held[tenant]:
                del self._held[tenant]

    async def _in_time(self, stream: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        begun = asyncio.get_running_loop().time()
        size = 0
        try:
            async with asyncio.timeout(min(self._body_time, self._patience)) as timeout:
                async for chunk in stream:
                    size += len(chunk)
                    timeout.reschedule(begun + min(self._body_time, self._patience + size / BODY_RATE))
                    yield chunk
        except TimeoutError:
            detail = (
                f"The body came too slowly: it has {self._body_time:g} seconds, and after the first"
                f" {self._patience:g} at least {BODY_RATE} bytes must have come for each second."
            )
            raise ProblemError(BODY_TIMEOUT, detail, headers=_CLOSE) from None

    def _check_held(self, tenant: str) -> None:
        if self._held[tenant] > max(self._max_bodies // SHARE, self._max_body):
            raise unavailable(
                "api", "The project sends too many large bodies at once; try again in a moment."
            )
        if self._held.total() > self._max_bodies:
            raise unavailable("api", "Too many large request bodies at once; try again in a moment.")


def _check_size(size: int, most: int) -> None:
    if size > most:
        detail = f"The body may have {most} bytes; this one has at least {size}."
        raise ProblemError(BODY_TOO_LARGE, detail, headers=_CLOSE)


def _check_headers(request: Request) -> None:
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        detail = f"Content-Type must be application/json, not {shown(media_type) or 'absent'}."
        raise ProblemError(UNSUPPORTED_MEDIA, detail, headers=_CLOSE)
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding != "identity":
        detail = f"Content-Encoding {shown(encoding)} is not accepted: send the body as it is."
        raise ProblemError(UNSUPPORTED_MEDIA, detail, headers=_CLOSE)


def parse(body: bytes) -> object:
    """The one JSON document in `body`, as plain data.

    Raises:
        ProblemError: 422 for everything that is not JSON (RFC 8259) in UTF-8, and for duplicate keys.
    """
    if not _few_values(body):
        _refuse("The document has too many values.", f"at most {MAX_VALUES} values")
    if _deep(body):
        _refuse("The document is nested too deeply.", f"at most {MAX_LEVELS} levels")
    doubts: list[str] = []

    def members(pairs: list[tuple[str, object]]) -> dict[str, object]:
        found = dict(pairs)
        if len(found) != len(pairs):
            doubts.append("duplicate")
        return found

    def constant(name: str) -> float:
        doubts.append(name)
        return 0.0

    try:
        document: object = json.loads(
            body.decode("utf-8"), object_pairs_hook=members, parse_constant=constant
        )
    except UnicodeDecodeError as error:
        _refuse(f"The body is not UTF-8: byte {error.start} cannot be read.", "JSON in UTF-8")
    except json.JSONDecodeError as error:
        _refuse(f"The body is not JSON: {error.msg} at line {error.lineno} column {error.colno}.", "JSON")
    except ValueError:  # Python's own bound on the digits of an integer
        _refuse("The body has a number of more than 4300 digits.", "numbers that fit into 64 bits")
    if doubts:
        raise invalid(tuple(islice(_doubtful(body), VIOLATIONS_MAX)))
    return document


def _few_values(body: bytes) -> bool:
    """Whether the document has no more than `MAX_VALUES` values: every one but the first follows a mark."""
    if _marks(body, 0, len(body)) <= MAX_VALUES:  # those inside strings included: enough for most bodies
        return True
    marks = position = 0
    for number, string in enumerate(_STRING.finditer(body)):
        marks += _marks(body, position, string.start())
        position = string.end()
        if marks > MAX_VALUES or number > 2 * MAX_VALUES:  # a mark has at most a key and a text behind it
            return False
    return marks + _marks(body, position, len(body)) <= MAX_VALUES


def _marks(body: bytes, start: int, end: int) -> int:
    return sum(body.count(mark, start, end) for mark in (b",", b"[", b"{"))


def _deep(body: bytes) -> bool:
    """Whether the document, which has few values, has more than `MAX_LEVELS` levels."""
    if body.count(b"[") + body.count(b"{") <= MAX_LEVELS:  # those inside strings included
        return False
    outside = _STRING.sub(
        b"", body, 2 * MAX_VALUES
    )  # what has more strings is no JSON and is left to the parser
    level = 0
    for bracket in outside.translate(None, _NO_BRACKETS):
        level += 1 if bracket in b"[{" else -1
        if not 0 <= level <= MAX_LEVELS:  # below nothing the parser stops too
            break
    return level > MAX_LEVELS


def _refuse(message: str, allowed: str) -> NoReturn:
    error = Violation(field="", got=None, allowed=allowed, message=message)
    raise ProblemError(INVALID_REQUEST, message, errors=(error,))


class _Members(list[tuple[str, object]]):
    """The members of an object as they were written, duplicates included."""


class _Constant(str):
    """NaN, Infinity or -Infinity."""

    __slots__ = ()


_Place = tuple["_Place", str | int] | None
"""Where a value stands: what it is in, and its key or number there; None is the whole document."""


def _doubtful(body: bytes) -> Iterator[Violation]:
    """Each duplicate key and each NaN or Infinity, with its place: a second, slower look at a bad body."""
    document = json.loads(body.decode(), object_pairs_hook=_Members, parse_constant=_Constant)
    pending: deque[tuple[_Place, object]] = deque([(None, document)])
    while pending:
        place, value = pending.popleft()
        if isinstance(value, _Constant):
            yield _doubt(
                place, str(value), "a finite number", f"{value} is not JSON and not a value of any field"
            )
        elif isinstance(value, _Members):
            keys: set[str] = set()
            for key, member in value:
                if key in keys:
                    yield _doubt((place, key), None, "one value", "This key is given twice")
                keys.add(key)
                pending.append(((place, key), member))
        elif isinstance(value, list):
            pending.extend(((place, number), item) for number, item in enumerate(value))


def _doubt(place: _Place, got: str | None, allowed: str, message: str) -> Violation:
    path: list[str | int] = []
    while place is not None:
        place, part = place
        path.append(part)
    return Violation(field=field_path(path[::-1]), got=got, allowed=allowed, message=message)
