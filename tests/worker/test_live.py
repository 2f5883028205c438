"""Live output on the worker's side: told while it is new, bounded, and never at the job's expense."""

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from jobs.job_event import Stream
from jobs.live import PIECE, LiveOutput, Piece, Pieces
from jobs.outcome import Output
from jobs.store import Store
from tests.api.conftest import step_result
from tests.dispatch import open_window
from tests.worker.conftest import Claim, until
from worker import live as live_module
from worker.attempt import Workshop, run_attempt
from worker.live import Broadcast, Live
from worker.stop import Reason, Stop


class Recorder(LiveOutput):
    """Keeps what is published, and fails when it is told to."""

    def __init__(self) -> None:
        self.calls: list[list[Pieces]] = []
        self.broken = False
        self.held = threading.Event()
        self.held.set()

    def publish(self, news: Any) -> None:
        """Keep it, after having waited as long as a slow Redis lets one wait."""
        self.held.wait(10)
        if self.broken:
            raise RedisConnectionError("gone")
        self.calls.append(list(news))

    @property
    def pieces(self) -> list[Piece]:
        """All pieces so far."""
        return [piece for call in self.calls for pieces in call for piece in pieces.pieces]

    @property
    def stdout(self) -> bytes:
        """What they have of the first step's standard output, which must follow each other."""
        content = b""
        for piece in self.pieces:
            assert piece.offset == len(content)
            content += piece.data
        return content


@pytest.fixture
def recorder() -> Recorder:
    """In place of Redis."""
    return Recorder()


@pytest.fixture
def live(recorder: Recorder) -> Iterator[Live]:
    """A running thread that publishes into the recorder."""
    running = Live()
    running.start(recorder)
    yield running
    recorder.held.set()
    running.stop()


@pytest.fixture
def watched(workshop: Workshop, live: Live) -> Workshop:
    """A workshop whose attempts are published."""
    return Workshop(workshop.store, workshop.policies, workshop.launcher, live=live)


@pytest.mark.usefixtures("launcher")
def test_output_is_published_before_the_job_ends(watched: Workshop, claim: Claim, recorder: Recorder) -> None:
    """A program that goes on for long: its first line comes while it runs."""
    stop = Stop()
    attempt = claim(command=["sh", "-c", "echo first; sleep 30"])
    running = threading.Thread(target=run_attempt, args=(attempt, watched, stop))
    running.start()
    try:
        until(lambda: recorder.stdout == b"first\n")
        assert running.is_alive()
    finally:
        stop.ask(Reason.CANCELLED)
        running.join()


