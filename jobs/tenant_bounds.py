"""Tenant bounds: what a project and its organisation let through, from their hashes `stockade:tenant:ID`."""

import time
from typing import Any

from redis import Redis

from policies.bounds import NO_BOUNDS, Bounds
from policies.scopes import Scopes

BELIEVED = 5.0
"""Seconds for which bounds are believed without asking Redis again."""
REMEMBERED = 10_000
"""Projects that are remembered."""

_TENANT = "stockade:tenant:"


class TenantBounds:
    """The scopes between platform and policy of each project. Safe for threads."""

    def __init__(self, redis: Redis, believed: float = BELIEVED) -> None:
        self._redis = redis
        self._believed = believed
        self._known: dict[str, tuple[float, Scopes]] = {}

    def scopes(self, project: str) -> Scopes:
        """Return the bounds of the organisation and of the project of this id, those that bound anything.

        Raises redis.RedisError; pydantic.ValidationError when what is stored is no bounds.
        """
        now = time.monotonic()
        until, scopes = self._known.get(project, (0.0, ()))
        if now < until:
            return scopes
        name, bounds, parent = self._read(project)
        found = [(f"project {name}", bounds)]
        if parent:
            name, bounds, _ = self._read(parent)
            found.insert(0, (f"organisation {name}", bounds))
        scopes = tuple((scope, bounds) for scope, bounds in found if bounds != NO_BOUNDS)
        if len(self._known) >= REMEMBERED:
            self._known.clear()
        self._known[project] = (now + self._believed, scopes)
        return scopes

    def _read(self, tenant: str) -> tuple[str, Bounds, str]:
        """The name, the bounds and the parent of one tenant; of one that is not there, nothing is bounded."""
        stored: Any = self._redis.hmget(_TENANT + tenant, ["name", "bounds", "parent"])
        name, bounds, parent = (each.decode() if each else "" for each in stored)
        return name or tenant, Bounds.model_validate_json(bounds) if bounds else NO_BOUNDS, parent
