"""Webhooks' dispatcher: from events to deliveries, from deliveries to requests. One runs in every API process.

Two loops, which may die at any moment and lose nothing. `_take_events` reads the stream of events as a member of
the consumer group `webhooks`, makes a delivery for each webhook that wants the event, and acknowledges; what a dead
member had read is read again by another. `_send_due` claims deliveries for the length of a lease and sends them;
what a dead sender had claimed is claimed again by another. So a message may be sent twice, under one id, and none is
lost as long as Redis keeps its data.

Nobody waits for another's slow endpoint: webhooks take turns, one that failed or was slow has one request at a time,
any other `AT_ONCE`, and each process has `SENDING` for all of them.
"""

import asyncio
import secrets
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from time import monotonic
from typing import Any

import structlog
from anyio import CapacityLimiter, to_thread
from redis import Redis
from redis.asyncio import Redis as AsyncRedis
from redis.exceptions import RedisError, ResponseError

from api.egress import Egress, EgressError
from jobs import events, messages
from jobs.deliveries import Claim, Deliveries, Try, delivery_id
from jobs.events import STREAM, Event
from jobs.metrics import metrics
from jobs.webhooks import Webhooks, WebhookState

GROUP = "webhooks"
BATCH = 100  # events read at a time
BLOCK = 2.0  # seconds that a read waits for events
SILENCE = 5.0  # seconds beyond it after which Redis counts as gone
ABANDONED = 30.0  # seconds after which an event that was read and not acknowledged is another's
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
        abandoned: float = ABANDONED,
    ) -> None:
        """`address`: a URL as redis-py takes it; `redis`: a client of the same, safe for threads."""
        self._address = address
        self._redis = redis
        self._webhooks = Webhooks(redis)
        self._deliveries = deliveries
        self._egress = egress
        self._abandoned = abandoned
        self._name = "api-" + secrets.token_hex(6)
        self._threads = CapacityLimiter(THREADS)
        self._sending: dict[asyncio.Task[None], str] = {}
        self._strained: set[str] = set()
        self._news = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None

    @asynccontextmanager
    async def dispatching(self) -> AsyncIterator[None]:
        """Tell webhooks as long as the block runs, whatever becomes of Redis."""
        self._loop = asyncio.get_running_loop()
        tasks = {asyncio.create_task(self._forever(loop)) for loop in (self._take_events, self._send_due)}
        try:
            yield
        finally:
            await _cancelled(tasks)
            await _cancelled(set(self._sending))
            await self._egress.close()

    def wake(self) -> None:
        """Look for what is due now. Safe from any thread."""
        if self._loop is not None:
            with suppress(RuntimeError):  # the loop has ended
                self._loop.call_soon_threadsafe(self._news.set)

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

    async def _take_events(self) -> None:
        """Read events and make their deliveries; return when there is no stream, since Redis was emptied."""
        client = AsyncRedis.from_url(
            self._address, protocol=2, socket_connect_timeout=5, socket_timeout=BLOCK + SILENCE
        )
        async with client as redis:
            if not await redis.exists(STREAM):  # nothing has happened yet; an idle dispatcher writes nothing
                await asyncio.sleep(IDLE)
                return
            try:
                await redis.xgroup_create(STREAM, GROUP, id="0")
            except ResponseError as error:
                if not str(error).startswith("BUSYGROUP"):
                    raise
            try:
                await self._follow(redis)
            except ResponseError as error:
                if not str(error).startswith(("NOGROUP", "UNBLOCKED")):
                    raise
            finally:
                await self._leave(redis)

    async def _follow(self, redis: AsyncRedis) -> None:
        looked = -self._abandoned
        while True:
            if monotonic() - looked >= self._abandoned:
                looked = monotonic()
                idle = int(self._abandoned * 1000)
                claimed: Any = await redis.xautoclaim(STREAM, GROUP, self._name, idle, count=BATCH)
                await self._tell(redis, [each for each in claimed[1] if each[0] is not None])
            read: Any = await redis.xreadgroup(GROUP, self._name, {STREAM: ">"}, BATCH, int(BLOCK * 1000))
            for _, entries in read or ():
                await self._tell(redis, entries)

    async def _leave(self, redis: AsyncRedis) -> None:
        """Leave the group, unless something that this member read is still to be done."""
        with suppress(RedisError, OSError):
            found = await redis.xpending_range(STREAM, GROUP, "-", "+", 1, self._name)
            if not found:
                await redis.xgroup_delconsumer(STREAM, GROUP, self._name)

    async def _tell(self, redis: AsyncRedis, entries: Sequence[tuple[bytes, dict[bytes, bytes]]]) -> None:
        """Make the deliveries of these events; only then are they acknowledged."""
        found = []
        for entry_id, fields in entries:
            try:
                found.append(events.read(entry_id, fields))
            except ValueError as error:
                log.error("event_not_understood", entry=entry_id.decode(), reason=str(error))
        if found and await self._off_loop(self._deliver_all, found):
            self._news.set()
        if entries:
            await redis.xack(STREAM, GROUP, *(entry_id for entry_id, _ in entries))

    def _deliver_all(self, found: Sequence[Event]) -> int:
        """As `_deliver`; an event that cannot be told for a reason of ours does not take others with it."""
        try:
            return self._deliver(found)
        except RedisError:
            raise
        except Exception:
            if len(found) > 1:
                return sum(self._deliver_all([event]) for event in found)
            log.exception("event_not_told", entry=found[0].id)
            return 0

    def _deliver(self, found: Sequence[Event]) -> int:
        """Make a delivery of each event for each webhook that wants it; how many there are."""
        wishes = self._webhooks.told_of(event.tenant for event in found)
        wanted = [
            (event, wish)
            for event in found
            for wish in wishes.get(event.tenant, ())
            if event.type in wish.events and event.at >= wish.created_at
        ]
        bodies = messages.bodies(self._redis, [event for event, _ in wanted])
        for (event, wish), body in zip(wanted, bodies, strict=True):
            name = delivery_id(wish.id, event.id)
            self._deliveries.create(wish.id, name, event.type, event.job, body)
        return len(wanted)

    async def _send_due(self) -> None:
        """Claim what is due and send it, as much at a time as may be."""
        while True:
            self._news.clear()
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
                        await self._news.wait()

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
        self._news.set()

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
