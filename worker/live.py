"""Live output of the attempts that one worker runs: gathered as it is read, published by a thread beside them.

What an attempt has to do for it is to append to a buffer: Redis, fast, slow or away, never holds up the
reading of a job's pipes. The buffers are bounded by the limit `output`. Nothing is published before it is
`INTERVAL` old; so a job that is over by then costs no round trip, its output comes with its result. While
Redis is away the buffers keep what they have, for as long as the attempt runs.
"""

import itertools
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import structlog
from redis.exceptions import RedisError

from jobs.job import Attempt
from jobs.job_event import Stream
from jobs.live import AFTERLIFE, PIECE, LiveOutput, Piece, Pieces
from jobs.outcome import StepResult

INTERVAL = 0.05
"""Seconds that output is gathered before it is published: at most 20 round trips a second for all jobs."""
MOST = 64
"""Pieces of one job in one round trip: a megabyte, which a Redis that answers at all takes within `PATIENCE`."""
PATIENCE = 1.0
"""Seconds to wait for an answer of Redis, and between two tries when there was none."""

log = structlog.get_logger(__name__)


@dataclass
class _Part:
    """Bytes of one stream that follow each other and are not published yet."""

    step: int
    stream: Stream
    offset: int
    data: bytearray = field(default_factory=bytearray)


class Broadcast:
    """The output of one attempt on its way to those who watch. Fed by the attempt, drained by `Live`."""

    def __init__(self, attempt: Attempt) -> None:
        steps = attempt.job.admission.steps
        self._job_id, self._number = attempt.job.id, attempt.number
        self._limits = [step.limits.output for step in steps]
        self._keep = sum(step.limits.wall_time for step in steps) + AFTERLIFE
        self._lock = threading.Lock()
        self._parts: dict[tuple[int, Stream, bool], _Part] = {}
        self._read: dict[tuple[int, Stream], int] = {}
        self._begun = False
        self.since: float | None = None
        """When the oldest byte came that is not published, by the monotonic clock; None without any."""

    def feed(self, step: int, stream: Stream, chunk: bytes) -> None:
        """Take what a step wrote next. What is over its limit is left out."""
        offset = self._read.get((step, stream), 0)
        self._read[step, stream] = offset + len(chunk)
        kept = chunk[: max(0, self._limits[step] - offset)]
        if kept:
            self._add(_Part(step, stream, offset), kept, last=False)

    def end_step(self, step: int, result: StepResult) -> None:
        """Take the last part of what a step wrote, where something before it was left out.

        For a step that another one follows; what the last step wrote last comes with the result.
        """
        for stream, output in ((Stream.STDOUT, result.stdout), (Stream.STDERR, result.stderr)):
            if output.omitted is not None:
                tail = output.data[output.omitted.at :]
                self._add(_Part(step, stream, output.bytes - len(tail)), tail, last=True)

    def _add(self, part: _Part, data: bytes, *, last: bool) -> None:
        with self._lock:
            self._parts.setdefault((part.step, part.stream, last), part).data.extend(data)
            if self.since is None:
                self.since = time.monotonic()

    def pending(self) -> Pieces:
        """What is to be published next: at most `MOST` pieces."""
        with self._lock:
            pieces = list(itertools.islice(self._pieces(), MOST))
        return Pieces(self._job_id, not self._begun and self._number > 1, self._keep, pieces)

    def _pieces(self) -> Iterator[Piece]:
        for part in self._parts.values():
            for at in range(0, len(part.data) or 1, PIECE):
                data = bytes(part.data[at : at + PIECE])
                yield Piece(self._number, part.step, part.stream, part.offset + at, data)

    def published(self, pieces: Pieces) -> None:
        """Forget what has been published."""
        with self._lock:
            self._begun = True
            for piece in pieces.pieces:
                self._forget(piece)
            self.since = time.monotonic() if self._parts else None

    def _forget(self, piece: Piece) -> None:
        for key, part in self._parts.items():
            if key[:2] == (piece.step, piece.stream) and part.offset == piece.offset:
                part.offset += len(piece.data)
                del part.data[: len(piece.data)]
                if not part.data:
                    del self._parts[key]
                return


class Live:
    """The broadcasts of all attempts of a worker, and once it is started the thread that publishes them."""

    def __init__(self) -> None:
        self._open: set[Broadcast] = set()
        self._lock = threading.Lock()
        self._wanted = threading.Event()
        self._end = threading.Event()
        self._away = False
        self._thread: threading.Thread | None = None

    def start(self, output: LiveOutput) -> None:
        """Start the thread. `output` shall answer, or fail, within about `PATIENCE`."""
        self._thread = threading.Thread(target=self._publish, args=(output,), name="live", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread, if it was started."""
        self._end.set()
        self._wanted.set()
        if self._thread is not None:
            self._thread.join(timeout=3 * PATIENCE)

    @contextmanager
    def of(self, attempt: Attempt) -> Iterator[Broadcast]:
        """The broadcast of an attempt while the block runs; what is not published then is left out."""
        broadcast = Broadcast(attempt)
        with self._lock:
            self._open.add(broadcast)
        self._wanted.set()
        try:
            yield broadcast
        finally:
            with self._lock:
                self._open.discard(broadcast)

    def _publish(self, output: LiveOutput) -> None:
        while not self._end.is_set():
            with self._lock:
                broadcasts = list(self._open)
                if not broadcasts:
                    self._wanted.clear()
            self._wanted.wait()
            self._end.wait(self._turn(output, broadcasts))

    def _turn(self, output: LiveOutput, broadcasts: list[Broadcast]) -> float:
        """Publish what is old enough; seconds until there may be more to publish."""
        now = time.monotonic()
        waiting = [(each.since, each) for each in broadcasts if each.since is not None]
        due = [broadcast for since, broadcast in waiting if since <= now - INTERVAL]
        if due:
            return INTERVAL if self._sent(output, due) else PATIENCE
        return min((since + INTERVAL - now for since, _ in waiting), default=INTERVAL)

    def _sent(self, output: LiveOutput, due: list[Broadcast]) -> bool:
        pending = [(broadcast, broadcast.pending()) for broadcast in due]
        try:
            output.publish([pieces for _, pieces in pending])
        except (RedisError, OSError) as error:
            if not self._away:
                log.warning("live_output_delayed", error=str(error))
            self._away = True
            return False
        except Exception:
            log.exception("live_output_failed")  # the thread goes on: other jobs are watched too
            return False
        self._away = False
        for broadcast, pieces in pending:
            broadcast.published(pieces)
        return True
