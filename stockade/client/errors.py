"""Errors: everything that a client raises, each a `StockadeError`.

What the API says no with is an `ApiError` that carries the problem document; its kinds have classes of their own.
No message, and no value of an error, holds the API key.
"""

from typing import ClassVar

from jobs.job_view import JobView
from jobs.problem import URN, Problem
from policies.violation import Violation, sentence


class StockadeError(Exception):
    """Anything that went wrong between a client and the service."""


class ConfigurationError(StockadeError):
    """The address or the key of the service is missing, or cannot be used."""


class Unreachable(StockadeError):
    """No answer came, for as long as the client had patience. Whether a request arrived is not known."""


class UnexpectedAnswer(StockadeError):
    """Something answered that is not the API of Stockade, or one that this client does not understand."""


class Corrupt(StockadeError):
    """What was downloaded is not what the service has: the SHA-256 differs."""


class NotInTime(StockadeError, TimeoutError):
    """The job was not finished within the time that the caller gave it. It goes on; `job` is how it was."""

    def __init__(self, job: JobView, timeout: float) -> None:
        super().__init__(f"job {job.id} has not finished within {timeout:g} s: it is {job.state}")
        self.job = job


class ApiError(StockadeError):
    """The API said no; the message has what it said, and a line for each field at fault."""

    kind: ClassVar[str | None] = None

    def __init__(self, problem: Problem, retry_after: float | None = None) -> None:
        lines = [f"{problem.title}: {problem.detail}", *map(sentence, problem.errors)]
        super().__init__("\n  ".join(lines))
        self.problem = problem
        self.retry_after = retry_after
        """Seconds after which it may be worth another try; None when the service did not say."""

    def __reduce__(self) -> tuple[type["ApiError"], tuple[Problem, float | None]]:
        return type(self), (self.problem, self.retry_after)

    @property
    def status(self) -> int:
        """The status of the answer."""
        return self.problem.status

    @property
    def violations(self) -> tuple[Violation, ...]:
        """Every field at fault, with what it got and what is allowed."""
        return self.problem.errors


class Unauthenticated(ApiError):
    """The key is not known, has expired or was revoked."""

    kind = "unauthenticated"


class Forbidden(ApiError):
    """The key lacks the scope that this takes."""

    kind = "forbidden"


class NotFound(ApiError):
    """There is no such thing, or not any more, or it is another tenant's."""

    kind = "not-found"


class NotFinished(ApiError):
    """This can be had, or done, once the job has finished."""

    kind = "not-finished"


class InvalidRequest(ApiError):
    """The shape of the request; `violations` names each field."""

    kind = "invalid-request"


class NotAdmitted(ApiError):
    """The policy does not allow this job; `violations` names each field."""

    kind = "not-admitted"


class IdempotencyMismatch(ApiError):
    """The idempotency key was used before, with another job."""

    kind = "idempotency-mismatch"


class OverBudget(ApiError):
    """A budget of the project or of its organisation is used up; `retry_after` says for how long."""

    kind = "over-budget"

    @property
    def budget(self) -> str | None:
        """The name of the budget, such as "concurrent_jobs"."""
        fields = (each.field for each in self.violations)
        return next((field.removeprefix("budgets.") for field in fields), None)


class Unavailable(ApiError):
    """A part of the service cannot be reached; `problem.component` says which."""

    kind = "unavailable"


_KINDS = {each.kind: each for each in ApiError.__subclasses__()}


def error_of(problem: Problem, retry_after: float | None = None) -> ApiError:
    """The error, of the class of its kind, that a problem document is."""
    return _KINDS.get(problem.type.removeprefix(URN), ApiError)(problem, retry_after)
