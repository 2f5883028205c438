"""The body that asks for a job: what it may be, its examples, and when two of them ask for the same."""

import json
from typing import Any

from pydantic import ValidationError

from api.body import parse
from api.problems import invalid
from jobs.spec import JobSpec
from policies.violation import Violation, violations

LARGE_BODY = 256 * 1024  # bytes; larger ones are parsed one at a time, which bounds the memory that it takes

EXAMPLES: dict[str, Any] = {
    "command": {
        "summary": "One command",
        "value": {"command": ["python3", "-c", "print(6 * 7)"]},
    },
    "steps": {
        "summary": "Compile, then run on some input, and keep a file",
        "value": {
            "files": [
                {
                    "path": "count.c",
                    "text": "#include <stdio.h>\nint main(void) { return getchar() == EOF; }\n",
                }
            ],
            "steps": [
                {"name": "compile", "argv": ["gcc", "-O2", "-o", "count", "count.c"]},
                {
                    "name": "run",
                    "argv": ["./count"],
                    "stdin": "some input",
                    "limits": {"memory": "32MiB", "cpu_time": "500ms"},
                },
            ],
            "outputs": ["count"],
        },
    },
}


def read_spec(body: bytes) -> JobSpec:
    """The job that a request body asks for, of valid shape.

    Raises:
        ProblemError: 422, with every field at fault.
    """
    return spec_of(body, parse(body))


def spec_of(body: bytes, document: object) -> JobSpec:
    """The same of a body that has been parsed: pydantic reads the bytes again, strictly."""
    try:
        return JobSpec.model_validate_json(body)
    except ValidationError as error:
        raise invalid(tuple(_as_written(found, document) for found in violations(error, JobSpec))) from None


def canonical(document: object) -> bytes:
    """The same bytes for the same document, however it was written."""
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()


def _as_written(found: Violation, document: object) -> Violation:
    """The violation in the caller's notation: `command` may be given as its `argv` alone."""
    short = isinstance(document, dict) and isinstance(document.get("command"), list)
    if not short or not found.field.startswith("command.argv"):
        return found
    return found.model_copy(update={"field": "command" + found.field.removeprefix("command.argv")})
