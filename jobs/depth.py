"""Depth: how many jobs wait and run, pool by pool, for the operator's eyes. It reads what the store's Lua keeps.

A pool's backlog is a sorted set for each project (`jobs/lua/lib/release.lua`). The projects that have one stand
in the pool's order of turns, or are parked; so looking costs three round trips, and time in the number of
tenants that have something waiting.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

from redis import Redis


class Depth(NamedTuple):
    """Jobs of one pool."""

    backlogged: int
    """Waiting for their turn."""
    released: int
    """In the queue to the workers."""
    running: int
    """Claimed by a worker."""


def depths(redis: Redis) -> dict[str, Depth]:
    """The depth of every pool that ever had a job, by its name."""
    names: Any = redis.smembers("stockade:pools")
    return {pool: _depth(redis, pool) for pool in sorted(name.decode() for name in names)}


def _depth(redis: Redis, pool: str) -> Depth:
    with redis.pipeline(transaction=False) as pipe:
        pipe.zcard(f"stockade:released:{pool}")
        pipe.zcard(f"stockade:leases:{pool}")
        pipe.zrange(f"stockade:order:{pool}", 0, -1)
        pipe.zrange("stockade:parked", 0, -1)
        released, running, turns, parked = pipe.execute()
    here = (name.decode().partition("|") for name in parked)
    waiting = {name.decode() for name in turns} | {tenant for where, _, tenant in here if where == pool}
    return Depth(_backlogged(redis, pool, waiting), released, running)


def _backlogged(redis: Redis, pool: str, tenants: set[str]) -> int:
    """Jobs that wait in the backlogs of these tenants, and of the projects of those that are organisations."""
    turns = _each(redis, "zrange", (f"stockade:order:{pool}:{tenant}" for tenant in tenants), 0, -1)
    projects = tenants | {project.decode() for found in turns for project in found}
    return sum(_each(redis, "zcard", (f"stockade:backlog:{pool}:{project}" for project in projects)))


def _each(redis: Redis, command: str, keys: Iterable[str], *arguments: int) -> list[Any]:
    with redis.pipeline(transaction=False) as pipe:
        for key in keys:
            getattr(pipe, command)(key, *arguments)
        return pipe.execute()
