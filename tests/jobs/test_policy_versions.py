"""Policy versions: effective policies by digest; what stands under another's digest is nothing."""

import pytest
from redis import Redis

from jobs import policy_versions
from jobs.policy_versions import KEPT, PolicyVersions
from policies.loader import load_policies

DEFAULT, STRICT = load_policies()["default"], load_policies()["strict"]
KEY = f"stockade:policy:{DEFAULT.digest}"


def test_what_is_published_can_be_loaded_elsewhere(redis: Redis) -> None:
    """The same content comes back, and is kept for longer than a job may wait."""
    PolicyVersions(redis).publish(DEFAULT)
    assert PolicyVersions(redis).load(DEFAULT.digest) == DEFAULT
    assert PolicyVersions(redis).load(STRICT.digest) is None
    assert KEPT < redis.ttl(KEY) <= KEPT + DEFAULT.max_queue_time


def test_it_is_published_once_and_again_after_a_while(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    """A submission costs no write; what Redis has lost is there again before long."""
    versions = PolicyVersions(redis)
    versions.publish(DEFAULT)
    redis.delete(KEY)
    versions.publish(DEFAULT)
    assert not redis.exists(KEY)
    monkeypatch.setattr(policy_versions, "AGAIN", -1.0)
    again = PolicyVersions(redis)
    again.publish(DEFAULT)
    redis.delete(KEY)
    again.publish(DEFAULT)
    assert redis.exists(KEY)


@pytest.mark.parametrize("content", [STRICT.model_dump_json(), "{}", "[", "\xff", ""])
def test_another_content_under_a_digest_is_nothing(redis: Redis, content: str) -> None:
    """A digest names its content, whoever wrote what there."""
    redis.set(KEY, content)
    assert PolicyVersions(redis).load(DEFAULT.digest) is None


def test_what_was_loaded_is_remembered_and_no_more_than_so_much(
    redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker asks Redis once for each policy, and does not grow with those that it has seen."""
    monkeypatch.setattr(policy_versions, "REMEMBERED", 2)
    versions, variants = PolicyVersions(redis), []
    for number in range(3):
        variants.append(DEFAULT.model_copy(update={"version": f"v{number}"}))
        versions.publish(variants[-1])
    reader = PolicyVersions(redis)
    assert [reader.load(each.digest) for each in variants] == variants
    for each in variants:
        redis.delete(f"stockade:policy:{each.digest}")
    assert [reader.load(each.digest) for each in variants] == [None, *variants[1:]]
