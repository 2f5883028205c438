"""Quota: how much of each of its budgets a tenant has used, and when it gets them back.

Read only: the store's Lua decides by the same hashes (`jobs/lua`), this shows them. `stockade:load:ID` has what
waits, runs and is kept of a tenant; `stockade:usage:ID:…` what it used in the running hour and day (`jobs.usage`).
"""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from pydantic import AwareDatetime, Field

from jobs.job import Tenant
from jobs.usage import Window, key
from policies.model import Frozen

if TYPE_CHECKING:  # a client of the API reads these models, and needs no Redis
    from redis import Redis

Fields = Mapping[str, str]
"""A hash as text."""


_LOAD = {"concurrent_jobs": "running", "queued_jobs": "queued", "artifact_bytes": "artifact_bytes"}
_WINDOWS = {
    "cpu_seconds_per_hour": (Window.HOUR, "cpu_seconds"),
    "cpu_seconds_per_day": (Window.DAY, "cpu_seconds"),
    "memory_gb_seconds_per_hour": (Window.HOUR, "memory_gb_seconds"),
    "memory_gb_seconds_per_day": (Window.DAY, "memory_gb_seconds"),
}
_SUBMITS = "submits_per_minute"


class BudgetState(Frozen):
    """One budget of one tenant."""

    budget: str = Field(description="Its name.", examples=["concurrent_jobs"])
    limit: float | None = Field(description="The most that may be used; null when there is no limit.")
    used: float = Field(description="What is used now.")
    resets: AwareDatetime | None = Field(
        description="When nothing of it will be used any more if nothing is added; null where time alone gives"
        " nothing back."
    )


class TenantQuota(Frozen):
    """All budgets of one tenant."""

    tenant: str = Field(description="Identifier of the tenant.")
    name: str = Field(description="Its name.")
    budgets: tuple[BudgetState, ...] = Field(description="Every budget that there is, limited or not.")


class Quota(Frozen):
    """What the caller may still use: a job has to fit into the budgets of both levels."""

    project: TenantQuota = Field(description="The budgets of the project that the API key belongs to.")
    organisation: TenantQuota = Field(
        description="The budgets of its organisation, which all of its projects share."
    )


def quota(redis: "Redis", project: Tenant, organisation: Tenant) -> Quota:
    """The budgets of a project and of its organisation, by the server's clock."""
    clock: Any = redis.time()
    now = datetime.fromtimestamp(clock[0] + clock[1] / 1e6, UTC)
    return Quota(project=_of(redis, project, now), organisation=_of(redis, organisation, now))


def _of(redis: "Redis", tenant: Tenant, now: datetime) -> TenantQuota:
    with redis.pipeline(transaction=False) as pipe:
        pipe.hgetall(f"stockade:load:{tenant.id}")
        for window in Window:
            pipe.hgetall(key(tenant.id, window, window.number(now)))
        load, *sums = (_text(fields) for fields in pipe.execute())
    windows = dict(zip(Window, sums, strict=True))
    states = tuple(_state(budget, limit, load, windows, now) for budget, limit in tenant.budgets)
    return TenantQuota(tenant=tenant.id, name=tenant.name, budgets=states)


def _state(
    budget: str, limit: float | None, load: Fields, windows: Mapping[Window, Fields], now: datetime
) -> BudgetState:
    resets: datetime | None = None
    if budget == _SUBMITS:
        spent, resets = _submits(limit, load, now)
    elif budget in _LOAD:
        spent = float(load.get(_LOAD[budget], 0))
    else:
        window, field = _WINDOWS[budget]
        spent = float(windows[window].get(field, 0))
        resets = window.start(window.number(now) + 1)
    return BudgetState(budget=budget, limit=limit, used=round(max(spent, 0), 6), resets=resets)


def _submits(limit: float | None, load: Fields, now: datetime) -> tuple[float, datetime | None]:
    """What is gone of a bucket of `limit` tokens that fills evenly over a minute, and when it is full again."""
    if not limit or "tokens" not in load:
        return 0.0, None
    since = now.timestamp() - float(load["tokens_at"]) / 1000
    gone = max(0.0, limit - float(load["tokens"]) - max(0.0, since) * limit / 60)
    return gone, now + timedelta(seconds=gone * 60 / limit) if gone else None


def _text(fields: Mapping[bytes, bytes]) -> Fields:
    return {name.decode(): value.decode() for name, value in fields.items()}
