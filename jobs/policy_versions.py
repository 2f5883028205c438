"""Policy versions: effective policies by their digests, so that a job runs under what admitted it.

`stockade:policy:DIGEST` has the policy's JSON. A digest names one content, so what is read is checked against
the name under which it was read: whoever can write to Redis can lose a version, and cannot change one.
"""

import time
from collections import OrderedDict
from typing import Any

from pydantic import ValidationError
from redis import Redis

from policies.policy import Policy

KEPT = 30 * 24 * 3600
"""Seconds that a version is kept after the last job was admitted under it, on top of the longest queue time."""
AGAIN = 60.0
"""Seconds after which a process publishes a version that it uses again: Redis may have lost it."""
REMEMBERED = 1000
"""Versions that one process remembers."""

_VERSION = "stockade:policy:"


class PolicyVersions:
    """Effective policies in Redis. Safe for threads. Methods raise redis.RedisError when it is not there."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._published: OrderedDict[str, float] = OrderedDict()
        self._loaded: OrderedDict[str, Policy] = OrderedDict()

    def publish(self, policy: Policy) -> None:
        """See to it that the policy can be loaded by its digest, for longer than a job may wait."""
        now = time.monotonic()
        if now < self._published.get(policy.digest, 0.0):
            return
        kept = KEPT + int(policy.max_queue_time)
        self._redis.set(_VERSION + policy.digest, policy.model_dump_json(), ex=kept)
        _remember(self._published, policy.digest, now + AGAIN)

    def load(self, digest: str) -> Policy | None:
        """Return the policy of this digest; None where there is none, or another stands in its place."""
        known = self._loaded.get(digest)
        if known is not None:
            return known
        stored: Any = self._redis.get(_VERSION + digest)
        try:
            policy = Policy.model_validate_json(stored) if stored else None
        except ValidationError:
            return None
        if policy is None or policy.digest != digest:
            return None
        _remember(self._loaded, digest, policy)
        return policy


def _remember(memory: "OrderedDict[str, Any]", key: str, value: Any) -> None:
    """Keep a value, and let go of the oldest where there are too many."""
    memory[key] = value
    while len(memory) > REMEMBERED:
        memory.popitem(last=False)
