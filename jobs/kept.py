"""What is kept of a request after its job has ended: all but the contents of files and standard input.

Nobody is shown these any more, and they may be many megabytes of Redis' memory for as long as the job's retention.
The sizes of the files are kept beside, for admission under another policy.
"""

import json
from typing import Any, NamedTuple

from jobs.spec import Content, JobSpec, Step

CONTENTS_MIN = 1024
"""Bytes below which the contents stay: less is not worth a second form of the request."""
_NOTHING = Content(text="")


class _Measured(NamedTuple):
    """A file of which the path and the size are known."""

    path: str
    size: int


def without_contents(spec: JobSpec) -> tuple[str, str]:
    """The request without contents, and the sizes of its files, both as JSON; "" twice where all of it is kept."""
    sizes = [file.size for file in spec.files]
    if sum(sizes) + sum(step.stdin.size for step in spec.sequence) < CONTENTS_MIN:
        return "", ""
    changes: dict[str, Any] = {}
    if spec.files:
        changes["files"] = tuple(file.model_copy(update={"text": "", "base64": None}) for file in spec.files)
    if spec.command is not None:
        changes["command"] = _without_input(spec.command)
    if spec.steps is not None:
        changes["steps"] = tuple(_without_input(step) for step in spec.steps)
    return spec.model_copy(update=changes).model_dump_json(exclude_unset=True), json.dumps(sizes)


def as_asked(spec: bytes, sizes: bytes | None) -> JobSpec:
    """The request as admission saw it, of what is stored; for nothing but admission.

    Raises pydantic.ValidationError when it is none of this version.
    """
    found = JobSpec.model_validate_json(spec)
    if sizes is None:
        return found
    files = (_Measured(file.path, size) for file, size in zip(found.files, json.loads(sizes), strict=True))
    return found.model_copy(update={"files": tuple(files)})


def _without_input(step: Step) -> Step:
    return step.model_copy(update={"stdin": _NOTHING}) if step.stdin.size else step
