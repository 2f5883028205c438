"""Jobs: hand one in, see how it is, wait for its end, cancel it."""

import re
from typing import Annotated, Any

import structlog
from anyio import to_thread
from fastapi import APIRouter, Path, Query, Request, Response
from pydantic import ValidationError

from api.admission import admitted, watch
from api.auth import Identity, Reader, Submitter
from api.body import parse
from api.documentation import json_body
from api.job_view import JobView, view
from api.problems import (
    BODY_TIMEOUT,
    BODY_TOO_LARGE,
    FORBIDDEN,
    INTERNAL,
    INVALID_REQUEST,
    NOT_ADMITTED,
    NOT_FOUND,
    UNAUTHENTICATED,
    UNAVAILABLE,
    UNSUPPORTED_MEDIA,
    documented,
    invalid,
    not_found,
)
from api.services import Services, services_of
from jobs.job import Job
from jobs.metrics import metrics
from jobs.spec import JobSpec
from policies.violation import Violation, violations

MAX_WAIT = 60.0  # seconds that one request waits: proxies cut what is silent for longer
LARGE_BODY = 256 * 1024  # bytes; larger ones are parsed one at a time, which bounds the memory that it takes

EXAMPLES: dict[str, Any] = {
    "command": {
        "summary": "One command",
        "value": {"command": ["python3", "-c", "print(6 * 7)"]},
    },
    "steps": {
        "summary": "Compile, then run on some input, and keep a file",
        "value": {
            "files": [
                {
                    "path": "count.c",
                    "text": "#include <stdio.h>\nint main(void) { return getchar() == EOF; }\n",
                }
            ],
            "steps": [
                {"name": "compile", "argv": ["gcc", "-O2", "-o", "count", "count.c"]},
                {
                    "name": "run",
                    "argv": ["./count"],
                    "stdin": "some input",
                    "limits": {"memory": "32MiB", "cpu_time": "500ms"},
                },
            ],
            "outputs": ["count"],
        },
    },
}

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

router = APIRouter(tags=["jobs"], responses=documented(UNAUTHENTICATED, FORBIDDEN, INTERNAL, UNAVAILABLE))
log = structlog.get_logger(__name__)


@router.post(
    "/v1/jobs",
    status_code=201,
    summary="Submit a job",
    responses={
        201: {
            "description": "The job is stored and will run, whatever becomes of this connection",
            "content": json_body(JobView),
            "headers": {"Location": {"description": "Address of the job", "schema": {"type": "string"}}},
        },
        **documented(BODY_TIMEOUT, BODY_TOO_LARGE, UNSUPPORTED_MEDIA, INVALID_REQUEST, NOT_ADMITTED),
    },
    openapi_extra={"requestBody": {"required": True, "content": json_body(JobSpec, EXAMPLES)}},
)
async def submit_job(request: Request, caller: Submitter, wait: Wait = 0) -> Response:
    """Runs one command, or several steps over one workspace, in a fresh sandbox under a policy.

    Everything that is wrong with the request, or over the policy's ceilings, is listed at once.
    """
    services = services_of(request)
    async with services.bodies.read(request) as body:
        since = services.finished.mark()
        limiter = services.large_bodies if len(body) > LARGE_BODY else None
        job = await to_thread.run_sync(accept, services, body, caller, limiter=limiter)
        del body
    if wait:
        job = await _wait(request, caller, job, wait, since) or job
    return Response(
        job.model_dump_json(), 201, headers={"Location": f"/v1/jobs/{job.id}"}, media_type="application/json"
    )


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
    return Response(job.model_dump_json(), media_type="application/json")


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

    A job that has finished stays as it is.
    """
    job = services_of(request).store.cancel(job_id, caller.id) if _JOB_ID.fullmatch(job_id) else None
    if job is None:
        raise _no_job()
    return Response(view(job).model_dump_json(), media_type="application/json")


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
    return None if job is None else view(job)


def _stored(services: Services, job_id: str, caller: Identity) -> Job | None:
    return services.store.get(job_id, caller.id) if _JOB_ID.fullmatch(job_id) else None


def accept(services: Services, body: bytes, caller: Identity) -> JobView:
    """Store the job that `body` asks for; it goes its way by itself.

    Raises:
        ProblemError: 422, with everything that is wrong.
    """
    with services.refusals.noted(caller):
        spec = read_spec(body)
        accepted = services.store.create(spec, admitted(services, spec, caller.id), caller.id)
    metrics.count("jobs_submitted_total", result="admitted")
    watch(services, spec, caller.id, accepted.job.id)
    return view(accepted.job)


def read_spec(body: bytes) -> JobSpec:
    """The job that a request body asks for, of valid shape."""
    document = parse(body)  # refuses what has more than one meaning; pydantic then reads the bytes, strictly
    try:
        return JobSpec.model_validate_json(body)
    except ValidationError as error:
        raise invalid(tuple(_as_written(found, document) for found in violations(error, JobSpec))) from None


def _as_written(found: Violation, document: object) -> Violation:
    """The violation in the caller's notation: `command` may be given as its `argv` alone."""
    short = isinstance(document, dict) and isinstance(document.get("command"), list)
    if not short or not found.field.startswith("command.argv"):
        return found
    return found.model_copy(update={"field": "command" + found.field.removeprefix("command.argv")})


async def _wait(
    request: Request, caller: Identity, job: JobView, seconds: float, since: int
) -> JobView | None:
    services = services_of(request)

    async def again() -> JobView | None:
        return await to_thread.run_sync(look, services, job.id, caller)

    return await services.finished.until_finished(job, seconds, since, again, request.is_disconnected)


def _no_job() -> Exception:
    return not_found("There is no such job; finished ones are kept for the retention of their policy.")
