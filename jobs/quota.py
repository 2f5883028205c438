"""Quota: how much of each of its budgets a tenant has used, and when it gets them back.

Read only: the store's Lua decides by the same hashes (`jobs/lua`), this shows them. `stockade:tenant:ID` has a
field for each budget that is set; `stockade:load:ID` what waits, runs and is kept; `stockade:usage:ID:…` what
was used in the running hour and day (`jobs.usage`).
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any, NamedTuple

from pydantic import AwareDatetime, Field
from redis import Redis

from jobs.usage import Window, key
from policies.model import Frozen

Fields = Mapping[str, str]
"""A hash as text."""


class Budget(StrEnum):
    """What can be limited, on a project and on an organisation."""

    CONCURRENT_JOBS = "concurrent_jobs"
    QUEUED_JOBS = "queued_jobs"
    SUBMITS_PER_MINUTE = "submits_per_minute"
    CPU_SECONDS_PER_HOUR = "cpu_seconds_per_hour"
    CPU_SECONDS_PER_DAY = "cpu_seconds_per_day"
    MEMORY_GB_SECONDS_PER_HOUR = "memory_gb_seconds_per_hour"
    MEMORY_GB_SECONDS_PER_DAY = "memory_gb_seconds_per_day"
    ARTIFACT_BYTES = "artifact_bytes"


BUDGETS = tuple(Budget)

_LOAD = {
    Budget.CONCURRENT_JOBS: "running",
    Budget.QUEUED_JOBS: "queued",
    Budget.ARTIFACT_BYTES: "artifact_bytes",
}
_WINDOWS = {
    Budget.CPU_SECONDS_PER_HOUR: (Window.HOUR, "cpu_seconds"),
    Budget.CPU_SECONDS_PER_DAY: (Window.DAY, "cpu_seconds"),
    Budget.MEMORY_GB_SECONDS_PER_HOUR: (Window.HOUR, "memory_gb_seconds"),
    Budget.MEMORY_GB_SECONDS_PER_DAY: (Window.DAY, "memory_gb_seconds"),
}


class BudgetState(Frozen):
    """One budget of one tenant."""

    budget: Budget = Field(description="Its name.")
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
    organisation: TenantQuota | None = Field(
        description="The budgets of its organisation, which all of its projects share; null when it has none."
    )


class _Level(NamedTuple):
    tenant: str
    about: Fields


def quota(redis: Redis, project: str) -> Quota:
    """The budgets of a project and of its organisation, by the server's clock."""
    with redis.pipeline(transaction=False) as pipe:
        pipe.time()
        pipe.hgetall(_tenant_key(project))
        (seconds, microseconds), about = pipe.execute()
    now = datetime.fromtimestamp(seconds + microseconds / 1e6, UTC)
    levels = [_Level(project, _text(about))]
    if parent := levels[0].about.get("parent"):
        found: Any = redis.hgetall(_tenant_key(parent))
        levels.append(_Level(parent, _text(found)))
    own, *above = _quotas(redis, levels, now)
    return Quota(project=own, organisation=above[0] if above else None)


def _tenant_key(tenant: str) -> str:
    return f"stockade:tenant:{tenant}"


def _quotas(redis: Redis, levels: Sequence[_Level], now: datetime) -> list[TenantQuota]:
    with redis.pipeline(transaction=False) as pipe:
        for level in levels:
            pipe.hgetall(f"stockade:load:{level.tenant}")
            for window in Window:
                pipe.hgetall(key(level.tenant, window, window.number(now)))
        found = [_text(fields) for fields in pipe.execute()]
    quotas = []
    for level in levels:
        load, *windows = (found.pop(0) for _ in range(1 + len(Window)))
        states = _states(level.about, load, dict(zip(Window, windows, strict=True)), now)
        quotas.append(
            TenantQuota(tenant=level.tenant, name=level.about.get("name", level.tenant), budgets=states)
        )
    return quotas


def _states(
    about: Fields, load: Fields, windows: Mapping[Window, Fields], now: datetime
) -> tuple[BudgetState, ...]:
    states = []
    for budget in Budget:
        limit = float(about[budget]) if budget in about else None
        resets: datetime | None = None
        if budget is Budget.SUBMITS_PER_MINUTE:
            spent, resets = _submits(limit, load, now)
        elif budget in _LOAD:
            spent = float(load.get(_LOAD[budget], 0))
        else:
            window, field = _WINDOWS[budget]
            spent = float(windows[window].get(field, 0))
            resets = window.start(window.number(now) + 1)
        states.append(BudgetState(budget=budget, limit=limit, used=round(max(spent, 0), 6), resets=resets))
    return tuple(states)


def _submits(limit: float | None, load: Fields, now: datetime) -> tuple[float, datetime | None]:
    """What is gone of a bucket of `limit` tokens that fills evenly over a minute, and when it is full again."""
    if not limit or "tokens" not in load:
        return 0.0, None
    since = now.timestamp() - float(load["tokens_at"]) / 1000
    gone = max(0.0, limit - float(load["tokens"]) - max(0.0, since) * limit / 60)
    return gone, now + timedelta(seconds=gone * 60 / limit) if gone else None


def _text(fields: Mapping[bytes, bytes]) -> Fields:
    return {name.decode(): value.decode() for name, value in fields.items()}
