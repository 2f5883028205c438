"""Who asks: the tenant behind the API key in `Authorization: Bearer KEY`.

A key that was good is believed for `BELIEVED` seconds without asking Redis again, so a revoked key stops
working within that time. What is remembered is the SHA-256 of the key, never the key.
"""

import hashlib
from time import monotonic
from typing import Annotated

from fastapi import Depends, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from redis import Redis

from api.problems import UNAUTHENTICATED, ProblemError
from jobs import tenants
from jobs.job import Tenant

BELIEVED = 5.0  # seconds
REMEMBERED = 10_000  # keys

BEARER = HTTPBearer(
    scheme_name="API key",
    description="`Authorization: Bearer KEY`, with a key from `stockade key create`.",
    auto_error=False,
)


class Authenticator:
    """Knows the tenants of API keys, asking Redis at most once in `believed` seconds for each key."""

    def __init__(self, redis: Redis, believed: float = BELIEVED) -> None:
        self._redis = redis
        self._believed = believed
        self._known: dict[bytes, tuple[float, Tenant]] = {}

    async def tenant(self, key: str) -> Tenant | None:
        """The tenant that owns `key`; None when nobody does."""
        digest = hashlib.sha256(key.encode()).digest()
        now = monotonic()
        until, tenant = self._known.get(digest, (0.0, None))
        if tenant is not None and now < until:
            return tenant
        self._known.pop(digest, None)
        tenant = await run_in_threadpool(tenants.authenticate, self._redis, key)
        if tenant is not None:
            if len(self._known) >= REMEMBERED:
                self._known.clear()
            self._known[digest] = (now + self._believed, tenant)
        return tenant


async def _authenticated(
    request: Request, credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(BEARER)]
) -> Tenant:
    if credentials is None:
        raise _challenge("Send an API key as `Authorization: Bearer KEY`.", 'Bearer realm="stockade"')
    authenticator: Authenticator = request.app.state.services.authenticator
    tenant = await authenticator.tenant(credentials.credentials)
    if tenant is None:
        raise _challenge("This API key is not known.", 'Bearer realm="stockade", error="invalid_token"')
    request.state.tenant = tenant
    return tenant


def _challenge(detail: str, challenge: str) -> ProblemError:
    return ProblemError(UNAUTHENTICATED, detail, headers={"WWW-Authenticate": challenge})


Caller = Annotated[Tenant, Depends(_authenticated)]
"""A route parameter of this type makes the route ask for an API key, and is the tenant that owns it."""
