"""Who asks: the project behind the API key in `Authorization: Bearer KEY`, and what that key is good for.

A key that was good is believed for `BELIEVED` seconds without asking Redis again, so a revoked or rotated key
stops working within that time, and an expired one at its time. What is remembered is the SHA-256 of the key, never
the key.
"""

import hashlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from time import monotonic
from typing import Annotated

from fastapi import Depends, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from redis import Redis

from api.problems import FORBIDDEN, UNAUTHENTICATED, ProblemError, invalid
from jobs import keys
from jobs.job import Tenant
from jobs.keys import Scope
from policies.violation import Violation, field_path, shown

BELIEVED = 5.0  # seconds
REMEMBERED = 10_000  # keys

BEARER = HTTPBearer(
    scheme_name="API key",
    description="`Authorization: Bearer KEY`, with a key from `stockade key create`.",
    auto_error=False,
)


@dataclass(frozen=True)
class Identity:
    """Who asks."""

    tenant: Tenant
    """The project that the key belongs to."""
    organisation: Tenant
    """The organisation of that project."""
    key_id: str
    """The identifier of the key, which is not the key."""
    scopes: frozenset[Scope]
    """What the key is good for."""

    @property
    def id(self) -> str:
        """The identifier of the project."""
        return self.tenant.id


class Authenticator:
    """Knows who API keys speak for, asking Redis at most once in `believed` seconds for each key."""

    def __init__(self, redis: Redis, believed: float = BELIEVED) -> None:
        self._redis = redis
        self._believed = believed
        self._known: dict[bytes, tuple[float, Identity]] = {}

    async def identity(self, key: str) -> Identity | None:
        """Who `key` speaks for; None when it is no key, or no longer."""
        digest = hashlib.sha256(key.encode()).digest()
        now = monotonic()
        known = self._known.get(digest)
        if known is not None and now < known[0]:
            return known[1]
        self._known.pop(digest, None)
        found = await run_in_threadpool(keys.authenticate, self._redis, key)
        if found is None:
            return None
        if len(self._known) >= REMEMBERED:
            self._known.clear()
        identity = Identity(found.tenant, found.organisation, found.key.id, frozenset(found.key.scopes))
        self._known[digest] = (now + min(self._believed, found.seconds), identity)
        return identity


async def _authenticated(
    request: Request, credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(BEARER)]
) -> Identity:
    if credentials is None:
        raise _challenge("Send an API key as `Authorization: Bearer KEY`.", 'Bearer realm="stockade"')
    authenticator: Authenticator = request.app.state.services.authenticator
    identity = await authenticator.identity(credentials.credentials)
    if identity is None:
        raise unknown_key()
    request.state.caller = identity
    _refuse_unknown_parameters(request)
    return identity


def _refuse_unknown_parameters(request: Request) -> None:
    """A query parameter that the route does not know is refused, as an unknown field of a body is."""
    if not request.query_params:
        return
    described = request.app.openapi()["paths"][request.scope["route"].path_format][request.method.lower()]
    known = [each["name"] for each in described.get("parameters", ()) if each["in"] == "query"]
    unknown = [name for name in request.query_params if name not in known]
    if unknown:
        message = "is not a parameter that is known here"
        raise invalid(
            tuple(
                Violation(
                    field=field_path([name]),
                    got=shown(request.query_params[name]),
                    allowed=[*known],
                    message=message,
                )
                for name in unknown
            )
        )


def unknown_key() -> ProblemError:
    """401 for a key that is none, or no longer."""
    return _challenge("This API key is not known.", 'Bearer realm="stockade", error="invalid_token"')


def _challenge(detail: str, challenge: str) -> ProblemError:
    return ProblemError(UNAUTHENTICATED, detail, headers={"WWW-Authenticate": challenge})


Caller = Annotated[Identity, Depends(_authenticated)]
"""A route parameter of this type makes the route ask for an API key, and is who it speaks for."""


def _with_scope(*scopes: Scope) -> Callable[[Identity], Awaitable[Identity]]:
    """A dependency that takes keys with any of these scopes."""

    async def demanded(caller: Caller) -> Identity:
        if caller.scopes.isdisjoint(scopes):
            challenge = f'Bearer realm="stockade", error="insufficient_scope", scope="{" ".join(scopes)}"'
            detail = f"This API key lacks the scope {' or '.join(f'`{scope}`' for scope in scopes)}."
            raise ProblemError(FORBIDDEN, detail, headers={"WWW-Authenticate": challenge})
        return caller

    return demanded


Reader = Annotated[Identity, Depends(_with_scope(Scope.READ))]
"""A `Caller` whose key has the scope `read`; others get 403."""
Submitter = Annotated[Identity, Depends(_with_scope(Scope.SUBMIT))]
"""A `Caller` whose key has the scope `submit`; others get 403."""
ReaderOrSubmitter = Annotated[Identity, Depends(_with_scope(Scope.READ, Scope.SUBMIT))]
"""A `Caller` whose key has the scope `read` or `submit`; others get 403."""
Admin = Annotated[Identity, Depends(_with_scope(Scope.ADMIN))]
"""A `Caller` whose key has the scope `admin`; others get 403."""


async def _reading(_: Reader, caller: Admin) -> Identity:
    return caller


AdminReader = Annotated[Identity, Depends(_reading)]
"""A `Caller` whose key has both `admin` and `read`; others get 403."""
