"""Jobs: hand one in, see how it is, wait for its end, cancel it, delete it."""

import re
from typing import Annotated

from anyio import to_thread
from fastapi import APIRouter, Path, Query, Request, Response

from api.auth import Identity, Reader, Submitter
from api.documentation import json_body
from api.job_body import EXAMPLES, LARGE_BODY
from api.job_view import shown_to
from api.problems import (
    BODY_TIMEOUT,
    BODY_TOO_LARGE,
    FORBIDDEN,
    IDEMPOTENCY_MISMATCH,
    INTERNAL,
    INVALID_REQUEST,
    NOT_ADMITTED,
    NOT_FINISHED,
    NOT_FOUND,
    OVER_BUDGET,
    UNAUTHENTICATED,
    UNAVAILABLE,
    UNSUPPORTED_MEDIA,
    ProblemError,
    documented,
    not_found,
)
from api.services import Services, services_of
from api.submission import RATE_HEADERS, REPEATED, IdempotencyKey, submit
from jobs import audit
from jobs.job import Job, JobState
from jobs.job_view import JobView, view
from jobs.spec import JobSpec

MAX_WAIT = 60.0  # seconds that one request waits: proxies cut what is silent for longer

_JOB_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")

JobId = Annotated[str, Path(description="The job's `id`.", examples=["job_00112233445566778899aabb"])]
Wait = Annotated[
    float,
    Query(
        ge=0,
        le=MAX_WAIT,
        allow_inf_nan=False,
        description="Seconds to wait for the job's end. The answer comes at the end, or after this time"
        " with the job as it then is.",
        examples=[10],
    ),
]

router = APIRouter(
    tags=["jobs"], responses=documented(UNAUTHENTICATED, FORBIDDEN, INVALID_REQUEST, INTERNAL, UNAVAILABLE)
)


_ACCEPTED = {
    "content": json_body(JobView),
    "headers": {
        "Location": {"description": "Address of the job", "schema": {"type": "string"}},
        **RATE_HEADERS,
    },
}
_REFUSED = documented(OVER_BUDGET)
_REFUSED[OVER_BUDGET.status]["headers"] = RATE_HEADERS | {
    "Retry-After": {"description": "Seconds after which to try again", "schema": {"type": "integer"}}
}


@router.post(
    "/v1/jobs",
    status_code=201,
    summary="Submit a job",
    responses={
        201: {
            "description": "The job is stored and will run, whatever becomes of this connection",
            **_ACCEPTED,
        },
        200: {
            "description": "The job of an earlier call with this `Idempotency-Key`",
            **_ACCEPTED,
            "headers": _ACCEPTED["headers"]
            | {"Idempotent-Replayed": {"description": "`true`", "schema": {"type": "string"}}},
        },
        **documented(BODY_TIMEOUT, BODY_TOO_LARGE, UNSUPPORTED_MEDIA),
        **documented(INVALID_REQUEST, NOT_ADMITTED, IDEMPOTENCY_MISMATCH),
        **_REFUSED,
    },
    openapi_extra={"requestBody": {"required": True, "content": json_body(JobSpec, EXAMPLES)}},
)
async def submit_job(
    request: Request, caller: Submitter, wait: Wait = 0, idempotency_key: IdempotencyKey = None
) -> Response:
    """Runs one command, or several steps over one workspace, in a fresh sandbox under a policy.

    Everything that is wrong with the request, or over the policy's ceilings, is listed at once. What a job wrote
    and left is told only to a key with the scope `read`.
    """
    services = services_of(request)
    async with services.bodies.read(request) as body:
        since = services.finished.mark()
        limiter = services.large_bodies if len(body) > LARGE_BODY else None
        submitted = await to_thread.run_sync(submit, services, caller, body, idempotency_key, limiter=limiter)
        del body
    job = submitted.job
    if wait:
        job = await _wait(request, caller, job, wait, since) or job
    headers = {"Location": f"/v1/jobs/{job.id}", **submitted.rate}
    if submitted.again:
        return _answer(caller, job, 200, headers | REPEATED)
    return _answer(caller, job, 201, headers)


