"""Jobs and attempts: records that survive being stored, with times that everybody reads alike."""

from datetime import UTC, datetime

import pytest
from pydantic import ValidationError

from jobs.job import Attempt, Job, JobResult, JobState
from jobs.outcome import Outcome, OutcomeKind
from jobs.spec import JobSpec
from policies.admission import admit
from policies.loader import load_policies

SPEC = JobSpec.model_validate({"command": ["/bin/true"]})
NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
JOB = Job(
    id="job_1",
    tenant="t",
    state=JobState.RUNNING,
    spec=SPEC,
    admission=admit(SPEC, load_policies()["default"]),
    created_at=NOW,
)


def test_a_job_survives_being_stored() -> None:
    """Written as JSON and read again it is the same job, its request and its admission included."""
    result = JobResult(
        outcome=Outcome(kind=OutcomeKind.EXITED, exit_code=0, message="It exited with status 0.")
    )
    finished = JOB.model_copy(update={"state": JobState.FINISHED, "finished_at": NOW, "result": result})
    assert Job.model_validate_json(finished.model_dump_json()) == finished
    assert finished.finished
    assert not JOB.finished


def test_times_are_in_utc() -> None:
    """A time is written as RFC 3339 in UTC, and one without a zone is refused."""
    assert '"created_at":"2026-01-02T03:04:05Z"' in JOB.model_dump_json()
    with pytest.raises(ValidationError, match="timezone"):
        Job.model_validate(JOB.model_dump() | {"created_at": datetime(2026, 1, 2)})


def test_an_attempt_carries_its_job_and_its_fence() -> None:
    """Numbers and tokens count from 1: zero is nobody's."""
    attempt = Attempt(job=JOB, number=1, worker="w", token=1, lease_until=NOW)
    assert attempt.job is JOB
    with pytest.raises(ValidationError):
        Attempt(job=JOB, number=1, worker="w", token=0, lease_until=NOW)
