"""Drivers: how plans are carried out, by blocking and in an event loop. All else is the same for both."""

import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Generator, Iterator
from contextlib import aclosing, asynccontextmanager, closing, contextmanager
from functools import partial
from typing import Any, TypeVar

import anyio
import httpx
from anyio import to_thread

from stockade.client.access import Access
from stockade.client.effect import Effect, Give, Giving, Next, Open, Plan, Request, Send, Sleep, Work, given

T = TypeVar("T")


def _sent(http: httpx.Client | httpx.AsyncClient, request: Request, timeout: float) -> httpx.Request:
    """The request as httpx sends it; a silence that is expected comes on top of the timeout."""
    limits = httpx.Timeout(timeout, read=timeout + request.silence)
    return http.build_request(
        request.method,
        request.path,
        params=request.query or None,
        content=request.body,
        headers=list(request.headers),
        timeout=limits,
    )


class BlockingDriver:
    """Carries plans out one after the other in each thread that asks; may be shared by threads."""

    def __init__(self, access: Access, timeout: float, transport: httpx.BaseTransport | None) -> None:
        self._timeout = timeout
        self.http = httpx.Client(
            base_url=access.url, headers=access.headers, transport=transport, trust_env=not access.local
        )

    def run(self, plan: Plan[T]) -> T:
        """The plan's result."""
        with closing(self.told(given(plan))) as told:
            return next(told)

    def told(self, plan: Giving[T]) -> Generator[T, None, None]:
        """The items that the plan hands out."""
        with closing(plan), self._performing() as perform:
            resume: Callable[[], Effect | Give[T]] = partial(plan.send, None)
            while True:
                try:
                    effect = resume()
                except StopIteration:
                    return
                if isinstance(effect, Give):
                    yield effect.item
                    resume = partial(plan.send, None)
                    continue
                try:
                    resume = partial(plan.send, perform(effect))
                except httpx.RequestError as error:
                    resume = partial(plan.throw, error)

    @contextmanager
    def _performing(self) -> Iterator[Callable[[Effect], Any]]:
        opened: httpx.Response | None = None
        chunks: Iterator[bytes] = iter(())

        def perform(effect: Effect) -> Any:
            nonlocal opened, chunks
            match effect:
                case Send(request):
                    return self.http.send(_sent(self.http, request, self._timeout))
                case Open(request):
                    if opened is not None:
                        opened.close()
                    opened = self.http.send(_sent(self.http, request, self._timeout), stream=True)
                    if opened.status_code != 200:
                        opened.read()
                    else:
                        chunks = opened.iter_bytes()
                    return opened
                case Next():
                    return next(chunks, None)
                case Sleep(seconds):
                    return time.sleep(seconds)
                case Work(call):
                    return call()

        try:
            yield perform
        finally:
            if opened is not None:
                opened.close()


class LoopDriver:
    """Carries plans out in the event loop of whoever awaits them, asyncio's or trio's; any number at a time."""

    def __init__(self, access: Access, timeout: float, transport: httpx.AsyncBaseTransport | None) -> None:
        self._timeout = timeout
        self.http = httpx.AsyncClient(
            base_url=access.url, headers=access.headers, transport=transport, trust_env=not access.local
        )

    async def run(self, plan: Plan[T]) -> T:
        """The plan's result."""
        async with aclosing(self.told(given(plan))) as told:
            return await anext(told)

    async def told(self, plan: Giving[T]) -> AsyncGenerator[T]:
        """The items that the plan hands out."""
        with closing(plan):
            async with self._performing() as perform:
                resume: Callable[[], Effect | Give[T]] = partial(plan.send, None)
                while True:
                    try:
                        effect = resume()
                    except StopIteration:
                        return
                    if isinstance(effect, Give):
                        yield effect.item
                        resume = partial(plan.send, None)
                        continue
                    try:
                        resume = partial(plan.send, await perform(effect))
                    except httpx.RequestError as error:
                        resume = partial(plan.throw, error)

    @asynccontextmanager
    async def _performing(self) -> AsyncIterator[Callable[[Effect], Awaitable[Any]]]:
        opened: httpx.Response | None = None
        chunks: AsyncIterator[bytes | None]

        async def perform(effect: Effect) -> Any:
            nonlocal opened, chunks
            match effect:
                case Send(request):
                    return await self.http.send(_sent(self.http, request, self._timeout))
                case Open(request):
                    if opened is not None:
                        await opened.aclose()
                    opened = await self.http.send(_sent(self.http, request, self._timeout), stream=True)
                    if opened.status_code != 200:
                        await opened.aread()
                    else:
                        chunks = opened.aiter_bytes()
                    return opened
                case Next():
                    return await anext(chunks, None)
                case Sleep(seconds):
                    return await anyio.sleep(seconds)
                case Work(call):
                    return await to_thread.run_sync(call)

        try:
            yield perform
        finally:
            if opened is not None:
                with anyio.CancelScope(shield=True):
                    await opened.aclose()
