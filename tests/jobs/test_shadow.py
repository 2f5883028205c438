"""Shadow: what a draft would have refused, counted by rule and listed, newest first."""

import pytest
from redis import Redis

from jobs import shadow
from policies.violation import Violation


def violation(field: str) -> Violation:
    return Violation(field=field, got=2, allowed=1, message="too much")


def test_would_be_refusals_are_counted_and_listed(redis: Redis) -> None:
    """Each submission counts once, each rule once for it, and the newest is told first."""
    assert shadow.report(redis, "default") is None
    shadow.record(redis, "default", "d1", "t1", "job_1", [])
    two = [violation("steps[0].limits.memory"), violation("steps[1].limits.memory"), violation("image")]
    shadow.record(redis, "default", "d1", "t1", "job_2", two)
    shadow.record(redis, "default", "d1", "t2", None, [violation("image")])
    shadow.record(redis, "default", "d1", "t2", None, [])
    found = shadow.report(redis, "default")
    assert found is not None
    assert (found.evaluated, found.refused, found.newly_refused, found.newly_admitted) == (4, 2, 1, 1)
    assert found.rules == {"image": 2, "steps.limits.memory": 1}
    assert [(each.job, each.tenant, len(each.violations)) for each in found.refusals] == [
        (None, "t2", 1),
        ("job_2", "t1", 3),
    ]
    assert shadow.report(redis, "strict") is None


def test_a_changed_draft_starts_from_nothing(redis: Redis) -> None:
    """Counts are of one content of the draft."""
    shadow.record(redis, "default", "d1", "t1", "job_1", [violation("image")])
    shadow.record(redis, "default", "d2", "t1", "job_2", [])
    found = shadow.report(redis, "default")
    assert found is not None
    assert (found.digest, found.evaluated, found.refused, found.refusals) == ("d2", 1, 0, ())


def test_the_list_is_bounded_and_all_of_it_goes(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the newest are listed, with some of their violations; nothing is kept for ever."""
    monkeypatch.setattr(shadow, "LISTED_MAX", 3)
    for number in range(5):
        shadow.record(redis, "default", "d1", "t1", f"job_{number}", [violation("image")] * 50)
    found = shadow.report(redis, "default", last=10)
    assert found is not None
    assert [each.job for each in found.refusals] == ["job_4", "job_3", "job_2"]
    assert len(found.refusals[0].violations) == shadow.VIOLATIONS_MAX
    assert found.refused == 5
    keys = redis.keys("stockade:shadow:*")
    assert len(keys) == 3
    assert all(0 < redis.ttl(key) <= shadow.KEPT for key in keys)
