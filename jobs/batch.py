"""Batch: jobs that are handed in together, and what became of each."""

from typing import Annotated, Any, Literal

from pydantic import Field, WrapValidator

from jobs.job_view import JobView
from jobs.problem import Problem
from jobs.spec import JobSpec
from policies.model import Frozen

BATCH_MAX = 100
"""The most jobs of one batch."""


def _as_it_is(job: Any, _: Any) -> Any:
    """Let a job through unread: each is read alone, so that one that is wrong is no fault of the others."""
    return job


class Batch(Frozen):
    """Jobs that are handed in together."""

    jobs: tuple[Annotated[JobSpec, WrapValidator(_as_it_is)], ...] = Field(
        min_length=1, max_length=BATCH_MAX, description="The jobs, each as the body of `POST /v1/jobs`."
    )


class AcceptedItem(Frozen):
    """A job of a batch that was accepted."""

    status: Literal[200, 201] = Field(
        description="201; or 200 for the job of an earlier call with the same `Idempotency-Key`."
    )
    job: JobView = Field(description="The job.")


class RefusedItem(Frozen):
    """A job of a batch that was refused."""

    status: int = Field(description="The status that it would have had alone: 422 or 429.")
    problem: Problem = Field(description="Why.")
    retry_after: int | None = Field(
        default=None, description="Seconds after which it is worth trying again, where the status is 429."
    )


class BatchAnswer(Frozen):
    """What became of each job of a batch."""

    items: tuple[AcceptedItem | RefusedItem, ...] = Field(description="One for each job, in their order.")
