"""A job as its owner sees it: everything that became of it, without repeating what was sent."""

from pydantic import AwareDatetime, Field

from jobs.job import Job, JobState
from jobs.outcome import Artifact, ArtifactError, Outcome, StepResult
from policies.admission import Admission
from policies.model import Frozen
from policies.priority import Priority


class JobView(Frozen):
    """One job: where it is, under what limits it runs, and how it went."""

    id: str = Field(description="Identifier, for its address `/v1/jobs/ID`.")
    state: JobState = Field(description="Where it is on its way; `finished` is for ever.")
    attempt: int = Field(
        description="How often its execution was begun; more than once only where we failed."
    )
    created_at: AwareDatetime = Field(description="When it was accepted.")
    started_at: AwareDatetime | None = Field(description="When its execution began; null before.")
    finished_at: AwareDatetime | None = Field(description="When it was finished; null before.")
    expires_at: AwareDatetime | None = Field(
        description="When it is deleted, by the retention of its policy; null until it is finished."
    )
    labels: dict[str, str] = Field(description="Its labels.")
    pool: str = Field(description="The kind of worker that it runs on.")
    priority: Priority = Field(description="Which of the project's own jobs go first.")
    deadline: AwareDatetime | None = Field(
        description="When it must have ended; null where it has no deadline."
    )
    queue_position: int | None = Field(
        description="While it waits for its turn: how many jobs of the same project and pool go before it."
        " Null once it has been given to the workers, and when it is finished."
    )
    admission: Admission = Field(description="The policy, the image, and the limits of every step.")
    outcome: Outcome | None = Field(
        description="Why it ended: the outcome of the last step that ran; null until it is finished."
    )
    steps: tuple[StepResult, ...] = Field(
        description="The steps that ran, in order; empty until it is finished."
    )
    artifacts: tuple[Artifact, ...] = Field(description="The files that were collected.")
    artifact_errors: tuple[ArtifactError, ...] = Field(
        description="The files that matched `outputs` and were not collected."
    )

    @property
    def finished(self) -> bool:
        """Whether it has come to its end."""
        return self.state is JobState.FINISHED


class ArtifactList(Frozen):
    """What became of the files that a job's `outputs` name."""

    artifacts: tuple[Artifact, ...] = Field(description="The files that were collected.")
    artifact_errors: tuple[ArtifactError, ...] = Field(
        description="Those that matched and were not collected."
    )


def view(job: Job, position: int | None = None) -> JobView:
    """The job as its owner sees it. It does not hold on to the job's files, which may be many megabytes.

    `position`: how many jobs go before it; None when it has been released.
    """
    result = job.result
    return JobView.model_construct(
        id=job.id,
        state=job.state,
        attempt=job.attempt,
        created_at=job.created_at,
        started_at=job.started_at,
        finished_at=job.finished_at,
        expires_at=job.expires_at,
        labels=job.spec.labels,
        pool=job.admission.pool,
        priority=job.admission.priority,
        deadline=job.spec.deadline,
        queue_position=position,
        admission=job.admission,
        outcome=result.outcome if result else None,
        steps=result.steps if result else (),
        artifacts=result.artifacts if result else (),
        artifact_errors=result.artifact_errors if result else (),
    )
