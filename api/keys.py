"""API keys of the caller's own project: make, list, rotate, revoke. They need the scope `admin`.

A key can hand on no more than it has: whoever makes or rotates one sees its secret, and so must have its scopes.
"""

from datetime import UTC, datetime, timedelta
from typing import Annotated, Self

from annotated_types import Gt
from fastapi import APIRouter, Path, Query, Request, Response
from pydantic import AwareDatetime, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError
from starlette.concurrency import run_in_threadpool

from api.auth import Admin, Identity
from api.body import parse
from api.documentation import json_body
from api.problems import (
    BODY_TIMEOUT,
    BODY_TOO_LARGE,
    CONFLICT,
    FORBIDDEN,
    INTERNAL,
    INVALID_REQUEST,
    NOT_FOUND,
    UNAUTHENTICATED,
    UNAVAILABLE,
    UNSUPPORTED_MEDIA,
    ProblemError,
    documented,
    invalid,
    not_found,
)
from api.services import Services, services_of
from jobs import audit, keys
from jobs.keys import DEFAULT_SCOPES, NAME_PATTERN, ApiKeyError, Key, Scope
from policies.model import Frozen
from policies.units import DURATION_MAX, Duration
from policies.violation import Violation, shown, violations

GRACE_MAX = 7 * 24 * 3600  # seconds that a rotated key's old secret may work on

EXAMPLES = {
    "ci": {
        "summary": "A key for a build, for twelve hours",
        "value": {"name": "ci", "scopes": ["submit", "read"], "expires_in": "12h"},
    },
}

KeyId = Annotated[str, Path(description="The key's `id`.", examples=["00112233445566aa"])]
Grace = Annotated[
    float,
    Query(
        ge=0,
        le=GRACE_MAX,
        allow_inf_nan=False,
        description="Seconds that the old secret works on. Without it the old secret is worthless at once.",
        examples=[3600],
    ),
]

router = APIRouter(
    tags=["keys"], responses=documented(UNAUTHENTICATED, FORBIDDEN, INVALID_REQUEST, INTERNAL, UNAVAILABLE)
)


class KeyRequest(Frozen):
    """A key that is to be made."""

    name: str = Field(pattern=NAME_PATTERN, description="What it is for.", examples=["ci"])
    scopes: tuple[Scope, ...] = Field(
        default=DEFAULT_SCOPES,
        min_length=1,
        max_length=len(Scope),
        description="What it is good for: `submit` (hand in, cancel and delete jobs), `read` (see jobs and what"
        " became of them), `admin` (manage keys and webhooks). None includes another.",
    )
    expires_in: Annotated[Duration, Gt(0)] | None = Field(
        default=None, description="How long it works, seconds."
    )
    expires_at: AwareDatetime | None = Field(default=None, description="Until when it works, instead.")

    @model_validator(mode="after")
    def _one_expiry(self) -> Self:
        if self.expires_in is not None and self.expires_at is not None:
            context = {"allowed": "expires_in or expires_at", "field": "expires_at"}
            raise PydanticCustomError("expiry", "must not be given beside expires_in", context)
        return self


class NewKey(Key):
    """A key that was made or got a new secret."""

    key: str = Field(
        repr=False, description="The key: `Authorization: Bearer KEY`. It cannot be shown again."
    )


class KeyList(Frozen):
    """The keys of a project."""

    keys: tuple[Key, ...] = Field(description="The keys, oldest first; expired ones for a week.")


@router.post(
    "/v1/keys",
    status_code=201,
    summary="Make an API key",
    responses={
        201: {
            "description": "The key, shown this once",
            "content": json_body(NewKey),
            "headers": {"Location": {"description": "Address of the key", "schema": {"type": "string"}}},
        },
        **documented(BODY_TIMEOUT, CONFLICT, BODY_TOO_LARGE, UNSUPPORTED_MEDIA, INVALID_REQUEST),
    },
    openapi_extra={"requestBody": {"required": True, "content": json_body(KeyRequest, EXAMPLES)}},
)
async def create_key(request: Request, caller: Admin) -> Response:
    """Makes a key for the caller's own project, with no scope that the caller's key lacks."""
    services = services_of(request)
    async with services.bodies.read(request) as body:
        asked = _read(body)
    _may_grant(caller, asked.scopes)
    made = await run_in_threadpool(_create, services, caller, asked)
    return Response(
        made.model_dump_json(),
        201,
        headers={"Location": f"/v1/keys/{made.id}"},
        media_type="application/json",
    )


@router.get(
    "/v1/keys",
    summary="List the API keys",
    responses={200: {"description": "The keys of the project", "content": json_body(KeyList)}},
)
def list_keys(request: Request, caller: Admin) -> Response:
    """The keys of the caller's own project."""
    found = keys.list_keys(services_of(request).store.redis, caller.id)
    answer = KeyList(keys=tuple(found))
    return Response(answer.model_dump_json(), media_type="application/json")


