"""The list of a project's jobs."""

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from pydantic import StringConstraints

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
from jobs.job import JobState
from jobs.job_list import JobList
from jobs.listing import PAGE_MAX, Cursor, JobFilter, list_jobs
from jobs.spec import LABELS_MAX
from policies.violation import Violation, shown

LIMIT = 50  # jobs of a page unless the caller says otherwise

Label = Annotated[str, StringConstraints(pattern="^[^:]{1,63}:.{0,128}$")]

router = APIRouter(
    tags=["jobs"], responses=documented(UNAUTHENTICATED, FORBIDDEN, INVALID_REQUEST, INTERNAL, UNAVAILABLE)
)


@router.get(
    "/v1/jobs",
    summary="List jobs",
    responses={
        200: {"description": "A page of the project's jobs", "content": json_body(JobList)},
        **documented(INVALID_REQUEST),
    },
)
def get_jobs(
    request: Request,
    caller: Reader,
    limit: Annotated[int, Query(ge=1, le=PAGE_MAX, description="Jobs of a page.")] = LIMIT,
    cursor: Annotated[
        str | None, Query(description="`next` of a page, for the page after it.", max_length=128)
    ] = None,
    state: Annotated[
        list[JobState] | None, Query(description="Only jobs in this state, or in any of these.")
    ] = None,
    label: Annotated[
        list[Label] | None,
        Query(
            description="Only jobs with this label, `NAME:VALUE`, or with all of these.",
            max_length=LABELS_MAX,
            examples=[["course:algorithms-1"]],
        ),
    ] = None,
    created_after: Annotated[Instant | None, Query(description="Only jobs created then or later.")] = None,
    created_before: Annotated[Instant | None, Query(description="Only jobs created before.")] = None,
) -> Response:
    """The newest first. Every job that stays while pages are fetched is on exactly one of them.

    With filters that few jobs meet, a page may be short, or empty, and still have a `next`.
    """
    wanted = JobFilter(
        states=frozenset(state or ()),
        labels=[(name, value) for name, _, value in (each.partition(":") for each in label or ())],
        since=created_after,
        until=created_before,
    )
    place = None if cursor is None else _parsed(cursor)
    found = list_jobs(services_of(request).store.redis, caller.id, wanted, limit=limit, cursor=place)
    return Response(found.model_dump_json(), media_type="application/json")


def _parsed(cursor: str) -> Cursor:
    try:
        return Cursor.parse(cursor)
    except ValueError as error:
        wrong = Violation(field="cursor", got=shown(cursor), allowed=str(error), message=f"must be {error}")
        raise invalid((wrong,)) from None
