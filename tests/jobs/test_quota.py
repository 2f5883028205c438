"""Quota: limit, use and reset of every budget, from what the store keeps."""

import time
from datetime import UTC, datetime, timedelta

import pytest
from redis import Redis

from jobs.quota import Budget, BudgetState, TenantQuota, quota
from jobs.usage import Window, key


def state(found: TenantQuota, budget: Budget) -> BudgetState:
    """One budget."""
    return next(each for each in found.budgets if each.budget is budget)


def test_what_is_not_set_is_not_limited(redis: Redis) -> None:
    """A tenant of whom nothing is stored: every budget, no limit, nothing used, and no organisation."""
    found = quota(redis, "tenant_a")
    assert [each.budget for each in found.project.budgets] == list(Budget)
    assert {each.limit for each in found.project.budgets} == {None}
    assert {each.used for each in found.project.budgets} == {0}
    assert found.organisation is None


def test_both_levels_are_shown(redis: Redis) -> None:
    """The project's budgets and the organisation's, each with its own use."""
    redis.hset(
        "stockade:tenant:tenant_a",
        mapping={"name": "acme/grader", "parent": "tenant_o", "concurrent_jobs": 2},
    )
    redis.hset("stockade:tenant:tenant_o", mapping={"name": "acme", "parent": "", "queued_jobs": "10"})
    redis.hset("stockade:load:tenant_a", mapping={"running": 2, "queued": 3, "artifact_bytes": 100})
    redis.hset("stockade:load:tenant_o", mapping={"running": 5, "queued": 7})
    found = quota(redis, "tenant_a")
    assert found.organisation is not None
    assert (found.project.name, found.organisation.name) == ("acme/grader", "acme")
    assert state(found.project, Budget.CONCURRENT_JOBS) == BudgetState(
        budget=Budget.CONCURRENT_JOBS, limit=2, used=2, resets=None
    )
    assert state(found.project, Budget.ARTIFACT_BYTES).used == 100
    assert (
        state(found.organisation, Budget.QUEUED_JOBS).limit,
        state(found.organisation, Budget.QUEUED_JOBS).used,
    ) == (10, 7)


@pytest.mark.parametrize(
    ("budget", "window", "field"),
    [
        (Budget.CPU_SECONDS_PER_HOUR, Window.HOUR, "cpu_seconds"),
        (Budget.CPU_SECONDS_PER_DAY, Window.DAY, "cpu_seconds"),
        (Budget.MEMORY_GB_SECONDS_PER_HOUR, Window.HOUR, "memory_gb_seconds"),
        (Budget.MEMORY_GB_SECONDS_PER_DAY, Window.DAY, "memory_gb_seconds"),
    ],
)
def test_time_windows_reset_at_their_end(redis: Redis, budget: Budget, window: Window, field: str) -> None:
    """What was used in the running hour or day, until it is over; the one before does not count."""
    redis.hset("stockade:tenant:tenant_a", mapping={"parent": "", budget: "100.5"})
    number = window.number(datetime.now(UTC))
    for each, amount in ((number - 1, 99), (number, 12.25), (number + 1, 12.25)):
        redis.hset(key("tenant_a", window, each), field, amount)
    found = state(quota(redis, "tenant_a").project, budget)
    assert (found.limit, found.used) == (100.5, 12.25)
    assert found.resets in (window.start(number + 1), window.start(number + 2))


def test_submits_come_back_evenly(redis: Redis) -> None:
    """Of 60 a minute one comes back each second; reset is when all are there again."""
    redis.hset("stockade:tenant:tenant_a", mapping={"parent": "", "submits_per_minute": 60})
    ago = int((time.time() - 10) * 1000)
    redis.hset("stockade:load:tenant_a", mapping={"tokens": "20", "tokens_at": ago})
    found = state(quota(redis, "tenant_a").project, Budget.SUBMITS_PER_MINUTE)
    assert 10 < found.used <= 30
    assert found.resets is not None
    assert timedelta(seconds=1) < found.resets - datetime.now(UTC) <= timedelta(seconds=31)


def test_a_full_bucket_has_nothing_to_reset(redis: Redis) -> None:
    """Tokens that came back long ago are not more than the limit."""
    redis.hset("stockade:tenant:tenant_a", mapping={"parent": "", "submits_per_minute": 60})
    redis.hset("stockade:load:tenant_a", mapping={"tokens": "20", "tokens_at": 1000})
    found = state(quota(redis, "tenant_a").project, Budget.SUBMITS_PER_MINUTE)
    assert (found.limit, found.used, found.resets) == (60, 0, None)
