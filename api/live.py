"""Who watches which jobs: woken by announcements, bounded in number, let go when the service stops.

All watchers of a process share one subscription to Redis. It only wakes them: each then looks for itself, and
looks again every `RECHECK` seconds without having been woken, so that a lost announcement costs no more than that.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from anyio import CapacityLimiter

from api.announcements import Announcements
from api.places import Places
from api.problems import TOO_MANY_STREAMS
from jobs.live import live_key
from jobs.store import CANCEL_CHANNEL, FINISHED_CHANNEL

RECHECK = 1.0  # seconds between two looks at a job without news
KEEP_ALIVE = 15.0  # seconds of silence after which something is sent: proxies cut what is silent for longer
LASTS = 900.0  # seconds after which a stream is ended, to be resumed: a key that was revoked has no more
MOST, MOST_EACH = 500, 50  # streams that one process, and in it one project, may have open
LOOKERS = 8  # looks into Redis at a time, so that streams leave threads to other requests

_LIVE = live_key("")


class LiveJobs:
    """The watchers of jobs. Belongs to the event loop in which it is `listening`."""

    def __init__(
        self,
        address: str,
        *,
        recheck: float = RECHECK,
        keep_alive: float = KEEP_ALIVE,
        lasts: float = LASTS,
    ) -> None:
        """`address`: a URL as redis-py takes it."""
        self.recheck, self.keep_alive, self.lasts = recheck, keep_alive, lasts
        self.places = Places("streams of events", "streams", TOO_MANY_STREAMS, MOST, MOST_EACH)
        self.lookers = CapacityLimiter(LOOKERS)
        self.closed = False
        self._watchers: dict[str, set[asyncio.Event]] = {}
        channels = (FINISHED_CHANNEL, CANCEL_CHANNEL)
        self._announcements = Announcements(address, channels, self._hear, self._wake_all)

    @asynccontextmanager
    async def watch(self, job_id: str) -> AsyncIterator[asyncio.Event]:
        """What is set whenever there may be news of the job, while the block runs."""
        news = asyncio.Event()
        watchers = self._watchers.setdefault(job_id, set())
        watchers.add(news)
        try:
            if len(watchers) == 1:
                await self._announcements.add(live_key(job_id))
            yield news
        finally:
            watchers.discard(news)
            if not watchers and self._watchers.get(job_id) is watchers:
                del self._watchers[job_id]
                await self._announcements.remove(live_key(job_id))

    async def wait(self, news: asyncio.Event, seconds: float) -> None:
        """Return when there may be news, at the latest after `seconds`; at once when the service stops."""
        if self.closed:
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await news.wait()

    def close(self) -> None:
        """End every stream, now and from now on: the service is about to stop."""
        self.closed = True
        self._wake_all()

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        """Keep the subscription as long as the block runs, whatever becomes of Redis; then end every stream."""
        async with self._announcements.listening():
            try:
                yield
            finally:
                self.close()

    def _hear(self, channel: str, data: bytes) -> None:
        named = channel.startswith(_LIVE)
        job_id = channel.removeprefix(_LIVE) if named else data.decode("ascii", "replace")
        for news in self._watchers.get(job_id, ()):
            news.set()

    def _wake_all(self) -> None:
        for watchers in self._watchers.values():
            for news in watchers:
                news.set()