@router.get(
    "/v1/jobs/{job_id}",
    summary="Get a job",
    responses={
        200: {"description": "The job", "content": json_body(JobView)},
        **documented(NOT_FOUND, INVALID_REQUEST),
    },
)
async def get_job(request: Request, caller: Reader, job_id: JobId, wait: Wait = 0) -> Response:
    """The job as it is; with `wait`, as soon as it is finished.

    A finished job is kept for the retention of its policy.
    """
    services = services_of(request)
    since = services.finished.mark()
    found = await to_thread.run_sync(look, services, job_id, caller)
    job = await _wait(request, caller, found, wait, since) if found and wait else found
    if job is None:
        raise _no_job()
    return _answer(caller, job)


@router.post(
    "/v1/jobs/{job_id}:cancel",
    summary="Cancel a job",
    responses={
        200: {"description": "The job as it now is", "content": json_body(JobView)},
        **documented(NOT_FOUND),
    },
)
def cancel_job(request: Request, caller: Submitter, job_id: JobId) -> Response:
    """Ends a queued job at once and a running one in a moment (`cancelling`). May be repeated.

    A job that has finished stays as it is. What it wrote and left is told only to a key with the scope `read`.
    """
    job = services_of(request).store.cancel(job_id, caller.id) if _JOB_ID.fullmatch(job_id) else None
    if job is None:
        raise _no_job()
    return _answer(caller, view(job))


@router.delete(
    "/v1/jobs/{job_id}",
    status_code=204,
    summary="Delete a job",
    responses={204: {"description": "It is gone"}, **documented(NOT_FOUND, NOT_FINISHED)},
)
def delete_job(request: Request, caller: Submitter, job_id: JobId) -> Response:
    """Deletes a finished job now, instead of at the end of its retention: record, output and artifacts.

    Its idempotency key may be used anew. Usage and the audit log keep what they say of it.
    """
    store, actor = services_of(request).store, audit.key_actor(caller.key_id)
    gone = store.delete(job_id, caller.id, actor=actor) if _JOB_ID.fullmatch(job_id) else None
    if gone is None:
        raise _no_job()
    if not gone:
        raise ProblemError(NOT_FINISHED, "The job has not finished; cancel it first.")
    return Response(status_code=204)


def find(services: Services, job_id: str, caller: Identity) -> Job:
    """The caller's job.

    Raises:
        ProblemError: 404; the job of another tenant does not exist either.
    """
    job = _stored(services, job_id, caller)
    if job is None:
        raise _no_job()
    return job


def look(services: Services, job_id: str, caller: Identity) -> JobView | None:
    """The caller's job as the caller sees it; None when there is none."""
    job = _stored(services, job_id, caller)
    if job is None:
        return None
    return view(job, services.store.position(job) if job.state is JobState.QUEUED else None)


def _stored(services: Services, job_id: str, caller: Identity) -> Job | None:
    return services.store.get(job_id, caller.id) if _JOB_ID.fullmatch(job_id) else None


def _answer(
    caller: Identity, job: JobView, status: int = 200, headers: dict[str, str] | None = None
) -> Response:
    content = shown_to(caller, job).model_dump_json()
    return Response(content, status, headers=headers, media_type="application/json")


async def _wait(
    request: Request, caller: Identity, job: JobView, seconds: float, since: int
) -> JobView | None:
    services = services_of(request)

    async def again() -> JobView | None:
        return await to_thread.run_sync(look, services, job.id, caller)

    return await services.finished.until_finished(job, seconds, since, again, request.is_disconnected)


def _no_job() -> Exception:
    return not_found("There is no such job; finished ones are kept for the retention of their policy.")
