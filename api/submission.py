"""Submission: one job handed in, counted whether it is accepted or refused, and only once for one idempotency key."""

import math
from typing import Annotated, Any, NamedTuple

from fastapi import Header

from api.admission import admitted, watch
from api.auth import Identity, unknown_key
from api.body import parse
from api.job_body import canonical, spec_of
from api.problems import IDEMPOTENCY_MISMATCH, OVER_BUDGET, ProblemError
from api.quota import rate_headers
from api.services import Services
from jobs import audit
from jobs.job_view import JobView, view
from jobs.metrics import metrics
from jobs.store import (
    Accepted,
    BudgetExceededError,
    Idempotency,
    IdempotencyError,
    ProjectGoneError,
    Submits,
)
from policies.violation import Violation, shown

IDEMPOTENCY_KEY = "Idempotency-Key"
REPEATED = {"Idempotent-Replayed": "true"}
"""The header field of an answer that tells of a job of an earlier call."""

IdempotencyKey = Annotated[
    str | None,
    Header(
        alias=IDEMPOTENCY_KEY,
        min_length=1,
        max_length=255,
        pattern="^[ -~]+$",
        description="A name of the caller's own for this submission, in printable ASCII: sent again with the same"
        " body, it gives the job that there is already. It is remembered as long as that job.",
        examples=["1f0c8a52-hand-in-17"],
    ),
]

RATE_HEADERS: dict[str, Any] = {
    "RateLimit-Limit": {
        "description": "Where there is a budget `submits_per_minute`: jobs that may be handed in within a minute.",
        "schema": {"type": "integer"},
    },
    "RateLimit-Remaining": {
        "description": "How many of them are left now.",
        "schema": {"type": "integer"},
    },
    "RateLimit-Reset": {
        "description": "Seconds until all of them are there again.",
        "schema": {"type": "integer"},
    },
}
"""The OpenAPI description of `rate_headers`."""


class Submitted(NamedTuple):
    """A job that was handed in."""

    job: JobView
    again: bool
    """Whether it is that of an earlier call with the same idempotency key."""
    rate: dict[str, str]
    """Header fields: what may still be handed in."""


def submit(services: Services, caller: Identity, body: bytes, key: str | None) -> Submitted:
    """Store the job that `body` asks for; it goes its way by itself.

    Args:
        services: what it works with.
        caller: who asks.
        body: JSON of a `JobSpec`.
        key: the caller's idempotency key, if it sent one.

    Raises:
        ProblemError: 422, with everything that is wrong; 429 when a budget is used up.
    """
    with services.refusals.noted(caller):
        accepted = _accepted(services, caller, body, key)
    metrics.count("jobs_submitted_total", result="repeated" if accepted.again else "admitted")
    if not accepted.again:
        watch(services, accepted.job.spec, caller.id, accepted.job.id)
    position = services.store.position(accepted.job) if accepted.again else accepted.position
    return Submitted(view(accepted.job, position), accepted.again, _rate(accepted.submits))


def _accepted(services: Services, caller: Identity, body: bytes, key: str | None) -> Accepted:
    document = parse(body)
    spec = spec_of(body, document)
    idempotency = None if key is None else Idempotency(key, canonical(document))
    del document  # which may be many times as large as the body
    try:
        # A repetition is answered even when the policy would not admit the job any more.
        if idempotency and (earlier := services.store.recall(caller.id, idempotency)):
            return earlier
        admission = admitted(services, spec, caller.id)
        actor = audit.key_actor(caller.key_id)
        return services.store.create(spec, admission, caller.id, actor=actor, idempotency=idempotency)
    except BudgetExceededError as error:
        raise _over_budget(caller, error) from None
    except IdempotencyError:
        raise _mismatch(key) from None
    except ProjectGoneError:
        raise unknown_key() from None


def _over_budget(caller: Identity, error: BudgetExceededError) -> ProblemError:
    of_project = error.tenant == caller.id
    owner = f"project {caller.tenant.name}" if of_project else f"organisation {caller.organisation.name}"
    wait = max(1, math.ceil(error.retry_after))
    detail = f"The budget {error.budget} of the {owner} is used up; try again in {wait} s."
    message = f"{error.used:g} of {error.limit:g} are used"
    return ProblemError(
        OVER_BUDGET,
        detail,
        errors=(
            Violation(
                field=f"budgets.{error.budget}",
                got=_plain(error.used),
                allowed=_plain(error.limit),
                message=message,
            ),
        ),
        headers={"Retry-After": str(wait), **_rate(error.submits)},
    )


def _mismatch(key: str | None) -> ProblemError:
    message = "came before with another body, and that job is still kept"
    wrong = Violation(
        field=IDEMPOTENCY_KEY, got=shown(key), allowed="the same body, or a new key", message=message
    )
    return ProblemError(IDEMPOTENCY_MISMATCH, f"This {IDEMPOTENCY_KEY} {message}.", errors=(wrong,))


def _rate(submits: Submits | None) -> dict[str, str]:
    return rate_headers(submits.limit, submits.left, submits.reset) if submits else {}


def _plain(amount: float) -> int | float:
    return int(amount) if amount.is_integer() else amount
