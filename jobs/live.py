"""Live output: what a running job writes, in Redis while it is new, so that the API can pass it on.

`stockade:live:ID` is a stream, and the name of a channel on which it is announced that it has grown. An entry
is a piece of one stream of output:

    attempt   number of the attempt that wrote it
    step      index of the step, from 0
    stream    stdout or stderr
    offset    where the piece begins, in bytes from the start of that stream
    data      the bytes, at most `PIECE`; none says only that the stream has come as far as `offset`

Entries of an attempt are in order: all of a step before those of the next, and within one stream by offset.
Bytes between two pieces were not kept. A piece may come twice, where the writer did not learn that it had
been stored; offsets tell. A new attempt empties the stream.

The stream is a convenience: the result has the output too. It is bounded by what the limit `output` keeps,
expires some minutes after the job's end, and nobody fails because it is not there.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple

from redis import Redis

from jobs.clock import instant
from jobs.job import JobState
from jobs.job_event import Stream
from jobs.store import job_key

PIECE = 16 * 1024
"""Bytes of output in one entry at the most."""
READ_MOST = 64
"""Entries that are read at once: a megabyte."""
AFTERLIFE = 600.0
"""Seconds that the stream outlives a job that used all of its time; so much later a reader may come back."""
FIRST = b"0-0"
"""The position before every entry."""

_PROGRESS = ("tenant", "state", "attempt", "created", "started")


class Piece(NamedTuple):
    """A part of what one step wrote to one stream."""

    attempt: int
    step: int
    stream: Stream
    offset: int
    data: bytes


class Pieces(NamedTuple):
    """New pieces of one attempt of one job."""

    job_id: str
    begins: bool
    """Whether they are the first of their attempt: what an attempt before has written is void then."""
    keep: float
    """Seconds to keep the stream, if nothing more comes."""
    pieces: Sequence[Piece]


class Progress(NamedTuple):
    """Where a job is, without all that was asked and found."""

    state: JobState
    attempt: int
    created_at: datetime
    started_at: datetime | None


class Glance(NamedTuple):
    """A job at one moment, and what came into its stream since another."""

    progress: Progress
    pieces: list[Piece]
    position: bytes
    """The last entry that was read; to be given to the next look."""
    more: bool
    """Whether there are more entries than were read."""


def live_key(job_id: str) -> str:
    """The name of a job's stream and of its channel."""
    return f"stockade:live:{job_id}"


class LiveOutput:
    """The streams, to write and to read. Raises redis.RedisError when Redis is not there."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    def publish(self, news: Sequence[Pieces]) -> None:
        """Append the pieces of any number of jobs, in one round trip. After a failure it may be repeated."""
        with self._redis.pipeline(transaction=False) as pipe:
            for job_id, begins, keep, pieces in news:
                key = live_key(job_id)
                if begins:
                    pipe.xtrim(key, maxlen=0, approximate=False)  # not DEL: positions must go on growing
                for piece in pieces:
                    pipe.xadd(key, piece._asdict())  # type: ignore[arg-type]
                pipe.pexpire(key, int(keep * 1000))
                pipe.publish(key, b"")
            pipe.execute()

    def look(self, job_id: str, tenant: str, position: bytes = FIRST) -> Glance | None:
        """The tenant's job and what is new after a position; None when the tenant has no such job.

        Both are of the same moment: a piece of an attempt never comes before the word that it has begun.
        """
        with self._redis.pipeline(transaction=True) as pipe:
            pipe.hmget(job_key(job_id), _PROGRESS)
            pipe.xrange(live_key(job_id), min=b"(" + position, count=READ_MOST)
            values, entries = pipe.execute()
        found = dict(zip(_PROGRESS, values, strict=True))
        if found["tenant"] != tenant.encode():
            return None
        pieces = [_piece(fields) for _, fields in entries]
        last = entries[-1][0] if entries else position
        return Glance(_progress(found), pieces, last, len(entries) == READ_MOST)


def _piece(fields: dict[bytes, bytes]) -> Piece:
    return Piece(
        attempt=int(fields[b"attempt"]),
        step=int(fields[b"step"]),
        stream=Stream(fields[b"stream"].decode()),
        offset=int(fields[b"offset"]),
        data=fields[b"data"],
    )


def _progress(found: dict[str, Any]) -> Progress:
    started = found["started"]
    return Progress(
        state=JobState(found["state"].decode()),
        attempt=int(found["attempt"]),
        created_at=instant(found["created"]),
        started_at=instant(started) if started else None,
    )
