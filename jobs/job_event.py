"""Events of one job, as its owner hears them: server-sent events, each a name and data (docs/live-output.md)."""

from binascii import a2b_base64
from enum import StrEnum
from typing import Literal, NamedTuple

from pydantic import AwareDatetime, Field

from jobs.job import JobState
from jobs.outcome import Bytes, Outcome
from policies.model import Frozen


class Stream(StrEnum):
    """The two streams of output."""

    STDOUT = "stdout"
    STDERR = "stderr"


class StateEvent(Frozen):
    """The job has come into a state. `running` begins an attempt: its output begins again at offset 0."""

    state: Literal[JobState.QUEUED, JobState.RUNNING, JobState.CANCELLING] = Field(
        description="The state, one that is not the last."
    )
    attempt: int = Field(description="How often the job's execution was begun.")
    at: AwareDatetime = Field(description="When it came into it, or was seen in it.")


class OutputEvent(Frozen):
    """A part of what a step wrote: exactly one of `text` and `base64` is set."""

    attempt: int = Field(description="Which attempt, from 1.")
    step: int = Field(description="Which step: its index, from 0.")
    stream: Stream = Field(description="Which of its streams.")
    offset: int = Field(description="Where the part begins, in bytes from the start of the stream.")
    bytes: int = Field(description="How many bytes it has.")
    text: str | None = Field(description="The part, if it is valid UTF-8; else null.")
    base64: str | None = Field(
        description="The part as base64, if it is not; else null.",
        json_schema_extra={"contentEncoding": "base64"},
    )

    @property
    def data(self) -> Bytes:
        """The part itself."""
        return a2b_base64(self.base64) if self.base64 is not None else (self.text or "").encode()


class GapEvent(Frozen):
    """A part of what a step wrote that was not kept."""

    attempt: int = Field(description="Which attempt, from 1.")
    step: int = Field(description="Which step: its index, from 0.")
    stream: Stream = Field(description="Which of its streams.")
    offset: int = Field(description="Where the gap begins, in bytes from the start of the stream.")
    bytes: int = Field(description="How many bytes are missing.")


class FinishedEvent(Frozen):
    """The job is finished, and this is the last event. The job itself has all the rest."""

    state: Literal[JobState.FINISHED] = Field(default=JobState.FINISHED, description="Always `finished`.")
    attempt: int = Field(description="How often the job's execution was begun.")
    at: AwareDatetime = Field(description="When it was finished.")
    outcome: Outcome = Field(description="Why it ended: the outcome of the last step that ran.")


Data = StateEvent | OutputEvent | GapEvent | FinishedEvent
EVENTS: dict[str, type[Data]] = {
    "state": StateEvent,
    "output": OutputEvent,
    "gap": GapEvent,
    "finished": FinishedEvent,
}
"""The events by name, with the form of their data."""


class Event(NamedTuple):
    """One event: its name, its id, and its data."""

    name: str
    id: str
    data: Data
