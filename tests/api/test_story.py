"""A job's story: every byte once, in order, from any point on, whichever source has it."""

import itertools
from base64 import b64decode
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from api.story import Cursor, Story
from jobs.job import Job, JobResult, JobState
from jobs.job_event import Event, FinishedEvent, GapEvent, OutputEvent, StateEvent, Stream
from jobs.live import PIECE, Piece, Progress
from jobs.outcome import Outcome, OutcomeKind, Output, StepResult
from jobs.spec import JobSpec
from policies.admission import admit
from policies.loader import load_policies
from tests.api.conftest import step_result

NOW = datetime(2030, 1, 1, tzinfo=UTC)
SPEC = JobSpec(command={"argv": ("true",)})  # type: ignore[arg-type]
ADMISSION = admit(SPEC, load_policies()["default"])
OUTCOME = Outcome(kind=OutcomeKind.EXITED, exit_code=0, message="It exited with status 0.")
QUEUED = Progress(JobState.QUEUED, 0, NOW, None)
RUNNING = Progress(JobState.RUNNING, 1, NOW, NOW)
LIMIT = 12

Told = dict[tuple[int, int, Stream], list[int | None]]


def finished(*steps: StepResult, attempt: int = 1) -> Job:
    """A job that has finished with these steps."""
    return Job(
        id="job_1",
        tenant="t",
        state=JobState.FINISHED,
        spec=SPEC,
        admission=ADMISSION,
        attempt=attempt,
        created_at=NOW,
        started_at=NOW,
        finished_at=NOW,
        result=JobResult(outcome=OUTCOME, steps=steps),
    )


def content(event: OutputEvent) -> bytes:
    """The bytes of an event."""
    assert (event.text is None) != (event.base64 is None)
    part = event.text.encode() if event.text is not None else b64decode(event.base64 or "")
    assert len(part) == event.bytes > 0
    return part


def told(events: Iterable[Event]) -> Told:
    """What events tell of each stream, byte for byte, None for one in a gap; checks order and offsets."""
    streams: Told = {}
    place = (0, 0)
    for event in events:
        data = event.data
        if isinstance(data, OutputEvent | GapEvent):
            assert (data.attempt, data.step) >= place, "a step begins after the one before"
            place = (data.attempt, data.step)
            stream = streams.setdefault((*place, data.stream), [])
            assert data.offset == len(stream), "nothing is missed and nothing comes twice"
            stream += content(data) if isinstance(data, OutputEvent) else [None] * data.bytes
    return streams


def states(events: Iterable[Event]) -> list[tuple[str, int]]:
    """State and attempt of the events that tell of states."""
    return [
        (event.data.state.value, event.data.attempt)
        for event in events
        if isinstance(event.data, StateEvent | FinishedEvent)
    ]


def kept(written: bytes) -> Output:
    """What a result keeps of this."""
    if len(written) <= LIMIT:
        return Output.of(written)
    head, tail = LIMIT - LIMIT // 2, LIMIT // 2
    return Output.of(written[:head], written[-tail:], len(written))


def live(attempt: int, step: int, stream: Stream, written: bytes, cuts: Iterable[int]) -> Iterator[Piece]:
    """What a worker publishes of this, cut at these places; the last part too, since a step follows."""
    head = written[:LIMIT]
    places = sorted({0, len(head), *(cut % (len(head) + 1) for cut in cuts)})
    for begin, end in itertools.pairwise(places):
        yield Piece(attempt, step, stream, begin, head[begin:end])
    if len(written) > LIMIT:
        output = kept(written)
        assert output.omitted is not None
        tail = output.data[output.omitted.at :]
        yield Piece(attempt, step, stream, len(written) - len(tail), tail)


def written_to(steps: list[tuple[bytes, bytes]]) -> dict[tuple[int, int, Stream], bytes]:
    """What these steps wrote, by attempt, step and stream, without the streams that nothing was written to."""
    return {
        (1, index, stream): written
        for index, pair in enumerate(steps)
        for stream, written in zip(Stream, pair, strict=True)
        if written
    }


WRITTEN = st.one_of(st.text(max_size=12).map(str.encode), st.binary(max_size=30))
STEPS = st.lists(st.tuples(WRITTEN, WRITTEN), min_size=1, max_size=3)


@settings(max_examples=150, deadline=None)
@given(STEPS, st.lists(st.integers(0, 40), max_size=4), st.data())
def test_a_story_can_be_cut_anywhere(
    steps: list[tuple[bytes, bytes]], cuts: list[int], data: st.DataObject
) -> None:
    """Cut after any event and resumed from its id, live or from the result: together it is the whole."""
    job = finished(*(step_result(kept(out), kept(err)) for out, err in steps))
    pieces = [
        piece
        for index, pair in enumerate(steps)
        for stream, written in zip(Stream, pair, strict=True)
        for piece in live(1, index, stream, written, cuts)
    ]
    first = Story()
    events = list(first.progress(QUEUED)) + list(first.progress(RUNNING))
    for piece in pieces:
        events += first.piece(piece)
    events += first.end(job)
    whole = told(events)
    assert whole.keys() == written_to(steps).keys()
    for key, written in written_to(steps).items():
        assert len(whole[key]) == len(written)
        assert all(byte in (None, written[at]) for at, byte in enumerate(whole[key]))
        assert whole[key].count(None) <= max(0, len(written) - LIMIT)

    cut = data.draw(st.integers(1, len(events) - 1))
    known = data.draw(st.integers(0, len(pieces)))
    again = Story(Cursor.parse(events[cut - 1].id))
    rest = list(again.progress(RUNNING))
    for piece in pieces[:known]:  # those after it have expired
        rest += again.piece(piece)
    rest += again.end(job)
    together = events[:cut] + rest
    assert states(together) == [("queued", 0), ("running", 1), ("finished", 1)]
    assert together[-1].id == events[-1].id
    for key, written in written_to(steps).items():
        stream = told(together)[key]
        assert len(stream) == len(written)
        assert all(byte in (None, written[at]) for at, byte in enumerate(stream))
    if known == len(pieces):
        assert told(together) == whole


