"""Live output in Redis: what is published is read back in order, bounded in time, and only by its owner."""

import pytest
from redis import Redis

from jobs.job import JobState
from jobs.job_event import Stream
from jobs.live import PIECE, READ_MOST, Glance, LiveOutput, Piece, Pieces, live_key
from jobs.store import Store
from tests.jobs.conftest import TENANT, Submit


@pytest.fixture
def live(redis: Redis) -> LiveOutput:
    """Live output in an empty server."""
    return LiveOutput(redis)


def piece(offset: int, data: bytes, attempt: int = 1) -> Piece:
    """A piece of the first step's standard output."""
    return Piece(attempt, 0, Stream.STDOUT, offset, data)


def look(live: LiveOutput, job_id: str, position: bytes = b"0-0") -> Glance:
    """What its owner sees of a job that is there."""
    glance = live.look(job_id, TENANT, position)
    assert glance is not None
    return glance


def test_pieces_come_back_as_they_were_published(live: LiveOutput, store: Store, submit: Submit) -> None:
    """Bytes, offsets and order; and a later look has only what is new."""
    job = submit()
    assert store.claim(job.id, 1, "w") is not None
    first = [piece(0, b"\0\xff\r\n"), Piece(1, 0, Stream.STDERR, 0, b"e"), Piece(1, 2, Stream.STDOUT, 9, b"")]
    live.publish([Pieces(job.id, False, 60, first)])
    glance = look(live, job.id)
    assert glance.pieces == first
    assert (glance.progress.state, glance.progress.attempt) == (JobState.RUNNING, 1)
    assert glance.progress.started_at is not None
    live.publish([Pieces(job.id, False, 60, [piece(4, b"more")])])
    later = look(live, job.id, glance.position)
    assert later.pieces == [piece(4, b"more")]
    assert look(live, job.id, later.position).pieces == []
    assert look(live, job.id, later.position).position == later.position


def test_a_long_stream_is_read_in_parts(live: LiveOutput, submit: Submit) -> None:
    """One look brings a bounded number of pieces and says that there are more."""
    job = submit()
    pieces = [piece(n, b"x") for n in range(READ_MOST + 3)]
    live.publish([Pieces(job.id, False, 60, pieces)])
    first = look(live, job.id)
    second = look(live, job.id, first.position)
    assert (first.more, second.more) == (True, False)
    assert first.pieces + second.pieces == pieces
    assert READ_MOST * PIECE <= 1 << 20


def test_a_job_of_somebody_else_is_not_there(live: LiveOutput, submit: Submit) -> None:
    """Another tenant's job, and one that does not exist, look the same."""
    job = submit()
    live.publish([Pieces(job.id, False, 60, [piece(0, b"secret")])])
    assert live.look(job.id, "tenant_b") is None
    assert live.look("job_none", TENANT) is None


def test_a_new_attempt_empties_the_stream(live: LiveOutput, submit: Submit) -> None:
    """What a failed attempt wrote goes, and a reader's position stays good."""
    job = submit()
    live.publish([Pieces(job.id, False, 60, [piece(0, b"old")])])
    seen = look(live, job.id)
    live.publish([Pieces(job.id, True, 60, [piece(0, b"new", attempt=2)])])
    assert look(live, job.id, seen.position).pieces == [piece(0, b"new", attempt=2)]
    assert look(live, job.id).pieces == [piece(0, b"new", attempt=2)]


def test_the_stream_expires_by_itself(live: LiveOutput, redis: Redis, submit: Submit) -> None:
    """Whatever becomes of worker and job, it does not stay."""
    job = submit()
    live.publish([Pieces(job.id, False, 60, [piece(0, b"x")])])
    assert 0 < redis.pttl(live_key(job.id)) <= 60_000


def test_growing_is_announced(live: LiveOutput, redis: Redis, submit: Submit) -> None:
    """Who watches a job is woken by its own channel."""
    job = submit()
    with redis.pubsub(ignore_subscribe_messages=True) as channel:
        channel.subscribe(live_key(job.id))
        assert channel.get_message(timeout=5) is None  # the answer to SUBSCRIBE
        live.publish([Pieces(job.id, False, 60, [piece(0, b"x")])])
        message = channel.get_message(timeout=5)
        assert message is not None and message["channel"].decode() == live_key(job.id)
