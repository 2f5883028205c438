"""Bytes that a job made, on their way out: never shown or run by a browser, never changed."""

from urllib.parse import quote

from fastapi import Request, Response

from api.auth import Identity
from api.jobs import find
from api.problems import NOT_FINISHED, ProblemError
from api.services import services_of
from jobs.job import JobResult

SAFE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; sandbox",
    "X-Content-Type-Options": "nosniff",
}


def finished_result(request: Request, caller: Identity, job_id: str) -> JobResult:
    """How the caller's job went.

    Raises:
        ProblemError: 404 when the caller has no such job, 409 while it has not finished.
    """
    job = find(services_of(request), job_id, caller)
    if job.result is None:
        raise ProblemError(
            NOT_FINISHED, f"The job is {job.state}; there is something to fetch once it is finished."
        )
    return job.result


def download(content: bytes, name: str, headers: dict[str, str] | None = None) -> Response:
    """An attachment of this name (RFC 6266), as `application/octet-stream`."""
    disposition = f"attachment; filename*=UTF-8''{quote(name, safe='')}"
    return Response(
        content,
        media_type="application/octet-stream",
        headers={"Content-Disposition": disposition, **SAFE_HEADERS, **(headers or {})},
    )
