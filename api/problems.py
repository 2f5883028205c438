"""Problem details (RFC 9457): the one form in which the API says no.

Every refusal is a `ProblemError` of one `Kind`; the exception handlers at the end turn it, and what the
framework and Redis raise by themselves, into `application/problem+json`. Nothing else is ever sent with
a status of 400 or above.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import structlog
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import JsonValue
from redis.exceptions import RedisError
from starlette.exceptions import HTTPException
from starlette.routing import BaseRoute, Match, Route

from jobs.problem import MAX_ERRORS, URN, Problem
from policies.violation import Violation, violation

MEDIA_TYPE = "application/problem+json"
RETRY_AFTER = "1"  # seconds, sent with every 503

_PARAMETER = re.compile(r"\{[^}]*\}")

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Kind:
    """A kind of problem: its name in `type`, its `title` and its status."""

    name: str
    status: int
    title: str


MALFORMED = Kind("malformed", 400, "The request is not HTTP")
UNAUTHENTICATED = Kind("unauthenticated", 401, "A valid API key is required")
FORBIDDEN = Kind("forbidden", 403, "This API key is not good for that")
NOT_FOUND = Kind("not-found", 404, "Not found")
METHOD_NOT_ALLOWED = Kind("method-not-allowed", 405, "This address does not take this method")
CONFLICT = Kind("conflict", 409, "That does not go with the state of things")
NOT_FINISHED = Kind("not-finished", 409, "The job has not finished")
HEAD_TIMEOUT = Kind("head-timeout", 408, "The request did not arrive in time")
BODY_TIMEOUT = Kind("body-timeout", 408, "The request body did not arrive in time")
BODY_TOO_LARGE = Kind("body-too-large", 413, "The request body is too large")
UNSUPPORTED_MEDIA = Kind("unsupported-media-type", 415, "The request body must be plain JSON")
INVALID_REQUEST = Kind("invalid-request", 422, "The request is not valid")
NOT_ADMITTED = Kind("not-admitted", 422, "The policy does not allow this job")
IDEMPOTENCY_MISMATCH = Kind("idempotency-mismatch", 422, "The idempotency key was used for another job")
OVER_BUDGET = Kind("over-budget", 429, "A budget is used up")
TOO_MANY_STREAMS = Kind("too-many-streams", 429, "Too many streams of events are open")
HEAD_TOO_LARGE = Kind("head-too-large", 431, "The request's header fields are too large")
INTERNAL = Kind("internal", 500, "Stockade failed")
UNAVAILABLE = Kind("unavailable", 503, "Stockade cannot serve this now")

KINDS = (
    MALFORMED,
    UNAUTHENTICATED,
    FORBIDDEN,
    NOT_FOUND,
    METHOD_NOT_ALLOWED,
    CONFLICT,
    NOT_FINISHED,
    HEAD_TIMEOUT,
    BODY_TIMEOUT,
    BODY_TOO_LARGE,
    UNSUPPORTED_MEDIA,
    INVALID_REQUEST,
    NOT_ADMITTED,
    IDEMPOTENCY_MISMATCH,
    OVER_BUDGET,
    TOO_MANY_STREAMS,
    HEAD_TOO_LARGE,
    INTERNAL,
    UNAVAILABLE,
)


class ProblemError(Exception):
    """A refusal on its way to the caller. `detail` is sent as it is: no secrets in it."""

    def __init__(
        self,
        kind: Kind,
        detail: str,
        *,
        errors: tuple[Violation, ...] = (),
        component: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.kind = kind
        self.detail = detail
        self.errors = errors
        self.component = component
        self.headers = headers or {}

    @property
    def problem(self) -> Problem:
        """What the caller is told."""
        return Problem(
            type=f"{URN}{self.kind.name}",
            title=self.kind.title,
            status=self.kind.status,
            detail=self.detail,
            errors=self.errors,
            component=self.component,
        )

    def response(self) -> Response:
        """This problem as an HTTP response."""
        absent = {"component"} if self.component is None else None
        content = self.problem.model_dump_json(exclude=absent)
        return Response(content, self.kind.status, headers=self.headers, media_type=MEDIA_TYPE)


def not_found(what: str) -> ProblemError:
    """A thing that is not there, or that another tenant owns: the two are never told apart."""
    return ProblemError(NOT_FOUND, what)


def unavailable(component: str, detail: str) -> ProblemError:
    """A part of the service that cannot be reached; the caller may try again."""
    headers = {"Retry-After": RETRY_AFTER}
    return ProblemError(UNAVAILABLE, detail, component=component, headers=headers)


def invalid(errors: tuple[Violation, ...], kind: Kind = INVALID_REQUEST) -> ProblemError:
    """A request with fields at fault: all of them at once, up to `MAX_ERRORS`."""
    count = f"{len(errors)} field is" if len(errors) == 1 else f"{len(errors)} fields are"
    verb = "valid" if kind is INVALID_REQUEST else "allowed"
    more = ", ..." if len(errors) > 5 else ""
    named = ", ".join(error.field or "the body" for error in errors[:5]) + more
    return ProblemError(kind, f"{count} not {verb}: {named}", errors=errors[:MAX_ERRORS])


def install(app: FastAPI, routes: Sequence[BaseRoute] = ()) -> None:
    """Make problem details of everything that a route, the framework or Redis raises.

    `routes`: those of the application, whose methods a 405 is to name.
    """

    async def problem(_: Request, error: Exception) -> Response:
        assert isinstance(error, ProblemError)
        return error.response()

    async def parameter(_: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        found = error.errors()  # the first part of a place says "query" or "header"
        return invalid(tuple(violation(detail["loc"][1:], detail) for detail in found)).response()

    async def framework(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return _from_framework(request, error, routes).response()

    async def redis(_: Request, error: Exception) -> Response:
        log.error("redis_failed", error=type(error).__name__, reason=str(error))
        return unavailable("redis", "Redis, which keeps the jobs, cannot be reached or refuses.").response()

    app.add_exception_handler(ProblemError, problem)
    app.add_exception_handler(RequestValidationError, parameter)
    app.add_exception_handler(HTTPException, framework)
    app.add_exception_handler(RedisError, redis)


def _from_framework(request: Request, error: HTTPException, routes: Sequence[BaseRoute]) -> ProblemError:
    if error.status_code == METHOD_NOT_ALLOWED.status:
        allowed = ", ".join(_methods(request, routes)) or (error.headers or {}).get("Allow", "")
        detail = f"{request.method} is not one of the methods of this address: {allowed}."
        return ProblemError(METHOD_NOT_ALLOWED, detail, headers={"Allow": allowed})
    if error.status_code == NOT_FOUND.status:
        return not_found("There is nothing at this address; /docs lists what there is.")
    raise error  # no route raises another one; if it happens it is our bug, a 500


def _methods(request: Request, routes: Sequence[BaseRoute]) -> list[str]:
    """The methods that this address takes: those of all routes whose pattern fits it best.

    The framework by itself names those of one route alone; and the address of `/v1/jobs/x:cancel` also fits the
    pattern `/v1/jobs/{job_id}`.
    """
    fitting = [
        route
        for route in routes
        if isinstance(route, Route) and route.matches(request.scope)[0] is not Match.NONE
    ]
    best = max(map(_exactness, fitting), default=0)
    return sorted(
        {method for route in fitting if _exactness(route) == best for method in route.methods or ()}
    )


def _exactness(route: Route) -> int:
    """How many characters of its pattern stand for themselves."""
    return len(_PARAMETER.sub("", route.path_format))


def documented(*kinds: Kind) -> dict[int | str, dict[str, Any]]:
    """The OpenAPI responses of these kinds, for a route's `responses`."""
    titles: dict[int, list[str]] = {}
    for kind in kinds:
        titles.setdefault(kind.status, []).append(kind.title)
    schema: JsonValue = {"$ref": "#/components/schemas/Problem"}
    return {
        status: {"description": "; or: ".join(texts), "content": {MEDIA_TYPE: {"schema": schema}}}
        for status, texts in titles.items()
    }
