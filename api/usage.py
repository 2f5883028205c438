"""Usage: what the caller's project used, hour by hour or day by day, for bills and spreadsheets."""

from datetime import UTC, datetime
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request, Response

from api.auth import Reader
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
from jobs.instant import Instant
from jobs.usage import SpanError, UsageReport, Window, as_csv, span, used
from policies.violation import Violation, shown

router = APIRouter(
    tags=["usage"], responses=documented(UNAUTHENTICATED, FORBIDDEN, INVALID_REQUEST, INTERNAL, UNAVAILABLE)
)


Step = Annotated[Window, Query(description="The length of each window: `hour` (8 days back) or `day` (400).")]
From = Annotated[
    Instant | None,
    Query(
        alias="from", description="Only windows that end after this. Default: a day (hours), 30 days (days)."
    ),
]
To = Annotated[
    Instant | None, Query(alias="to", description="Only windows that begin before this. Default: now.")
]


@router.get(
    "/v1/usage",
    summary="Export the usage",
    responses={
        200: {
            "description": "What was used, window by window",
            "content": {**json_body(UsageReport), "text/csv": {"schema": {"type": "string"}}},
        },
        **documented(INVALID_REQUEST),
    },
)
def get_usage(
    request: Request,
    caller: Reader,
    since: From = None,
    until: To = None,
    step: Step = Window.DAY,
    format_: Annotated[
        Literal["json", "csv"], Query(alias="format", description="How the export is written.")
    ] = "json",
) -> Response:
    """Jobs, CPU seconds, GB-seconds of memory, seconds of running and bytes of artifacts of the key's project.

    Windows are hours or days of UTC; a job counts where it ended. Windows in which nothing was used are left out.
    """
    try:
        asked = span(step, since, until, datetime.now(UTC))
    except SpanError as error:
        got = shown(request.query_params.get(error.field))
        wrong = Violation(field=error.field, got=got, allowed=str(error), message=f"must be {error}")
        raise invalid((wrong,)) from None
    report = used(services_of(request).store.redis, caller.id, caller.tenant.name, asked)
    if format_ == "csv":
        headers = {"Content-Disposition": 'attachment; filename="usage.csv"'}
        return Response(as_csv([report]), media_type="text/csv", headers=headers)
    return Response(report.model_dump_json(by_alias=True), media_type="application/json")
