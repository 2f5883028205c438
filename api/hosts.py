"""Hosts: the machines of the workers that live, pool by pool: what isolation they can give, and what images."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from policies.isolation import Host
from policies.offered import Offered

BELIEVED = 2.0
"""Seconds for which what the workers say is believed without asking Redis again."""


class Equipped(Host, Protocol):
    """A host, and the images that it has."""

    @property
    def images(self) -> Mapping[str, str]: ...


class Machine(Protocol):
    """What is read of a worker's heartbeat."""

    @property
    def pools(self) -> Sequence[str]: ...

    @property
    def launcher(self) -> str | None: ...

    @property
    def host(self) -> Equipped: ...


class Hosts:
    """The hosts of each pool. Safe for threads."""

    def __init__(self, live: Callable[[], Sequence[Machine]]) -> None:
        """`live` tells the workers that live; it may raise redis.RedisError."""
        self._live = live
        self._known: tuple[float, Sequence[Machine], dict[str, Offered]] = (0.0, (), {})

    def of(self, pool: str) -> Sequence[Host]:
        """Return the hosts of the workers that serve a pool, as far as their launchers answer."""
        machines, _ = self._believed()
        return _serving(machines, pool)

    def images(self, pool: str) -> Offered:
        """Return the images of these hosts."""
        machines, offered = self._believed()
        if pool not in offered:
            offered[pool] = Offered([each.images for each in _serving(machines, pool)])
        return offered[pool]

    def forget(self) -> None:
        """Ask anew the next time."""
        self._known = (0.0, (), {})

    def _believed(self) -> tuple[Sequence[Machine], dict[str, Offered]]:
        until, machines, offered = self._known
        if time.monotonic() >= until:
            machines, offered = self._live(), {}
            self._known = (time.monotonic() + BELIEVED, machines, offered)
        return machines, offered


def _serving(machines: Sequence[Machine], pool: str) -> list[Equipped]:
    return [each.host for each in machines if pool in each.pools and each.launcher is None]
