"""A job's story, event by event, from any point in it: pure, and the same however often it is interrupted.

A story is told from two sources that overlap: the pieces of output that a worker publishes while the job runs
(`jobs.live`), and the result. What has been told is a `Cursor`, which is every event's id: how far the job
has come, which step, and how many bytes of each of its streams. Steps run one after the other, and nothing
of a step is told after something of the next; so these few numbers say it all, and whoever brings them
back hears the rest, from whichever source has it: every byte that was kept once, and of the others a gap.
"""

import codecs
import re
from base64 import b64encode
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Literal, Self

from jobs.job import Job, JobResult, JobState
from jobs.job_event import EVENTS, Data, Event, FinishedEvent, GapEvent, OutputEvent, StateEvent, Stream
from jobs.live import PIECE, Piece, Progress
from jobs.outcome import Output

_NAMES = {model: name for name, model in EVENTS.items()}

_PHASES = {
    "": None,
    "r": JobState.RUNNING,
    "c": JobState.CANCELLING,
    "q": JobState.QUEUED,
    "f": JobState.FINISHED,
}
"""What a job goes through in an attempt, in order, by the letter in a cursor; `queued` is for the next."""
_LETTERS = {state: letter for letter, state in _PHASES.items()}
_ORDER = list(_PHASES)
_CURSOR = re.compile(r"(\d{1,3})([rcqf])-(\d{1,4})-(\d{1,15})-(\d{1,15})", re.ASCII)


@dataclass(frozen=True)
class Cursor:
    """How much of a story has been told."""

    attempt: int = 0
    phase: str = ""
    step: int = 0
    stdout: int = 0
    stderr: int = 0

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the cursor that an event's id is. Raises ValueError when it is none."""
        parts = _CURSOR.fullmatch(text)
        if parts is None:
            raise ValueError("not the id of an event")
        attempt, phase, *numbers = parts.groups()
        return cls(int(attempt), phase, *map(int, numbers))

    def __str__(self) -> str:
        return f"{self.attempt}{self.phase}-{self.step}-{self.stdout}-{self.stderr}"

    @property
    def finished(self) -> bool:
        """Whether there is nothing more to tell."""
        return self.phase == "f"

    @property
    def rank(self) -> tuple[int, int]:
        """Grows with every state that a job goes through."""
        return self.attempt, _ORDER.index(self.phase)


@dataclass
class Story:
    """Tells a job's story from a cursor on. What it is given may overlap with what it has been given."""

    cursor: Cursor = field(default_factory=Cursor)
    _held: dict[Stream, bytes] = field(default_factory=dict)
    """The beginning of a character, by stream: it waits for its end."""

    def progress(self, now: Progress) -> Iterator[Event]:
        """Tell where the job is, if that is news."""
        if self.cursor == Cursor():
            yield self._state(JobState.QUEUED, 0, now.created_at)
        if now.started_at is not None and now.attempt > self.cursor.attempt:
            yield self._state(JobState.RUNNING, now.attempt, now.started_at)
        if now.state in (JobState.QUEUED, JobState.CANCELLING):
            here = Cursor(now.attempt, _LETTERS[now.state])
            if here.rank > self.cursor.rank:
                yield self._state(now.state, now.attempt, datetime.now(UTC))

    def piece(self, piece: Piece) -> Iterator[Event]:
        """Tell what is new in a piece of output of the attempt that runs; other attempts' are void."""
        running = self.cursor.phase in ("r", "c") and piece.attempt == self.cursor.attempt
        if not running or piece.step < self.cursor.step:
            return
        if piece.step > self.cursor.step:
            yield from self._next_step(piece.step)
        yield from self._output(piece.stream, piece.offset, piece.data)

    def end(self, job: Job) -> Iterator[Event]:
        """Tell the rest of the story of a finished job, to its end."""
        assert job.result is not None and job.finished_at is not None
        yield from self.progress(Progress(job.state, job.attempt, job.created_at, job.started_at))
        if self.cursor.phase in ("r", "c") and job.attempt == self.cursor.attempt:
            yield from self._result(job.result)
        self.cursor = replace(self.cursor, attempt=job.attempt, phase="f")
        yield self._event(FinishedEvent(attempt=job.attempt, at=job.finished_at, outcome=job.result.outcome))

    def _result(self, result: JobResult) -> Iterator[Event]:
        for index, step in enumerate(result.steps):
            if index < self.cursor.step:
                continue
            if index > self.cursor.step:
                yield from self._next_step(index)
            for stream, output in ((Stream.STDOUT, step.stdout), (Stream.STDERR, step.stderr)):
                for offset, data in _kept(output):
                    yield from self._output(stream, offset, data)
        yield from self._release()

    def _next_step(self, step: int) -> Iterator[Event]:
        yield from self._release()
        self.cursor = replace(self.cursor, step=step, stdout=0, stderr=0)

    def _output(self, stream: Stream, offset: int, data: bytes) -> Iterator[Event]:
        """Tell what is new in these bytes; hold back the beginning of a character."""
        held = self._held.pop(stream, b"")
        told = self._told(stream) + len(held)
        if offset > told:
            yield from self._told_now(stream, held)
            missing = offset - told
            gap = GapEvent(
                attempt=self.cursor.attempt, step=self.cursor.step, stream=stream, offset=told, bytes=missing
            )
            self._advance(stream, missing)
            yield self._event(gap)
            held, told = b"", offset
        new = held + data[told - offset :]
        while new:
            part = new[:PIECE]
            whole = codecs.utf_8_decode(part, "replace", False)[1]
            if not whole:
                break
            yield from self._told_now(stream, part[:whole])
            new = new[whole:]
        if new:
            self._held[stream] = new

    def _release(self) -> Iterator[Event]:
        """Tell what was held back: the character will never be whole."""
        for stream in Stream:
            yield from self._told_now(stream, self._held.pop(stream, b""))

    def _told_now(self, stream: Stream, part: bytes) -> Iterator[Event]:
        if not part:
            return
        text = base64 = None
        try:
            text = part.decode()
        except UnicodeDecodeError:
            base64 = b64encode(part).decode()
        output = OutputEvent(
            attempt=self.cursor.attempt,
            step=self.cursor.step,
            stream=stream,
            offset=self._told(stream),
            bytes=len(part),
            text=text,
            base64=base64,
        )
        self._advance(stream, len(part))
        yield self._event(output)

    def _told(self, stream: Stream) -> int:
        return self.cursor.stdout if stream is Stream.STDOUT else self.cursor.stderr

    def _advance(self, stream: Stream, count: int) -> None:
        told = self._told(stream) + count
        if stream is Stream.STDOUT:
            self.cursor = replace(self.cursor, stdout=told)
        else:
            self.cursor = replace(self.cursor, stderr=told)

    def _state(
        self,
        state: Literal[JobState.QUEUED, JobState.RUNNING, JobState.CANCELLING],
        attempt: int,
        at: datetime,
    ) -> Event:
        letter = _LETTERS[state]
        if attempt == self.cursor.attempt:
            self.cursor = replace(self.cursor, phase=letter)
        else:
            self.cursor, self._held = Cursor(attempt, letter), {}
        return self._event(StateEvent(state=state, attempt=attempt, at=at))

    def _event(self, data: Data) -> Event:
        return Event(_NAMES[type(data)], str(self.cursor), data)


def _kept(output: Output) -> list[tuple[int, bytes]]:
    """What a result has of an output, with offsets; the last part reaches to the end of what was written."""
    data = output.data
    if output.omitted is None:
        return [(0, data)]
    at = output.omitted.at
    return [(0, data[:at]), (at + output.omitted.bytes, data[at:])]
