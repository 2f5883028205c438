"""Request bodies: bounded while they come, one meaning when they are here."""

import asyncio
import json
import resource
import socket
from collections.abc import Iterator

import httpx
import pytest
from fastapi import Request
from starlette.types import Message

from api.body import BODY_RATE, BodyReader, parse
from api.problems import ProblemError
from api.services import max_body
from policies.loader import load_policies
from policies.policy import FILES_MAX, STEPS_MAX
from policies.violation import VIOLATIONS_MAX

TENANT = "tenant_1"
JSON = {"Content-Type": "application/json"}


def request(chunks: list[bytes], headers: dict[str, str] | None = None, *, stall: bool = False) -> Request:
    """A request whose body comes in these chunks, and then, with `stall`, does not end."""
    messages = iter(chunks)

    async def receive() -> Message:
        chunk = next(messages, None)
        if chunk is None and stall:
            await asyncio.Event().wait()
        return {"type": "http.request", "body": chunk or b"", "more_body": chunk is not None}

    raw = [(name.lower().encode(), value.encode()) for name, value in (JSON | (headers or {})).items()]
    return Request({"type": "http", "headers": raw}, receive)


def read(reader: BodyReader, asked: Request) -> bytes:
    """The body that the reader gives for this request."""

    async def run() -> bytes:
        async with reader.read(asked, TENANT) as body:
            return body

    return asyncio.run(run())


def refusal(reader: BodyReader, asked: Request) -> ProblemError:
    """Why the reader does not give the body."""
    with pytest.raises(ProblemError) as refused:
        read(reader, asked)
    return refused.value


def test_a_body_arrives_as_it_was_sent() -> None:
    """Chunks are joined; a body of exactly the bound is let in."""
    assert read(BodyReader(6), request([b"abc", b"def"])) == b"abcdef"


def test_a_declared_length_over_the_bound_is_refused_unread() -> None:
    """413 comes before the first byte of the body is asked for."""

    async def receive() -> Message:
        raise AssertionError("the body was read")

    headers = [(b"content-type", b"application/json"), (b"content-length", b"7")]
    asked = Request({"type": "http", "headers": headers}, receive)
    assert refusal(BodyReader(6), asked).kind.status == 413


def test_an_undeclared_length_is_refused_when_it_passes_the_bound() -> None:
    """An endless chunked body is cut off at the bound, whatever would follow."""

    def endless() -> Iterator[bytes]:
        for number in range(1000):
            assert number < 10, "read on after the bound"
            yield b"x" * 1000

    asked = request(endless())  # type: ignore[arg-type]
    assert refusal(BodyReader(5000), asked).kind.status == 413


def test_all_bodies_together_are_bounded() -> None:
    """With too many bytes of other bodies here, a new body is told to come later; afterwards all is free."""

    async def run() -> None:
        reader = BodyReader(100, max_bodies=150)
        async with reader.read(request([b"x" * 100]), TENANT):
            with pytest.raises(ProblemError) as refused:
                async with reader.read(request([b"x" * 100]), "tenant_2"):
                    pass
            assert refused.value.kind.status == 503
        async with reader.read(request([b"x" * 100]), "tenant_2") as body:
            assert len(body) == 100

    asyncio.run(run())


def test_the_bodies_of_one_tenant_leave_room_for_others() -> None:
    """A quarter of all bytes is one tenant's: its next body is told to come later, another's is taken."""

    async def run() -> None:
        reader = BodyReader(100, max_bodies=800)
        async with reader.read(request([b"x" * 100]), TENANT), reader.read(request([b"x" * 100]), TENANT):
            with pytest.raises(ProblemError) as refused:
                async with reader.read(request([b"x"]), TENANT):
                    pass
            assert (refused.value.kind.status, refused.value.headers["Retry-After"]) == (503, "1")
            async with reader.read(request([b"x" * 100]), "tenant_2") as body:
                assert len(body) == 100
        async with reader.read(request([b"x" * 100]), TENANT) as body:
            assert len(body) == 100
        assert not reader._held

    asyncio.run(run())


