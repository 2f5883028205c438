"""The list of a project's jobs, as its owner sees it."""

from pydantic import AwareDatetime, Field

from jobs.job import JobState
from jobs.outcome import Outcome
from policies.model import Frozen


class JobSummary(Frozen):
    """One job, in a list."""

    id: str = Field(description="Identifier, for its address `/v1/jobs/ID`.")
    state: JobState = Field(description="Where it is on its way.")
    attempt: int = Field(description="How often its execution was begun.")
    created_at: AwareDatetime = Field(description="When it was accepted.")
    started_at: AwareDatetime | None = Field(description="When its execution began; null before.")
    finished_at: AwareDatetime | None = Field(description="When it was finished; null before.")
    labels: dict[str, str] = Field(description="Its labels.")
    policy: str = Field(description="The policy that it runs under.")
    pool: str = Field(description="The kind of worker that it runs on.")
    outcome: Outcome | None = Field(description="Why it ended; null until it is finished.")


class JobList(Frozen):
    """Some of a project's jobs."""

    jobs: tuple[JobSummary, ...] = Field(description="The jobs, newest first.")
    next: str | None = Field(
        description="Send this as `cursor` to get older ones; null when there are none. It may be set beside a"
        " page that is short, or empty."
    )
