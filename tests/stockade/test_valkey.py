"""The embedded Valkey."""

import redis


def test_starts_empty_and_answers(redis_url: str) -> None:
    """The fixture's server answers on its unix socket and holds nothing."""
    with redis.Redis.from_url(redis_url) as client:
        assert client.dbsize() == 0
        client.set("a", "b")
        assert client.config_get("maxmemory-policy")["maxmemory-policy"] == "noeviction"


def test_is_flushed_between_tests(redis_url: str) -> None:
    """What one test wrote, the next does not see."""
    with redis.Redis.from_url(redis_url) as client:
        assert client.dbsize() == 0
