"""The quota over HTTP."""

import httpx
import pytest
from redis import Redis

from api.quota import rate_headers
from jobs.job import Tenant
from jobs.tenants import set_tenant


def test_every_budget_is_shown_with_limit_use_and_reset(
    client: httpx.Client, redis_client: Redis, tenant: Tenant
) -> None:
    """Those that are limited and those that are not, of the key's project and of its organisation."""
    set_tenant(redis_client, tenant, budgets={"concurrent_jobs": 4})
    redis_client.hset(f"stockade:load:{tenant.id}", mapping={"running": 3})
    answer = client.get("/v1/quota").json()
    assert answer["project"]["tenant"] == tenant.id
    assert answer["organisation"]["tenant"] == tenant.parent
    budgets = {budget.pop("budget"): budget for budget in answer["project"]["budgets"]}
    assert budgets["concurrent_jobs"] == {"limit": 4, "used": 3, "resets": None}
    assert budgets["queued_jobs"] == {"limit": None, "used": 0, "resets": None}
    assert budgets["cpu_seconds_per_day"]["resets"].endswith("T00:00:00Z")


@pytest.mark.parametrize(
    ("limit", "remaining", "reset", "fields"),
    [(60, 59, 1, ("60", "59", "1")), (60.0, 0.99, 0.01, ("60", "0", "1")), (5, -3, -1, ("5", "0", "0"))],
)
def test_rate_headers_promise_no_more_than_there_is(
    limit: float, remaining: float, reset: float, fields: tuple[str, ...]
) -> None:
    """Whole numbers: what remains rounded down, the time until reset up."""
    headers = rate_headers(limit, remaining, reset)
    assert tuple(headers[f"RateLimit-{name}"] for name in ("Limit", "Remaining", "Reset")) == fields