def test_a_body_that_does_not_come_is_given_up() -> None:
    """A sender that stalls is answered 408 after the time for a body."""
    assert refusal(BodyReader(100, body_time=0.05), request([b"{"], stall=True)).kind.status == 408


def test_a_body_that_crawls_is_given_up() -> None:
    """After a moment each second needs its bytes: a trickle is 408 long before the time for a body is over."""
    late = refusal(BodyReader(100, patience=0.05), request([b"{"] * 10, stall=True))
    assert late.kind.status == 408
    fast = BodyReader(BODY_RATE * 100, patience=0.0)
    assert len(read(fast, request([b"x" * BODY_RATE] * 10))) == BODY_RATE * 10


@pytest.mark.parametrize(
    "headers",
    [
        {"Content-Type": "text/plain"},
        {"Content-Type": ""},
        {"Content-Type": "application/x-www-form-urlencoded"},
        {"Content-Encoding": "gzip"},
        {"Content-Encoding": "identity, br"},
    ],
)
def test_only_plain_json_is_taken(headers: dict[str, str]) -> None:
    """Other media types and every compression are 415: nothing is ever unpacked."""
    assert refusal(BodyReader(100), request([b"{}"], headers)).kind.status == 415


def test_a_charset_beside_json_is_no_harm() -> None:
    """Clients that write `application/json; charset=utf-8` are served."""
    assert (
        read(BodyReader(100), request([b"{}"], {"Content-Type": "Application/JSON; charset=utf-8"})) == b"{}"
    )


@pytest.mark.parametrize("document", [{}, [], 1, "x", None, {"a": [{"b": 1.5}, True]}])
def test_json_is_parsed(document: object) -> None:
    """What is JSON comes out as the data it says."""
    assert parse(json.dumps(document).encode()) == document


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"{'a': 1}",
        b'{"a": 1,}',
        b'{"a": 1} x',
        b"\xff\xfe{\x00}\x00",
        b"\xef\xbb\xbf{}",
        b'{"a": "\xff"}',
        b'{"a": ' + b"9" * 5000 + b"}",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"[" * 100_000 + b"]" * 100_000,
    ],
)
def test_what_is_not_plain_json_is_refused(body: bytes) -> None:
    """Broken syntax, other encodings, endless numbers and bottomless nesting are 422, not a crash."""
    with pytest.raises(ProblemError) as refused:
        parse(body)
    assert refused.value.kind.status == 422


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        ('{"a": 1, "a": 1}', ["a"]),
        ('{"steps": [{"limits": {"memory": 1, "memory": 2}}]}', ["steps[0].limits.memory"]),
        ('{"a": 1, "\\u0061": 2}', ["a"]),
        ('{"a": NaN, "b": [1, -Infinity], "c": Infinity}', ["a", "c", "b[1]"]),
        ('[{"x": 1, "x": NaN}]', ["[0].x", "[0].x"]),
    ],
)
def test_doubtful_json_is_refused_with_every_place(body: str, fields: list[str]) -> None:
    """Duplicate keys (escaped ones too) and NaN or Infinity have no one meaning; each place is named."""
    with pytest.raises(ProblemError) as refused:
        parse(body.encode())
    assert [error.field for error in refused.value.errors] == fields


def test_a_flood_of_doubts_below_a_long_path_is_told_in_part() -> None:
    """Thousands of doubtful members under long keys cost what is told of them, not a path for each."""
    key = "k" * 1000
    body = ('{"' + key + '":') * 60 + "{" + ",".join(['"a":NaN'] * 20_000) + "}" + "}" * 60
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ProblemError) as refused:
        parse(body.encode())
    assert len(refused.value.errors) == VIOLATIONS_MAX
    assert refused.value.errors[0].field.endswith(".a")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 1024


