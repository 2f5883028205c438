"""Outputs: what a step wrote to stdout and stderr, byte for byte."""

from typing import Annotated, Any

from fastapi import APIRouter, Path, Request, Response

from api.auth import Reader
from api.documentation import raw_body
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
from jobs.job import JobResult
from jobs.outcome import Output, StepResult

StepIndex = Annotated[
    int, Path(description="Which step: its index in the job's `steps`, from 0.", examples=[0])
]

RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "What was kept, exactly",
        "content": raw_body(),
        "headers": {
            "Stockade-Bytes-Written": {
                "description": "How many bytes the program wrote, kept or not.",
                "schema": {"type": "integer"},
            },
            "Stockade-Bytes-Omitted": {
                "description": "Only where the middle was dropped: how many bytes, and after which offset.",
                "schema": {"type": "string"},
                "example": "1048576 after 32768",
            },
        },
    },
    **documented(NOT_FOUND, NOT_FINISHED),
}

router = APIRouter(
    tags=["outputs"], responses=documented(UNAUTHENTICATED, FORBIDDEN, INVALID_REQUEST, INTERNAL, UNAVAILABLE)
)


@router.get(
    "/v1/jobs/{job_id}/steps/{step:int}/stdout", summary="Get a step's standard output", responses=RESPONSES
)
def get_stdout(request: Request, caller: Reader, job_id: JobId, step: StepIndex) -> Response:
    """The bytes that the step wrote to standard output, as far as they were kept."""
    return _answer(_step(finished_result(request, caller, job_id), step).stdout, f"{job_id}-{step}.stdout")


@router.get(
    "/v1/jobs/{job_id}/steps/{step:int}/stderr", summary="Get a step's standard error", responses=RESPONSES
)
def get_stderr(request: Request, caller: Reader, job_id: JobId, step: StepIndex) -> Response:
    """The bytes that the step wrote to standard error, as far as they were kept."""
    return _answer(_step(finished_result(request, caller, job_id), step).stderr, f"{job_id}-{step}.stderr")


def _step(result: JobResult, index: int) -> StepResult:
    if index >= len(result.steps):
        raise not_found(f"The job has ended without a step {index}; {len(result.steps)} ran, the first is 0.")
    return result.steps[index]


def _answer(output: Output, name: str) -> Response:
    headers = {"Stockade-Bytes-Written": str(output.bytes)}
    if output.omitted:
        headers["Stockade-Bytes-Omitted"] = f"{output.omitted.bytes} after {output.omitted.at}"
    return download(output.data, name, headers)