@settings(max_examples=100, deadline=None)
@given(STEPS, st.lists(st.integers(0, 40), max_size=4))
def test_short_output_is_the_same_from_either_source(
    steps: list[tuple[bytes, bytes]], cuts: list[int]
) -> None:
    """What is within the limit is told byte for byte, live, from the result, or half and half."""
    steps = [(out[:LIMIT], err[:LIMIT]) for out, err in steps]
    job = finished(*(step_result(kept(out), kept(err)) for out, err in steps))
    stories = []
    for count in (0, 1, 1000):
        story = Story()
        events = list(story.progress(RUNNING))
        pieces = (
            piece
            for index, pair in enumerate(steps)
            for stream, written in zip(Stream, pair, strict=True)
            for piece in live(1, index, stream, written, cuts)
        )
        for piece in itertools.islice(pieces, count):
            events += story.piece(piece)
        events += story.end(job)
        stories.append(told(events))
    expected = {key: list(written) for key, written in written_to(steps).items()}
    assert stories == [expected] * 3


def test_a_character_that_is_cut_waits_for_its_end() -> None:
    """A piece that ends within a character is told without it, as text; the next has it whole."""
    story = Story()
    list(story.progress(RUNNING))
    euro = "€".encode()
    first = list(story.piece(Piece(1, 0, Stream.STDOUT, 0, b"1" + euro[:2])))
    second = list(story.piece(Piece(1, 0, Stream.STDOUT, 3, euro[2:] + b"\n")))
    texts = [(event.data.offset, event.data.text) for event in first + second]  # type: ignore[union-attr]
    assert texts == [(0, "1"), (1, "€\n")]
    assert [event.id for event in first + second] == ["1r-0-1-0", "1r-0-5-0"]


def test_half_a_character_at_the_end_comes_as_base64() -> None:
    """What never becomes a character is not held back for ever: at the end of its step it is told."""
    story = Story()
    list(story.progress(RUNNING))
    assert list(story.piece(Piece(1, 0, Stream.STDOUT, 0, b"\xe2\x82"))) == []
    event = next(story.piece(Piece(1, 1, Stream.STDOUT, 0, b"next")))
    assert isinstance(event.data, OutputEvent)
    assert (event.data.step, content(event.data), event.data.text) == (0, b"\xe2\x82", None)


def test_a_flood_without_an_end_comes_in_bounded_events() -> None:
    """No event has more than `PIECE` bytes, and characters stay whole."""
    story = Story()
    list(story.progress(RUNNING))
    text = "ä€𝄞" * 20_000
    events = list(story.end(finished(step_result(Output.of(text.encode()), Output.of(b"")))))
    parts = [event.data for event in events if isinstance(event.data, OutputEvent)]
    assert len(parts) > 5
    assert all(part.text is not None and part.bytes <= PIECE for part in parts)
    assert "".join(part.text or "" for part in parts) == text


def test_a_new_attempt_begins_again() -> None:
    """We failed: what the first attempt wrote is void, `running` says so, and offsets begin at 0."""
    story = Story()
    events = list(story.progress(RUNNING))
    events += story.piece(Piece(1, 0, Stream.STDOUT, 0, b"first"))
    events += story.progress(Progress(JobState.QUEUED, 1, NOW, None))
    events += story.piece(Piece(1, 0, Stream.STDOUT, 5, b" late"))
    events += story.progress(Progress(JobState.RUNNING, 2, NOW, NOW))
    events += story.piece(Piece(1, 0, Stream.STDOUT, 5, b" later"))
    events += story.piece(Piece(2, 0, Stream.STDOUT, 0, b"second"))
    events += story.end(finished(step_result(Output.of(b"second!"), Output.of(b"")), attempt=2))
    assert states(events) == [("queued", 0), ("running", 1), ("queued", 1), ("running", 2), ("finished", 2)]
    assert told(events) == {
        (1, 0, Stream.STDOUT): list(b"first"),
        (2, 0, Stream.STDOUT): list(b"second!"),
    }


def test_a_cancelled_job_says_so_once() -> None:
    """`cancelling` is told when it is seen, and its output goes on meanwhile."""
    story = Story()
    cancelling = Progress(JobState.CANCELLING, 1, NOW, NOW)
    events = list(story.progress(cancelling)) + list(story.progress(cancelling))
    events += story.piece(Piece(1, 0, Stream.STDOUT, 0, b"still"))
    assert states(events) == [("queued", 0), ("running", 1), ("cancelling", 1)]
    assert told(events) == {(1, 0, Stream.STDOUT): list(b"still")}


@pytest.mark.parametrize(
    "text", ["", "x", "1r", "1r-0-0", "1x-0-0-0", "1r-0-0-0-0", "-1r-0-0-0", "1r-0-0-" + "9" * 20, "1r-0-٣-0"]
)
def test_what_is_no_id_is_no_cursor(text: str) -> None:
    """Ids are read strictly."""
    with pytest.raises(ValueError, match="not the id"):
        Cursor.parse(text)


def test_ids_are_short_and_read_back() -> None:
    """An id names all that was told, and nothing else."""
    cursor = Cursor(2, "c", 3, 4, 5)
    assert str(cursor) == "2c-3-4-5"
    assert Cursor.parse("2c-3-4-5") == cursor
