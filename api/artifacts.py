"""Artifacts: the files that a job left and that it was asked to keep."""

from typing import Annotated

from fastapi import APIRouter, Path, Request, Response
from starlette.convertors import PathConvertor, register_url_convertor

from api.auth import Reader
from api.documentation import json_body, raw_body
from api.downloads import download, finished_result
from api.jobs import JobId
from api.problems import (
    FORBIDDEN,
    INTERNAL,
    INVALID_REQUEST,
    NOT_FINISHED,
    NOT_FOUND,
    UNAUTHENTICATED,
    UNAVAILABLE,
    documented,
    not_found,
)
from api.services import services_of
from jobs.job_view import ArtifactList


class AnyPath(PathConvertor):
    """The rest of an address, line breaks included, which Starlette's own `path` stops at."""

    regex = r"[\s\S]*"


register_url_convertor("any", AnyPath())
router = APIRouter(
    tags=["artifacts"],
    responses=documented(UNAUTHENTICATED, FORBIDDEN, INVALID_REQUEST, INTERNAL, UNAVAILABLE),
)


@router.get(
    "/v1/jobs/{job_id}/artifacts",
    summary="List a job's artifacts",
    responses={
        200: {"description": "The artifacts", "content": json_body(ArtifactList)},
        **documented(NOT_FOUND, NOT_FINISHED),
    },
)
def list_artifacts(request: Request, caller: Reader, job_id: JobId) -> Response:
    """Path, size, digest and mode of every file that was kept."""
    result = finished_result(request, caller, job_id)
    answer = ArtifactList(artifacts=result.artifacts, artifact_errors=result.artifact_errors)
    return Response(answer.model_dump_json(), media_type="application/json")


@router.get(
    "/v1/jobs/{job_id}/artifacts/{path:any}",
    summary="Download an artifact",
    responses={
        200: {
            "description": "The file's content, exactly, as an attachment",
            "content": raw_body(),
            "headers": {
                "ETag": {
                    "description": "SHA-256 of the content, hexadecimal, quoted",
                    "schema": {"type": "string"},
                }
            },
        },
        **documented(NOT_FOUND, NOT_FINISHED),
    },
)
def get_artifact(
    request: Request,
    caller: Reader,
    job_id: JobId,
    path: Annotated[
        str, Path(description="The artifact's `path`; a slash in it stays a slash.", examples=["report.txt"])
    ],
) -> Response:
    """The content of one file. Paths are names in the list of artifacts, not places on any disk."""
    result = finished_result(request, caller, job_id)
    artifact = next((artifact for artifact in result.artifacts if artifact.path == path), None)
    content = services_of(request).store.get_artifact(job_id, path) if artifact else None
    if artifact is None or content is None:
        raise not_found("The job left no such artifact.")
    return download(content, path.rpartition("/")[2], {"ETag": f'"{artifact.sha256}"'})
