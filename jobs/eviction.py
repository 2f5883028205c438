"""Eviction: a Redis that may drop keys when its memory is full would drop jobs without a word."""

from typing import Any

from redis import Redis
from redis.exceptions import NoPermissionError

SAFE = "noeviction"


class EvictionError(Exception):
    """Redis may drop jobs; the message has the remedy."""


def eviction_policy(redis: Redis) -> str | None:
    """The server's `maxmemory-policy`; None when this user may not see it."""
    try:
        memory: Any = redis.info("memory")
    except NoPermissionError:
        return None
    policy = memory.get("maxmemory_policy")
    return None if policy is None else str(policy)


def require_no_eviction(redis: Redis) -> None:
    """Raise EvictionError when Redis says that it may drop keys; redis.RedisError when it is not there."""
    policy = eviction_policy(redis)
    if policy not in (SAFE, None):
        raise EvictionError(
            f"Redis drops jobs when its memory is full (maxmemory-policy {policy}). "
            f"Set it: redis-cli config set maxmemory-policy {SAFE} && redis-cli config rewrite"
        )
