"""Batches: many jobs in one call, each of them accepted or refused as if it had come alone."""

import json
from typing import Any, Literal

from anyio import to_thread
from fastapi import APIRouter, Request, Response
from pydantic import ValidationError

from api.auth import Identity, Submitter
from api.body import parse
from api.documentation import json_body
from api.job_body import EXAMPLES, LARGE_BODY
from api.job_view import shown_to
from api.problems import (
    BODY_TIMEOUT,
    BODY_TOO_LARGE,
    FORBIDDEN,
    INTERNAL,
    INVALID_REQUEST,
    UNAUTHENTICATED,
    UNAVAILABLE,
    UNSUPPORTED_MEDIA,
    ProblemError,
    documented,
    invalid,
)
from api.services import Services, services_of
from api.submission import RATE_HEADERS, IdempotencyKey, submit
from jobs.batch import AcceptedItem, Batch, BatchAnswer, RefusedItem
from policies.violation import violations

router = APIRouter(
    tags=["jobs"], responses=documented(UNAUTHENTICATED, FORBIDDEN, INVALID_REQUEST, INTERNAL, UNAVAILABLE)
)


EXAMPLE: dict[str, Any] = {
    "batch": {
        "summary": "Two commands",
        "value": {"jobs": [EXAMPLES["command"]["value"], {"command": ["true"]}]},
    }
}


@router.post(
    "/v1/jobs:batch",
    summary="Submit many jobs",
    responses={
        200: {
            "description": "What became of each",
            "content": json_body(BatchAnswer),
            "headers": RATE_HEADERS,
        },
        **documented(BODY_TIMEOUT, BODY_TOO_LARGE, UNSUPPORTED_MEDIA, INVALID_REQUEST),
    },
    openapi_extra={"requestBody": {"required": True, "content": json_body(Batch, EXAMPLE)}},
)
async def submit_batch(
    request: Request, caller: Submitter, idempotency_key: IdempotencyKey = None
) -> Response:
    """Hands in up to 100 jobs. Each stands alone: some may be refused while others are accepted.

    With an `Idempotency-Key` K, job n (from 0) has the key `K/n`: after an answer that was lost, or a 503 in the
    middle, the same call gives the jobs that there are already and makes those that are missing. The bounds of a
    body are those of one job.
    """
    services = services_of(request)
    async with services.bodies.read(request) as body:
        limiter = services.large_bodies if len(body) > LARGE_BODY else None
        answer, rate = await to_thread.run_sync(
            _submit_all, services, caller, body, idempotency_key, limiter=limiter
        )
        del body
    return Response(answer.model_dump_json(), headers=rate, media_type="application/json")


def _submit_all(
    services: Services, caller: Identity, body: bytes, key: str | None
) -> tuple[BatchAnswer, dict[str, str]]:
    """What became of each job, and the header fields that say what may still be handed in."""
    with services.refusals.noted(caller):
        jobs = _jobs_of(body)
    items: list[AcceptedItem | RefusedItem] = []
    rate: dict[str, str] = {}
    for number, job in enumerate(jobs):
        item, told = _submit_one(
            services, caller, json.dumps(job).encode(), None if key is None else f"{key}/{number}"
        )
        items.append(item)
        rate |= told
    return BatchAnswer.model_construct(items=tuple(items)), rate


def _submit_one(
    services: Services, caller: Identity, body: bytes, key: str | None
) -> tuple[AcceptedItem | RefusedItem, dict[str, str]]:
    try:
        submitted = submit(services, caller, body, key)
    except ProblemError as error:
        if error.kind is UNAUTHENTICATED:
            raise
        rate = {name: value for name, value in error.headers.items() if name in RATE_HEADERS}
        wait = error.headers.get("Retry-After")
        after = int(wait) if wait else None
        return RefusedItem(status=error.kind.status, problem=error.problem, retry_after=after), rate
    status: Literal[200, 201] = 200 if submitted.again else 201
    return AcceptedItem.model_construct(status=status, job=shown_to(caller, submitted.job)), submitted.rate


def _jobs_of(body: bytes) -> tuple[Any, ...]:
    """The jobs of a batch, not yet looked at."""
    parse(body)  # refuses what has more than one meaning
    try:
        return Batch.model_validate_json(body).jobs
    except ValidationError as error:
        raise invalid(violations(error, Batch)) from None
