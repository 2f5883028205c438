"""What of a job a caller may see."""

from api.auth import Identity
from jobs.job_view import JobView
from jobs.keys import Scope


def shown_to(caller: Identity, job: JobView) -> JobView:
    """The job without what it wrote and left, unless the caller's key may read that."""
    if Scope.READ in caller.scopes:
        return job
    return job.model_copy(update={"steps": (), "artifacts": (), "artifact_errors": ()})
