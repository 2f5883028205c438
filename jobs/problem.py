"""Problem: the body of every answer of the API with a status of 400 or above (RFC 9457)."""

from pydantic import ConfigDict, Field

from policies.model import Frozen
from policies.violation import Violation

URN = "urn:stockade:problem:"
"""What every `type` begins with; the name of the kind follows."""
MAX_ERRORS = 100
"""Fields at fault in one answer; nobody reads more."""


class Problem(Frozen):
    """The body of every answer with a status of 400 or above (RFC 9457)."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "type": f"{URN}invalid-request",
                    "title": "The request is not valid",
                    "status": 422,
                    "detail": "1 field is not valid: steps[0].limits.memory",
                    "errors": [
                        {
                            "field": "steps[0].limits.memory",
                            "got": -1,
                            "allowed": "at least 1048576",
                            "message": "must be at least 1048576",
                        }
                    ],
                }
            ]
        },
    )

    type: str = Field(description="What kind of problem this is, for programs: a URN that never changes.")
    title: str = Field(description="The same for people; one text for each `type`.")
    status: int = Field(description="The HTTP status code, repeated.")
    detail: str = Field(description="What is wrong with this very request, or with the service.")
    errors: tuple[Violation, ...] = Field(
        default=(), description=f"One entry for every field at fault, up to {MAX_ERRORS}."
    )
    component: str | None = Field(
        default=None, description="With 503: the part of the service that cannot be reached, such as `redis`."
    )
