"""Both clients of the API under one hand: a test that is written once holds for each."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from inspect import isasyncgen
from typing import Any

import httpx
from anyio.from_thread import BlockingPortal, start_blocking_portal

from stockade.client import AsyncClient, Client

Handler = Callable[[httpx.Request], httpx.Response]
KINDS = ("blocking", "in a loop")


class Ported:
    """An `AsyncClient` whose methods block, by an event loop in a thread."""

    def __init__(self, client: AsyncClient, portal: BlockingPortal) -> None:
        self.client, self.portal = client, portal

    def __getattr__(self, name: str) -> Any:
        member = getattr(self.client, name)
        return (lambda *args, **kw: self._called(member, args, kw)) if callable(member) else member

    def _called(self, member: Callable[..., Any], args: Any, kw: Any) -> Any:
        async def call() -> Any:
            found = member(*args, **kw)
            return found if isasyncgen(found) else await found

        found = self.portal.call(call)
        return self._items(found) if isasyncgen(found) else found

    def _items(self, items: Any) -> Iterator[Any]:
        end = object()

        async def following() -> Any:
            return await anext(items, end)

        try:
            while (item := self.portal.call(following)) is not end:
                yield item
        finally:
            self.portal.call(items.aclose)


@contextmanager
def opened(kind: str, url: str, key: str, handler: Handler | None = None, **options: Any) -> Iterator[Any]:
    """A client of this kind; with `handler`, which answers in place of the network."""
    if handler is not None:
        options["transport"] = httpx.MockTransport(handler)
    with ExitStack() as stack:
        if kind == KINDS[0]:
            yield stack.enter_context(Client(url, key, **options))
        else:
            portal = stack.enter_context(start_blocking_portal())
            client = AsyncClient(url, key, **options)
            stack.enter_context(portal.wrap_async_context_manager(client))
            yield Ported(client, portal)