@router.get(
    "/v1/keys/{key_id}",
    summary="Get an API key",
    responses={
        200: {"description": "What is known of the key", "content": json_body(Key)},
        **documented(NOT_FOUND),
    },
)
def get_key(request: Request, caller: Admin, key_id: KeyId) -> Response:
    """Name, scopes, expiry and last use of a key; never the key."""
    key = _find(services_of(request), caller, key_id)
    return Response(key.model_dump_json(), media_type="application/json")


@router.post(
    "/v1/keys/{key_id}:rotate",
    summary="Rotate an API key",
    responses={
        200: {"description": "The key with its new secret, shown this once", "content": json_body(NewKey)},
        **documented(NOT_FOUND, CONFLICT, INVALID_REQUEST),
    },
)
def rotate_key(request: Request, caller: Admin, key_id: KeyId, grace: Grace = 0) -> Response:
    """Gives the key a new secret. Name, scopes and expiry stay.

    The old secret stops working within five seconds, or after the time of grace.
    """
    services = services_of(request)
    _may_grant(caller, _find(services, caller, key_id).scopes)
    try:
        whole = keys.rotate_key(services.store.redis, key_id, caller.id, grace=grace)
    except ApiKeyError as error:
        raise ProblemError(CONFLICT, f"{error}.") from None
    if whole is None:
        raise _no_key()
    made = _shown_once(services, caller, whole)
    _record(services, caller, "key.rotated", made)
    return Response(made.model_dump_json(), media_type="application/json")


@router.delete(
    "/v1/keys/{key_id}",
    summary="Revoke an API key",
    responses={
        200: {"description": "The key as it was", "content": json_body(Key)},
        **documented(NOT_FOUND),
    },
)
def revoke_key(request: Request, caller: Admin, key_id: KeyId) -> Response:
    """Makes the key worthless, within five seconds everywhere. It may be the caller's own."""
    services = services_of(request)
    key = _find(services, caller, key_id)
    if not keys.revoke_key(services.store.redis, key_id, caller.id):
        raise _no_key()
    _record(services, caller, "key.revoked", key)
    return Response(key.model_dump_json(), media_type="application/json")


def _read(body: bytes) -> KeyRequest:
    parse(body)  # refuses what has more than one meaning; pydantic then reads the bytes, strictly
    try:
        asked = KeyRequest.model_validate_json(body)
    except ValidationError as error:
        raise invalid(violations(error, KeyRequest)) from None
    if asked.expires_at is not None and not 0 < _seconds_from_now(asked.expires_at) <= DURATION_MAX:
        allowed = "a moment within the next year"
        got = shown(asked.expires_at.isoformat())
        raise invalid(
            (Violation(field="expires_at", got=got, allowed=allowed, message=f"must be {allowed}"),)
        )
    return asked


def _seconds_from_now(moment: datetime) -> float:
    return (moment - datetime.now(UTC)).total_seconds()


def _may_grant(caller: Identity, scopes: tuple[Scope, ...]) -> None:
    """Refuse to show a key that is good for more than the caller's own."""
    if lacking := [f"`{scope}`" for scope in scopes if scope not in caller.scopes]:
        detail = f"This API key lacks the scope {', '.join(lacking)}, which the other would have."
        raise ProblemError(FORBIDDEN, detail)


def _create(services: Services, caller: Identity, asked: KeyRequest) -> NewKey:
    until = asked.expires_at
    if asked.expires_in is not None:
        until = datetime.now(UTC) + timedelta(seconds=asked.expires_in)
    try:
        whole = keys.create_key(
            services.store.redis, caller.tenant, name=asked.name, scopes=asked.scopes, expires_at=until
        )
    except ApiKeyError as error:
        raise ProblemError(CONFLICT, f"{error}.") from None
    made = _shown_once(services, caller, whole)
    _record(services, caller, "key.created", made)
    return made


def _record(services: Services, caller: Identity, action: str, key: Key) -> None:
    about = {"key": key.id, "name": key.name, "scopes": key.scopes}
    audit.record(services.store.redis, caller.id, audit.key_actor(caller.key_id), action, **about)


def _shown_once(services: Services, caller: Identity, whole: str) -> NewKey:
    return NewKey(**dict(_find(services, caller, keys.key_id_of(whole))), key=whole)


def _find(services: Services, caller: Identity, key_id: str) -> Key:
    """The key of the caller's project; 404 for those of others too."""
    key = keys.find_key(services.store.redis, key_id, caller.id)
    if key is None:
        raise _no_key()
    return key


def _no_key() -> ProblemError:
    return not_found("The project has no such API key; /v1/keys lists those that it has.")
