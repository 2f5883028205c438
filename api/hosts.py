"""Hosts: the machines of the workers that live, pool by pool; what isolation they can give."""

import time
from collections.abc import Callable, Sequence
from typing import Protocol

from policies.isolation import Host

BELIEVED = 2.0
"""Seconds for which what the workers say is believed without asking Redis again."""


class Machine(Protocol):
    """What is read of a worker's heartbeat."""

    @property
    def pools(self) -> Sequence[str]: ...

    @property
    def launcher(self) -> str | None: ...

    @property
    def host(self) -> Host: ...


class Hosts:
    """The hosts of each pool. Safe for threads."""

    def __init__(self, live: Callable[[], Sequence[Machine]]) -> None:
        """`live` tells the workers that live; it may raise redis.RedisError."""
        self._live = live
        self._known: tuple[float, Sequence[Machine]] = (0.0, ())

    def of(self, pool: str) -> list[Host]:
        """Return the hosts of the workers that serve a pool, as far as their launchers answer."""
        until, machines = self._known
        if time.monotonic() >= until:
            machines = self._live()
            self._known = (time.monotonic() + BELIEVED, machines)
        return [each.host for each in machines if pool in each.pools and each.launcher is None]
