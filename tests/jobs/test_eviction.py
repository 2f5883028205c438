"""A Redis that may drop jobs is not used."""

from collections.abc import Iterator

import pytest
from redis import Redis

from jobs.eviction import EvictionError, eviction_policy, require_no_eviction


@pytest.fixture(params=["allkeys-lru", "volatile-ttl"])
def evicting(redis: Redis, request: pytest.FixtureRequest) -> Iterator[str]:
    """The policy of a server that may drop keys."""
    redis.config_set("maxmemory-policy", request.param)
    yield request.param
    redis.config_set("maxmemory-policy", "noeviction")


def test_noeviction_is_fine(redis: Redis) -> None:
    """A full server then refuses new jobs and keeps those that it has."""
    require_no_eviction(redis)
    assert eviction_policy(redis) == "noeviction"


def test_any_other_policy_is_refused(redis: Redis, evicting: str) -> None:
    """Those that drop only keys with an expiry too: finished jobs are such keys. The message has the remedy."""
    with pytest.raises(EvictionError, match=rf"{evicting}.*config set maxmemory-policy noeviction"):
        require_no_eviction(redis)


def test_a_user_that_may_not_look_is_not_refused(redis: Redis) -> None:
    """Some providers forbid INFO; that is not known to be unsafe."""
    redis.acl_setuser(
        "blind", enabled=True, nopass=True, categories=["+@all"], commands=["-info"], keys=["*"]
    )
    path = redis.connection_pool.connection_kwargs["path"]
    try:
        with Redis(unix_socket_path=path, username="blind", password="x") as client:
            assert eviction_policy(client) is None
            require_no_eviction(client)
    finally:
        redis.acl_deluser("blind")
