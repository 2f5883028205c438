"""Quota: limit, use and reset of every budget, from what the store keeps."""

import time
from datetime import UTC, datetime, timedelta

import pytest
from redis import Redis

from jobs.budgets import Budgets
from jobs.job import Tenant
from jobs.quota import BudgetState, TenantQuota, quota
from jobs.usage import Window, key

ACME = Tenant(id="tenant_o", name="acme", created_at=datetime.now(UTC))


def project(**budgets: float) -> Tenant:
    """A project of acme with these budgets."""
    return Tenant(
        id="tenant_p",
        name="acme/grader",
        parent=ACME.id,
        budgets=Budgets(**budgets),
        created_at=datetime.now(UTC),
    )


def state(found: TenantQuota, budget: str) -> BudgetState:
    """One budget."""
    return next(each for each in found.budgets if each.budget == budget)


def test_what_is_not_set_is_not_limited(redis: Redis) -> None:
    """Every budget is there, of both levels: no limit, nothing used."""
    found = quota(redis, project(), ACME)
    for level in (found.project, found.organisation):
        assert [each.budget for each in level.budgets] == list(Budgets.model_fields)
        assert {(each.limit, each.used) for each in level.budgets} == {(None, 0)}


def test_both_levels_are_shown(redis: Redis) -> None:
    """The project's budgets and the organisation's, each with its own use."""
    redis.hset("stockade:load:tenant_p", mapping={"running": 2, "queued": 3, "artifact_bytes": 100})
    redis.hset("stockade:load:tenant_o", mapping={"running": 5, "queued": 7})
    found = quota(
        redis, project(concurrent_jobs=2), ACME.model_copy(update={"budgets": Budgets(queued_jobs=10)})
    )
    assert (found.project.name, found.organisation.name) == ("acme/grader", "acme")
    running = BudgetState(budget="concurrent_jobs", limit=2, used=2, resets=None)
    waiting = BudgetState(budget="queued_jobs", limit=10, used=7, resets=None)
    assert state(found.project, "concurrent_jobs") == running
    assert state(found.organisation, "queued_jobs") == waiting
    assert state(found.project, "artifact_bytes").used == 100


@pytest.mark.parametrize("field", ["cpu_seconds", "memory_gb_seconds"])
@pytest.mark.parametrize("window", Window)
def test_time_windows_reset_at_their_end(redis: Redis, window: Window, field: str) -> None:
    """What was used in the running hour or day, until it is over; the one before does not count."""
    number = window.number(datetime.now(UTC))
    for each, amount in ((number - 1, 99), (number, 12.25), (number + 1, 12.25)):
        redis.hset(key("tenant_p", window, each), field, amount)
    budget = f"{field}_per_{window}"
    found = state(quota(redis, project(**{budget: 100.5}), ACME).project, budget)
    assert (found.limit, found.used) == (100.5, 12.25)
    assert found.resets in (window.start(number + 1), window.start(number + 2))


def test_submits_come_back_evenly(redis: Redis) -> None:
    """Of 60 a minute one comes back each second; reset is when all are there again."""
    ago = int((time.time() - 10) * 1000)
    redis.hset("stockade:load:tenant_p", mapping={"tokens": "20", "tokens_at": ago})
    found = state(quota(redis, project(submits_per_minute=60), ACME).project, "submits_per_minute")
    assert 10 < found.used <= 30
    assert found.resets is not None
    assert timedelta(seconds=1) < found.resets - datetime.now(UTC) <= timedelta(seconds=31)


def test_a_full_bucket_has_nothing_to_reset(redis: Redis) -> None:
    """Tokens that came back long ago are not more than the limit."""
    redis.hset("stockade:load:tenant_p", mapping={"tokens": "20", "tokens_at": 1000})
    found = state(quota(redis, project(submits_per_minute=60), ACME).project, "submits_per_minute")
    assert (found.limit, found.used, found.resets) == (60, 0, None)
