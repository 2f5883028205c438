"""Explain: what would become of a job, value by value, without handing it in."""

from anyio import to_thread
from fastapi import APIRouter, Request, Response

from api.admission import explained
from api.auth import ReaderOrSubmitter
from api.documentation import json_body
from api.job_body import EXAMPLES, LARGE_BODY, read_spec
from api.problems import (
    BODY_TIMEOUT,
    BODY_TOO_LARGE,
    FORBIDDEN,
    INTERNAL,
    INVALID_REQUEST,
    UNAUTHENTICATED,
    UNAVAILABLE,
    UNSUPPORTED_MEDIA,
    documented,
)
from api.services import Services, services_of
from jobs.spec import JobSpec
from policies.explain import Explanation

router = APIRouter(
    tags=["policies"], responses=documented(UNAUTHENTICATED, INVALID_REQUEST, INTERNAL, UNAVAILABLE)
)


@router.post(
    "/v1/jobs:explain",
    summary="Explain what would become of a job",
    responses={
        200: {"description": "What would become of it, and why", "content": json_body(Explanation)},
        **documented(BODY_TIMEOUT, BODY_TOO_LARGE, UNSUPPORTED_MEDIA, INVALID_REQUEST, FORBIDDEN),
    },
    openapi_extra={"requestBody": {"required": True, "content": json_body(JobSpec, EXAMPLES)}},
)
async def explain_job(request: Request, caller: ReaderOrSubmitter) -> Response:
    """Takes what `POST /v1/jobs` takes and stores nothing.

    Says for each value which scope and rule set it, and whether the job would be admitted; if not, everything
    that the policy and the scopes above it do not allow.
    """
    services = services_of(request)
    async with services.bodies.read(request) as body:
        limiter = services.large_bodies if len(body) > LARGE_BODY else None
        explanation = await to_thread.run_sync(_explain, services, body, caller.id, limiter=limiter)
    return Response(explanation.model_dump_json(), media_type="application/json")


def _explain(services: Services, body: bytes, project: str) -> Explanation:
    return explained(services, read_spec(body), project)
