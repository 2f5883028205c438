"""Webhooks' dispatcher: from events to deliveries, from deliveries to requests. One runs in every API process.

Two loops, which may die at any moment and lose nothing. `_tell` takes projects' news in turn, makes a delivery for
each webhook that wants the event, and only then forgets it. `_send_due` claims deliveries and sends them. Either has
what it took for the length of a lease: what a dead process had taken is taken again by another. So a message may be
sent twice, under one id, and none is lost as long as Redis keeps its data.

Nobody waits for another's many events, since each project has its own news (`jobs.news`), nor for another's slow
endpoint: webhooks take turns, one that failed or was slow has one request at a time, any other `AT_ONCE`, and each
process has `SENDING` for all of them.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from time import monotonic
from typing import Any

import structlog
from anyio import CapacityLimiter, to_thread
from redis import Redis
from redis.exceptions import RedisError

from api.announcements import Announcements
from api.egress import Egress, EgressError
from jobs import events, messages
from jobs.deliveries import Claim, Deliveries, Message, Try, delivery_id
from jobs.events import Event
from jobs.metrics import metrics
from jobs.news import CHANNEL, LEASE, Batch, News
from jobs.webhooks import Webhooks, WebhookState, Wish

LOOK = 2.0  # seconds between two looks for news of which no announcement came
SENDING = 128  # requests at a time
AT_ONCE = 4  # of these to one webhook
SLOW = 2.0  # seconds; a webhook that takes longer has one request at a time
IDLE = 1.0  # seconds between two looks for what is due
PAUSE = 1.0  # seconds before another look when Redis is not there
THREADS = 4  # calls of Redis at a time
RESPONSE_SHOWN = "replace"  # what becomes of bytes that are not UTF-8

log = structlog.get_logger(__name__)


class Dispatcher:
    """Tells webhooks what happened to jobs, as long as it is `dispatching`. Belongs to one event loop."""

    def __init__(
        self,
        address: str,
        redis: Redis,
        deliveries: Deliveries,
        egress: Egress,
        *,
        lease: float = LEASE,
    ) -> None:
        """`address`: a URL as redis-py takes it; `redis`: a client of the same, safe for threads.

        `lease`: seconds that a process has for making the deliveries of news that it has taken.
        """
        self._announcements = Announcements(
            address, (CHANNEL,), lambda *_: self._arrived.set(), lambda: self._arrived.set()
        )
        self._news = News(redis, lease=lease)
        self._redis = redis
        self._webhooks = Webhooks(redis)
        self._deliveries = deliveries
        self._egress = egress
        self._threads = CapacityLimiter(THREADS)
        self._sending: dict[asyncio.Task[None], str] = {}
        self._strained: set[str] = set()
        self._arrived = asyncio.Event()
        self._due = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None

    @asynccontextmanager
    async def dispatching(self) -> AsyncIterator[None]:
        """Tell webhooks as long as the block runs, whatever becomes of Redis."""
        self._loop = asyncio.get_running_loop()
        tasks = {asyncio.create_task(self._forever(loop)) for loop in (self._tell, self._send_due)}
        try:
            async with self._announcements.listening():
                yield
        finally:
            await _cancelled(tasks)
            await _cancelled(set(self._sending))
            await self._egress.close()

    def wake(self) -> None:
        """Look for what is due now. Safe from any thread."""
        if self._loop is not None:
            with suppress(RuntimeError):  # the loop has ended
                self._loop.call_soon_threadsafe(self._due.set)

    async def _forever(self, loop: Callable[[], Awaitable[None]]) -> None:
        failing = False
        while True:
            try:
                await loop()
            except (RedisError, OSError) as error:
                if not failing:
                    log.warning("webhooks_wait_for_redis", error=type(error).__name__, reason=str(error))
                failing = True
            except Exception:
                log.exception("webhooks_failed")
            else:
                failing = False
                continue
            await asyncio.sleep(PAUSE)

    async def _tell(self) -> None:
        """Tell one project's news, or wait for some."""
        self._arrived.clear()
        wait = await self._off_loop(self._tell_batch)
        if wait == 0.0:
            self._due.set()
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(LOOK if wait is None else min(wait, LOOK)):
                await self._arrived.wait()

    def _tell_batch(self) -> float | None:
        """Make the deliveries of the news whose turn it is; only then are they forgotten.

        Returns the seconds until the next look: 0 when there were some, None when nobody has any.
        """
        batch = self._news.take()
        if not isinstance(batch, Batch):
            return batch
        found = []
        for entry_id, fields in batch.entries:
            try:
                found.append(events.read(entry_id, fields))
            except ValueError as error:
                log.error("event_not_understood", entry=entry_id.decode(), reason=str(error))
        wishes = self._webhooks.wishes(batch.project)
        self._deliver_all(found, wishes)
        for kind in batch.missed:
            self._news.missed(batch, kind, [wish.id for wish in wishes if kind in wish.events])
        self._news.told(batch)
        return 0.0

    def _deliver_all(self, found: Sequence[Event], wishes: Sequence[Wish]) -> None:
        """As `_deliver`; an event that cannot be told for a reason of ours does not take others with it."""
        try:
            self._deliver(found, wishes)
        except RedisError:
            raise
        except Exception:
            if len(found) == 1:
                log.exception("event_not_told", entry=found[0].id)
                return
            for event in found:
                self._deliver_all([event], wishes)

    def _deliver(self, found: Sequence[Event], wishes: Sequence[Wish]) -> None:
        """Make a delivery of each event for each webhook that wants it."""
        wanted = [
            (event, wish)
            for event in found
            for wish in wishes
            if event.type in wish.events and event.at >= wish.created_at
        ]
        told = list({event.id: event for event, _ in wanted}.values())
        bodies = {
            event.id: body for event, body in zip(told, messages.bodies(self._redis, told), strict=True)
        }
        self._deliveries.create_all(
            Message(wish.id, delivery_id(wish.id, event.id), event.type, event.job, bodies[event.id])
            for event, wish in wanted
        )

    async def _send_due(self) -> None:
        """Claim what is due and send it, as much at a time as may be."""
        while True:
            self._due.clear()
            room = SENDING - len(self._sending)
            claims: Sequence[Claim] = ()
            wait = None
            if room:
                claims, wait = await self._off_loop(self._deliveries.claim, room, self._busy())
            for claim in claims:
                self._start(claim)
            if not claims:
                with suppress(TimeoutError):
                    async with asyncio.timeout(IDLE if wait is None else min(wait, IDLE)):
                        await self._due.wait()

    def _busy(self) -> list[str]:
        """The webhooks that have as many requests as they may."""
        counts = Counter(self._sending.values())
        return [each for each, count in counts.items() if count >= (1 if each in self._strained else AT_ONCE)]

    def _start(self, claim: Claim) -> None:
        if claim.failing:
            self._strained.add(claim.webhook)
        task = asyncio.create_task(self._send(claim))
        self._sending[task] = claim.webhook
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._sending.pop(task)
        self._due.set()

    async def _send(self, claim: Claim) -> None:
        """Send one delivery and write down what came of it. Should this be cut off, its lease ends."""
        try:
            done = await self._request(claim)
            result = "delivered" if done.succeeded else "failed" if done.status is None else "refused"
            metrics.count("webhook_deliveries_total", result=result)
            strained = not done.succeeded or done.milliseconds > SLOW * 1000
            (self._strained.add if strained else self._strained.discard)(claim.webhook)
            state = await self._off_loop(self._deliveries.settle, claim, done)
            if state == WebhookState.PAUSED:
                log.warning("webhook_paused", webhook=claim.webhook)
        except (RedisError, OSError) as error:
            log.warning("delivery_not_settled", delivery=claim.delivery, error=type(error).__name__)
        except Exception:
            log.exception("delivery_failed", delivery=claim.delivery)

    async def _request(self, claim: Claim) -> Try:
        at, began = datetime.now(UTC), monotonic()
        headers = messages.headers(claim.delivery, at, claim.body, claim.secrets)
        status, body, error = None, b"", None
        try:
            answer = await self._egress.post(claim.url, headers, claim.body)
            status, body = answer.status, answer.body
        except EgressError as refused:
            error = str(refused)
        took = int((monotonic() - began) * 1000)
        shown = body.decode(errors=RESPONSE_SHOWN)
        return Try(at=at, milliseconds=took, status=status, error=error, response=shown)

    async def _off_loop(self, call: Any, *args: Any) -> Any:
        return await to_thread.run_sync(call, *args, limiter=self._threads)


async def _cancelled(tasks: set[asyncio.Task[None]]) -> None:
    """Cancel these and wait for their end; again, since wait_for may lose a cancellation (gh-86296)."""
    while pending := {task for task in tasks if not task.done()}:
        for task in pending:
            task.cancel()
        await asyncio.wait(pending, timeout=0.05)