@pytest.mark.usefixtures("launcher")
def test_a_short_job_costs_no_round_trip(
    workshop: Workshop, claim: Claim, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is over before it is old enough is not published: its output comes with the result."""
    monkeypatch.setattr(live_module, "INTERVAL", 5.0)
    running = Live()
    running.start(LiveOutput(redis))
    try:
        watched = Workshop(workshop.store, workshop.policies, workshop.launcher, live=running)
        steps = [{"argv": ["echo", "one"]}, {"argv": ["echo", "two"]}]
        attempt = claim(steps=steps)
        redis.config_resetstat()
        result = run_attempt(attempt, watched, Stop())
        assert result.steps[1].stdout.text == "two\n"
        assert "cmdstat_xadd" not in redis.info("commandstats")
        assert "cmdstat_publish" not in redis.info("commandstats")
    finally:
        running.stop()


def test_news_of_all_jobs_goes_in_one_round_trip(live: Live, claim: Claim, recorder: Recorder) -> None:
    """Two jobs that write at once are published together, at most 20 times a second."""
    with live.of(claim(command=["a"])) as one, live.of(claim(command=["b"])) as other:
        begun = time.monotonic()
        for n in range(200):
            for broadcast in (one, other):
                broadcast.feed(0, Stream.STDOUT, b"%d\n" % n)
            time.sleep(0.001)
        until(lambda: one.since is None and other.since is None)
        took = time.monotonic() - begun
    assert len(recorder.calls) <= took / live_module.INTERVAL + 1
    assert max(len(call) for call in recorder.calls) == 2


@pytest.mark.usefixtures("launcher")
def test_a_slow_redis_does_not_hold_up_the_job(watched: Workshop, claim: Claim, recorder: Recorder) -> None:
    """While an answer of Redis is waited for, the job writes, is read, and ends."""
    recorder.held.clear()
    script = "i=0; while [ $i -lt 30 ]; do echo line; sleep 0.01; i=$((i+1)); done"
    result = run_attempt(claim(command=["sh", "-c", script]), watched, Stop())
    assert result.steps[0].stdout.text == "line\n" * 30
    assert recorder.calls == []


def test_a_redis_that_is_away_costs_nothing_and_loses_nothing(
    live: Live, claim: Claim, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What could not be published is kept and published when Redis is back, once."""
    monkeypatch.setattr(live_module, "PATIENCE", 0.05)
    recorder.broken = True
    with live.of(claim(command=["a"])) as broadcast:
        broadcast.feed(0, Stream.STDOUT, b"kept ")
        time.sleep(0.2)
        broadcast.feed(0, Stream.STDOUT, b"and sent")
        recorder.broken = False
        until(lambda: recorder.stdout == b"kept and sent")
        time.sleep(0.15)
        assert recorder.stdout == b"kept and sent"


def test_any_failure_leaves_the_thread_alive(
    live: Live, claim: Claim, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bug in the publishing of one thing does not end it for all."""
    monkeypatch.setattr(live_module, "PATIENCE", 0.05)
    publish = recorder.publish
    failures = iter([RuntimeError("a bug")])

    def failing(news: Any) -> None:
        for failure in failures:
            raise failure
        publish(news)

    monkeypatch.setattr(recorder, "publish", failing)
    with live.of(claim(command=["a"])) as broadcast:
        broadcast.feed(0, Stream.STDOUT, b"x")
        until(lambda: recorder.stdout == b"x")


def test_a_flood_is_bounded_by_the_limit(claim: Claim) -> None:
    """However much a step writes, its broadcast has the first part, and no more than the limit."""
    broadcast = Broadcast(claim(command={"argv": ["a"], "limits": {"output": 1000}}))
    for _ in range(100):
        broadcast.feed(0, Stream.STDOUT, b"x" * 300)
    pieces = broadcast.pending().pieces
    assert b"".join(piece.data for piece in pieces) == b"x" * 1000


def test_a_large_output_goes_in_bounded_parts(claim: Claim) -> None:
    """Four megabytes at once are published a megabyte at a time, in order."""
    broadcast = Broadcast(claim(command={"argv": ["a"], "limits": {"output": 4 << 20}}))
    whole = bytes(range(256)) * (4 << 12)
    broadcast.feed(0, Stream.STDOUT, whole)
    out = b""
    while broadcast.since is not None:
        pending = broadcast.pending()
        part = b"".join(piece.data for piece in pending.pieces)
        assert 0 < len(part) <= live_module.MOST * PIECE
        out += part
        broadcast.published(pending)
    assert out == whole


def test_the_last_part_of_a_step_follows_a_gap(claim: Claim) -> None:
    """Where a further step comes, what a result keeps of the end is published too, at its offset."""
    two = [{"argv": ["a"], "limits": {"output": 10}}, {"argv": ["b"]}]
    broadcast = Broadcast(claim(steps=two))
    broadcast.feed(0, Stream.STDOUT, b"0123456789abcdefghij")
    broadcast.end_step(0, step_result(Output.of(b"01234", b"fghij", 20), Output.of(b"")))
    broadcast.feed(1, Stream.STDERR, b"next")
    assert broadcast.pending().pieces == [
        Piece(1, 0, Stream.STDOUT, 0, b"0123456789"),
        Piece(1, 0, Stream.STDOUT, 15, b"fghij"),
        Piece(1, 1, Stream.STDERR, 0, b"next"),
    ]


def test_only_a_later_attempt_empties_the_stream(store: Store, submit: Any) -> None:
    """The first publication of a second attempt says that what was before is void; no other does."""
    open_window(store.redis)
    job = submit(command=["a"])
    first = store.claim(job.id, 1, "w")
    assert first is not None
    store.give_back(first)
    second = store.claim(job.id, 2, "w")
    assert second is not None
    for attempt, expected in ((first, [False, False]), (second, [True, False])):
        broadcast = Broadcast(attempt)
        begins = []
        for _ in range(2):
            broadcast.feed(0, Stream.STDOUT, b"x")
            begins.append(broadcast.pending().begins)
            broadcast.published(broadcast.pending())
        assert begins == expected


Act = tuple[int, Stream, bytes] | None


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.one_of(
            st.none(),
            st.tuples(st.just(0), st.sampled_from(list(Stream)), st.binary(min_size=1, max_size=40_000)),
        ),
        max_size=12,
    ),
    st.integers(0, 3),
)
def test_nothing_is_lost_or_doubled_however_it_is_published(
    any_attempt: Any, acts: list[Act], late: int
) -> None:
    """Bytes that come while a publication is under way, and any number of them, come out whole."""
    broadcast = Broadcast(any_attempt)
    fed: dict[Stream, bytes] = dict.fromkeys(Stream, b"")
    out: dict[Stream, bytes] = dict.fromkeys(Stream, b"")

    def flush(meanwhile: Callable[[], None] = lambda: None) -> None:
        pieces = broadcast.pending()
        meanwhile()
        for piece in pieces.pieces:
            assert piece.offset == len(out[piece.stream])
            out[piece.stream] += piece.data
        broadcast.published(pieces)

    def feed(stream: Stream, data: bytes) -> None:
        broadcast.feed(0, stream, data)
        fed[stream] += data

    for n, act in enumerate(acts):
        if act is None:
            flush()
        elif n % 4 == late:
            flush(lambda act=act: feed(*act[1:]))  # type: ignore[misc]
        else:
            feed(*act[1:])
    flush()
    assert broadcast.since is None
    limit = any_attempt.job.admission.steps[0].limits.output
    assert out == {stream: data[:limit] for stream, data in fed.items()}


@pytest.fixture
def any_attempt(claim: Claim) -> Any:
    """An attempt."""
    return claim(command=["a"])
