"""Quota: what the caller may still use, and when it gets back what it has used."""

import math

from fastapi import APIRouter, Request, Response

from api.auth import Reader
from api.documentation import json_body
from api.problems import FORBIDDEN, INTERNAL, INVALID_REQUEST, UNAUTHENTICATED, UNAVAILABLE, documented
from api.services import services_of
from jobs.quota import Quota, quota

router = APIRouter(
    tags=["quota"], responses=documented(UNAUTHENTICATED, FORBIDDEN, INVALID_REQUEST, INTERNAL, UNAVAILABLE)
)


@router.get(
    "/v1/quota",
    summary="Get the quota",
    responses={200: {"description": "Every budget", "content": json_body(Quota)}},
)
def get_quota(request: Request, caller: Reader) -> Response:
    """Limit, use and reset of every budget of the key's project and of its organisation.

    A job that would not fit into one of them is refused with 429. A changed limit shows within five seconds.
    """
    found = quota(services_of(request).store.redis, caller.tenant, caller.organisation)
    return Response(found.model_dump_json(), media_type="application/json")


def rate_headers(limit: float, remaining: float, reset: float) -> dict[str, str]:
    """The header fields that tell a caller how many jobs it may hand in.

    Args:
        limit: how many a minute.
        remaining: how many are left now; what is left of one counts as none.
        reset: seconds until all of them are there again.
    """
    return {
        "RateLimit-Limit": str(math.floor(limit)),
        "RateLimit-Remaining": str(max(0, math.floor(remaining))),
        "RateLimit-Reset": str(max(0, math.ceil(reset))),
    }
