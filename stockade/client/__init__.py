"""The Python client of the API, for programs that block and for those with an event loop.

    from stockade.client import Client

    with Client("http://127.0.0.1:8000", key) as client:
        job = client.run(["python3", "-c", "print(6 * 7)"])
        print(job.outcome.kind, job.steps[0].stdout.text)

`Client` and `AsyncClient` have the same methods, which are described once: `call` has each request and what
reads its answer, `plan` the conversations of several requests, `retry` when something is tried again; `driver`
carries them out, blocking or in an event loop. The models are those of the service (`jobs`, `policies`).
"""

from jobs.job import JobState
from jobs.job_event import Event, FinishedEvent, GapEvent, OutputEvent, StateEvent, Stream
from jobs.job_list import JobSummary
from jobs.job_view import ArtifactList, JobView
from jobs.outcome import Artifact, Outcome, OutcomeKind, StepResult
from jobs.problem import Problem
from jobs.spec import File, JobSpec, Step
from policies.violation import Violation
from stockade.client.blocking import Client
from stockade.client.errors import (
    ApiError,
    ConfigurationError,
    Corrupt,
    Forbidden,
    IdempotencyMismatch,
    InvalidRequest,
    NotAdmitted,
    NotFinished,
    NotFound,
    NotInTime,
    OverBudget,
    StockadeError,
    Unauthenticated,
    Unavailable,
    UnexpectedAnswer,
    Unreachable,
)
from stockade.client.in_loop import AsyncClient

__all__ = [
    "ApiError",
    "Artifact",
    "ArtifactList",
    "AsyncClient",
    "Client",
    "ConfigurationError",
    "Corrupt",
    "Event",
    "File",
    "FinishedEvent",
    "Forbidden",
    "GapEvent",
    "IdempotencyMismatch",
    "InvalidRequest",
    "JobSpec",
    "JobState",
    "JobSummary",
    "JobView",
    "NotAdmitted",
    "NotFinished",
    "NotFound",
    "NotInTime",
    "Outcome",
    "OutcomeKind",
    "OutputEvent",
    "OverBudget",
    "Problem",
    "StateEvent",
    "Step",
    "StepResult",
    "StockadeError",
    "Stream",
    "Unauthenticated",
    "Unavailable",
    "UnexpectedAnswer",
    "Unreachable",
    "Violation",
]
