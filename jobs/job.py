"""Job: the durable record of what was asked and what became of it; Attempt: one execution; Tenant: whose."""

from enum import StrEnum
from typing import Annotated

from annotated_types import Ge, Le
from pydantic import AwareDatetime, Field, Strict

from jobs.budgets import Budgets
from jobs.outcome import Artifact, ArtifactError, Outcome, StepResult
from jobs.spec import JobSpec
from policies.admission import Admission
from policies.model import Frozen

ATTEMPTS_MAX = 3
"""Executions that may fail for reasons of ours before a job ends with `sandbox_error` or `worker_lost`."""


class JobState(StrEnum):
    """Where a job is on its way: queued, running, finished; or asked to stop and not there yet."""

    QUEUED = "queued"
    RUNNING = "running"
    CANCELLING = "cancelling"
    FINISHED = "finished"


class Tenant(Frozen):
    """Who is charged, limited and kept apart from others: an organisation, or a project of one.

    A project owns API keys and jobs; what is set for an organisation holds for all of its projects.
    """

    id: str = Field(description="Identifier, unchanging.")
    name: str = Field(description='Name for people: "acme", or "acme/grader" for a project.')
    parent: str | None = Field(
        default=None, description="Identifier of the project's organisation; null for an organisation."
    )
    weight: Annotated[float, Ge(0.01), Le(1000)] = Field(
        default=1.0, description="Share of the slots while others want them too, relative to theirs."
    )
    budgets: Budgets = Field(default=Budgets(), description="How much it may have and use.")
    bounds: str = Field(default="{}", description="What policies may allow it at most: a JSON object.")
    created_at: AwareDatetime = Field(description="When it was made.")


class JobResult(Frozen):
    """How a job went, once it is finished."""

    outcome: Outcome = Field(description="Why the job ended: the outcome of the last step that ran.")
    steps: tuple[StepResult, ...] = Field(default=(), description="The steps that ran, in order.")
    artifacts: tuple[Artifact, ...] = Field(default=(), description="The files that were collected.")
    artifact_errors: tuple[ArtifactError, ...] = Field(
        default=(), description="The files that matched `outputs` and were not collected."
    )


class Job(Frozen):
    """One job: what was asked, under which policy, and where it is."""

    id: str = Field(description="Identifier.")
    tenant: str = Field(description="Identifier of the tenant whose it is.")
    state: JobState = Field(description="Where it is on its way.")
    spec: JobSpec = Field(
        description="What was asked; once it is finished, without the contents of files and standard input."
    )
    admission: Admission = Field(description="What the policy decided about it.")
    attempt: Annotated[int, Strict(), Ge(0)] = Field(
        default=0, description="How often its execution was begun; more than once only where we failed."
    )
    created_at: AwareDatetime = Field(description="When it was accepted.")
    started_at: AwareDatetime | None = Field(
        default=None, description="When its execution began; null before."
    )
    finished_at: AwareDatetime | None = Field(default=None, description="When it was finished; null before.")
    expires_at: AwareDatetime | None = Field(
        default=None, description="When its retention ends; null until it is finished."
    )
    result: JobResult | None = Field(default=None, description="How it went; null until it is finished.")

    @property
    def finished(self) -> bool:
        """Whether it has come to its end; it never leaves that state."""
        return self.state is JobState.FINISHED


class Attempt(Frozen):
    """One execution of a job by one worker, good as long as its lease.

    The token fences: what an attempt reports is refused once a later attempt has begun.
    """

    job: Job = Field(description="The job as it was claimed.")
    number: Annotated[int, Strict(), Ge(1)] = Field(description="Which execution of the job it is, from 1.")
    worker: str = Field(description="The worker that claimed it.")
    token: Annotated[int, Strict(), Ge(1)] = Field(description="Fencing token: grows with every claim.")
    lease_until: AwareDatetime = Field(description="When the lease ends unless it is renewed.")