@pytest.mark.parametrize("level", ["[", '{"a":'])
def test_levels_are_counted_before_anything_is_parsed(level: str) -> None:
    """64 levels are taken and one more is not, even of what would otherwise be refused for something else."""
    close = {"[": "]"}.get(level, "}")
    assert parse((level * 64 + '"[[{{"' + close * 64).encode())
    assert parse(("[" + '[{"a":"[[{{"}],' * 100 + "0]").encode())
    for inner in ("0", "NaN", "nonsense"):
        with pytest.raises(ProblemError) as refused:
            parse((level * 65 + inner + close * 65).encode())
        assert refused.value.detail == "The document is nested too deeply."


def test_a_body_bound_leaves_room_for_the_files_that_policies_allow() -> None:
    """The most files that a policy allows fit as base64."""
    policies = load_policies()
    most = max(policy.files_bytes for policy in policies.values())
    assert max_body(policies) > most * 4 / 3


def test_too_large_is_413_over_http(client: httpx.Client) -> None:
    """A sender reads the 413, whether it declared the length or not, and the service goes on."""
    size = max_body(load_policies()) + 1

    def chunks() -> Iterator[bytes]:
        for _ in range(size // 65536 + 1):
            yield b" " * 65536

    for content in (b" " * size, chunks()):
        answer = client.post("/v1/jobs", content=content, headers=JSON)
        assert answer.status_code == 413
        assert answer.headers["content-type"] == "application/problem+json"
    assert client.get("/healthz").status_code == 200


def test_a_stranger_cannot_make_the_service_read_a_body(stranger: httpx.Client) -> None:
    """Without a key the answer is 401 before any of the body has been sent."""
    with socket.create_connection(("127.0.0.1", stranger.base_url.port or 0), timeout=10) as connection:
        fields = b"Host: x\r\nContent-Type: application/json\r\nContent-Length: 1000000"
        connection.sendall(b"POST /v1/jobs HTTP/1.1\r\n" + fields + b"\r\n\r\n")
        assert connection.recv(4096).startswith(b"HTTP/1.1 401 ")


def test_the_same_through_the_route(client: httpx.Client) -> None:
    """POST /v1/jobs uses all this: a duplicate key there is 422 with its place."""
    answer = client.post("/v1/jobs", content='{"command": ["true"], "command": ["false"]}', headers=JSON)
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["field"] == "command"


@pytest.mark.parametrize("mark", [b"[],", b"{},", b"1,", b'"",', b'{"a":1},', b"[", b'{"a":'])
def test_a_flood_of_values_is_refused_before_it_is_parsed(mark: bytes) -> None:
    """Megabytes of tiny values would be gigabytes of objects: they are counted first, in bounded memory."""
    body = b"[" + mark * (8 * 2**20 // len(mark))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ProblemError) as refused:
        parse(body)
    assert "too many values" in refused.value.detail
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 32 * 1024


@pytest.mark.parametrize("text", ['a,"b",[c]\n' * 200_000, "\\" * 200_000, '"' * 200_000, ",[{" * 200_000])
def test_text_that_looks_like_values_is_text(text: str) -> None:
    """A file of comma-separated values, quotes and brackets is one value, however long."""
    document = {"files": [{"path": "a", "text": text}, {"path": "b", "text": text}]}
    assert parse(json.dumps(document).encode()) == document


def test_as_many_files_as_any_policy_may_allow_are_parsed() -> None:
    """The bound on values leaves room for the largest request there can be."""
    files = [{"path": f"{n},[", "base64": "", "mode": "0644"} for n in range(FILES_MAX)]
    steps = [{"argv": ["a"] * 64, "env": {"b": "c"}, "limits": {"pids": 1}}] * STEPS_MAX
    document = {"files": files, "steps": steps}
    assert parse(json.dumps(document).encode()) == document
