"""Long polls: one subscription to the store's announcements wakes every request that waits for a job.

The worker announces each finished job on the channel `stockade:finished`. Announcements are a hint: they
can be lost while Redis restarts. So a waiter looks into the store again when it is woken, when the
subscription comes back after a loss, and every `RECHECK` seconds without either.

What happens between a request's look into the store and its wait is not lost either: announcements are
numbered, `FinishedJobs.mark` gives the number of now, and a wait that brings an older number than the
job's announcement ends at once.
"""

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

from anyio import CapacityLimiter
from redis.exceptions import RedisError

from api.announcements import Announcements
from api.places import Places
from api.problems import TOO_MANY_WAITS
from jobs.job_view import JobView
from jobs.store import FINISHED_CHANNEL

RECHECK = 5.0  # seconds between two looks into the store without news
MOST, MOST_EACH = 1000, 100  # requests of one process, and in it of one project, that may wait
LOOKERS = 8  # looks into the store at a time, so that those who wait leave threads to other requests
REMEMBERED = 4096  # announcements kept for requests that have not begun to wait yet


class FinishedJobs:
    """Which jobs have just finished. Belongs to the event loop in which it is `listening`."""

    def __init__(self, address: str, *, recheck: float = RECHECK) -> None:
        """`address`: a URL as redis-py takes it."""
        self._announcements = Announcements(address, (FINISHED_CHANNEL,), self._announce, self._resume)
        self._recheck = recheck
        self._number = 0  # of the latest announcement
        self._resumed = 0  # the number when the subscription last began: before it, anything may be missing
        self._recent: OrderedDict[str, int] = OrderedDict()
        self._waiters: dict[str, set[asyncio.Future[None]]] = {}
        self._looks: dict[str, tuple[int, asyncio.Future[JobView | None]]] = {}
        self.places = Places("requests that wait for a job", "waits", TOO_MANY_WAITS, MOST, MOST_EACH)
        self.lookers = CapacityLimiter(LOOKERS)
        self._closed = False

    @property
    def subscribed(self) -> bool:
        """Whether announcements come in."""
        return self._announcements.subscribed

    def mark(self) -> int:
        """The number of the latest announcement; take it before looking into the store."""
        return self._number

    def close(self) -> None:
        """End every wait, now and from now on: the service is about to stop."""
        self._closed = True
        self._wake_all()

    async def until_finished(
        self,
        job: JobView,
        seconds: float,
        since: int,
        look: Callable[[], Awaitable[JobView | None]],
        gone: Callable[[], Awaitable[bool]],
    ) -> JobView | None:
        """The job once it has finished, or as it is after `seconds`; None when it has been deleted.

        Redis may go away and come back meanwhile; the latest state seen is returned when it does not.

        Args:
            job: the job as it was found in the store,
            seconds: how long to wait at most,
            since: what `mark` gave before that,
            look: finds the job in the store again,
            gone: whether nobody waits for the answer any more.
        """
        clock = asyncio.get_running_loop().time
        deadline = clock() + seconds
        latest: JobView | None = job
        while latest is not None and not latest.finished and not self._closed:
            left = deadline - clock()
            if left <= 0 or (left < seconds and await gone()):
                break
            await self._news_of(job.id, min(left, self._recheck), since)
            since = self.mark()
            with suppress(RedisError):
                latest = await self._seen(job.id, look)
        return latest

    async def _seen(self, job_id: str, look: Callable[[], Awaitable[JobView | None]]) -> JobView | None:
        """What `look` finds. All who were woken by the same news share one look, which began after that news."""
        begun, shared = self._looks.get(job_id, (-1, None))
        if shared is not None and begun == self._number:
            return await asyncio.shield(shared)
        mine = (self._number, asyncio.ensure_future(look()))
        self._looks[job_id] = mine
        try:
            return await asyncio.shield(mine[1])
        finally:
            if self._looks.get(job_id) is mine:
                del self._looks[job_id]

    async def _news_of(self, job_id: str, seconds: float, since: int) -> None:
        """Return when there may be news of the job since that mark, at the latest after `seconds`."""
        if self._closed or self._resumed > since or self._recent.get(job_id, 0) > since:
            return
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiters = self._waiters.setdefault(job_id, set())
        waiters.add(waiter)
        try:
            async with asyncio.timeout(seconds):
                await waiter
        except TimeoutError:
            pass
        finally:
            waiters.discard(waiter)
            if not waiters and self._waiters.get(job_id) is waiters:
                del self._waiters[job_id]

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        """Keep the subscription as long as the block runs, whatever becomes of Redis; then end every wait."""
        async with self._announcements.listening():
            try:
                yield
            finally:
                self.close()

    def _resume(self) -> None:
        self._number += 1
        self._resumed = self._number
        self._wake_all()

    def _announce(self, _: str, data: bytes) -> None:
        job_id = data.decode("ascii", "replace")
        self._number += 1
        self._recent[job_id] = self._number
        self._recent.move_to_end(job_id)
        if len(self._recent) > REMEMBERED:
            self._recent.popitem(last=False)
        _wake(self._waiters.pop(job_id, set()))

    def _wake_all(self) -> None:
        everyone, self._waiters = self._waiters, {}
        for waiters in everyone.values():
            _wake(waiters)


def _wake(waiters: set[asyncio.Future[None]]) -> None:
    for waiter in waiters:
        if not waiter.done():
            waiter.set_result(None)
