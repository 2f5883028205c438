"""Announcements: one subscription to channels of Redis, kept up whatever becomes of Redis.

Announcements are hints: while Redis is away they are lost. Who listens is told when the subscription has
begun, again or for the first time, because anything may have been missed before.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager, suppress

import structlog
from redis.asyncio import Redis
from redis.asyncio.client import PubSub
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

RECONNECT_FIRST, RECONNECT_MOST = 0.05, 1.0  # seconds between attempts to subscribe; doubles
SILENCE = 15.0  # seconds without a message after which the connection is tried with a PING

log = structlog.get_logger(__name__)


class Announcements:
    """One subscription. Belongs to the event loop in which it is `listening`."""

    def __init__(
        self,
        address: str,
        channels: Iterable[str],
        hear: Callable[[str, bytes], None],
        resumed: Callable[[], None],
    ) -> None:
        """`address`: a URL as redis-py takes it.

        `hear` is called with each message's channel and data; `resumed` when the subscription begins.
        """
        self._address = address
        self._channels = dict.fromkeys(channels)
        self._hear = hear
        self._resumed = resumed
        self._subscription: PubSub | None = None
        self.subscribed = False

    async def add(self, channel: str) -> None:
        """Hear of this channel too: from now on, or from when Redis is there."""
        self._channels[channel] = None
        if self._subscription is not None:
            with suppress(RedisError, OSError):  # the listening task meets the same error
                await self._subscription.subscribe(channel)

    async def remove(self, channel: str) -> None:
        """Hear of this channel no more."""
        self._channels.pop(channel, None)
        if self._subscription is not None:
            with suppress(RedisError, OSError):
                await self._subscription.unsubscribe(channel)

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        """Keep the subscription as long as the block runs."""
        task = asyncio.create_task(self._listen())
        try:
            yield
        finally:
            while not task.done():  # again: before Python 3.12 wait_for may lose a cancellation, gh-86296
                task.cancel()
                await asyncio.wait({task}, timeout=0.05)

    async def _listen(self) -> None:
        pause = RECONNECT_FIRST
        while True:
            try:
                await self._subscribe()
            except (RedisError, OSError) as error:
                if self.subscribed:
                    log.warning("announcements_lost", error=type(error).__name__, reason=str(error))
                    pause = RECONNECT_FIRST
            finally:
                self.subscribed, self._subscription = False, None
            await asyncio.sleep(pause)
            pause = min(pause * 2, RECONNECT_MOST)

    async def _subscribe(self) -> None:
        # No retries inside redis-py: it would subscribe again by itself, and we should not learn that
        # announcements were missed meanwhile.
        never = Retry(NoBackoff(), 0)
        client = Redis.from_url(self._address, retry=never, socket_connect_timeout=5)
        async with client, client.pubsub() as subscription:
            first = tuple(self._channels)
            await subscription.subscribe(*first)
            self._subscription = subscription
            for channel in self._channels.keys() - first:  # added meanwhile
                await subscription.subscribe(channel)
            while True:
                message = await subscription.get_message(timeout=SILENCE)
                if message is None:
                    await subscription.ping()
                elif message["type"] == "subscribe" and not self.subscribed:
                    self.subscribed = True
                    self._resumed()
                elif message["type"] == "message":
                    self._hear(message["channel"].decode(), message["data"])
