"""The audit log of the caller's project: who was let in or refused, and who changed its keys."""

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from api.auth import Admin
from api.documentation import json_body
from api.problems import (
    FORBIDDEN,
    INTERNAL,
    INVALID_REQUEST,
    UNAUTHENTICATED,
    UNAVAILABLE,
    documented,
    invalid,
)
from api.services import services_of
from jobs import audit
from jobs.instant import Instant
from policies.violation import Violation, shown

LIMIT = 50  # entries of a page unless the caller says otherwise

router = APIRouter(
    tags=["audit"], responses=documented(UNAUTHENTICATED, FORBIDDEN, INVALID_REQUEST, INTERNAL, UNAVAILABLE)
)


@router.get(
    "/v1/audit",
    summary="Read the audit log",
    responses={
        200: {"description": "A page of the log", "content": json_body(audit.Page)},
        **documented(INVALID_REQUEST),
    },
)
def get_audit(
    request: Request,
    caller: Admin,
    cursor: Annotated[
        str | None, Query(description="`next_cursor` of a page, for the page after it.", max_length=64)
    ] = None,
    action: Annotated[
        str | None,
        Query(
            description="Only this action, or all that begin with it and a point.",
            pattern=r"^[a-z_.]{1,128}$",
            examples=["job", "job.refused"],
        ),
    ] = None,
    since: Annotated[Instant | None, Query(alias="from", description="Only from then on.")] = None,
    until: Annotated[Instant | None, Query(alias="to", description="Only before then.")] = None,
    limit: Annotated[int, Query(ge=1, le=audit.PAGE_MAX, description="Entries of a page.")] = LIMIT,
) -> Response:
    """The latest entries first; of each project about 10,000 about jobs are kept, and 10,000 others."""
    redis = services_of(request).store.redis
    try:
        page = audit.page(
            redis, caller.id, limit=limit, cursor=cursor, action=action, since=since, until=until
        )
    except audit.CursorError as error:
        wrong = Violation(field="cursor", got=shown(cursor), allowed=str(error), message=f"must be {error}")
        raise invalid((wrong,)) from None
    return Response(page.model_dump_json(), media_type="application/json")
