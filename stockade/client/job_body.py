"""Job bodies: what a caller says of a job, as the body of a request.

Nothing is judged here: the service says what is wrong, all at once and in the words of its own version.
"""

from base64 import b64encode
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Literal, TypedDict

from pydantic import BaseModel
from pydantic_core import to_json

from jobs.spec import File, JobSpec, Step
from policies.limits import LimitsRequest
from policies.priority import Priority

JobLike = Sequence[str] | Step | JobSpec | Mapping[str, Any]
"""One command, by its arguments or as a `Step`; or a whole job, as a `JobSpec` or as the JSON object that it is."""
Files = Mapping[str, str | bytes] | Sequence[File | Mapping[str, Any]]
"""Files for the workspace: contents by path; or one by one, where the mode is to be said."""


class JobFields(TypedDict, total=False):
    """What may be said of a job beside its command; see `JobSpec` and `Step` for what each means."""

    image: str
    policy: str
    files: Files
    outputs: Sequence[str]
    labels: Mapping[str, str]
    pool: str
    priority: Priority | Literal["low", "normal", "high"]
    max_queue_time: float | str
    deadline: datetime | str
    stdin: str | bytes
    env: Mapping[str, str]
    cwd: str
    limits: LimitsRequest | Mapping[str, int | float | str]
    on_output_limit: Literal["truncate", "kill"]


_OF_THE_STEP = ("stdin", "env", "cwd", "limits", "on_output_limit")


def document(job: JobLike, fields: JobFields) -> dict[str, Any]:
    """The JSON object of a job: what is said of it in `fields` goes over what it says itself."""
    more: dict[str, Any] = dict(fields)
    of_the_step = {name: _plain(more.pop(name)) for name in _OF_THE_STEP if name in more}
    if isinstance(of_the_step.get("stdin"), bytes):
        of_the_step["stdin"] = {"base64": b64encode(of_the_step["stdin"]).decode()}
    if "files" in more:
        more["files"] = _files(more["files"])
    said = _whole(job)
    if of_the_step:
        said["command"] = _step(said.get("command")) | of_the_step
    return said | more


def encoded(document: Mapping[str, Any]) -> bytes:
    """A JSON object as the bytes of a body."""
    return to_json(document)


def _whole(job: JobLike) -> dict[str, Any]:
    if isinstance(job, str | bytes):
        raise TypeError(f"a command is a list of arguments, not one text; no shell reads it: {job!r}")
    if isinstance(job, Step):
        return {"command": _plain(job)}
    if isinstance(job, JobSpec | Mapping):
        return dict(_plain(job))
    return {"command": list(job)}


def _step(command: Any) -> dict[str, Any]:
    if command is None:
        names = ", ".join(_OF_THE_STEP)
        raise TypeError(f"{names} are said of the only command of a job; of steps, each says its own")
    return dict(command) if isinstance(command, Mapping) else {"argv": list(command)}


def _files(files: Files) -> list[Any]:
    if not isinstance(files, Mapping):
        return [_plain(file) for file in files]
    return [{"path": path, **_content(content)} for path, content in files.items()]


def _content(content: str | bytes) -> dict[str, str]:
    return {"text": content} if isinstance(content, str) else {"base64": b64encode(content).decode()}


def _plain(value: Any) -> Any:
    """A model as the object that says what was said to make it, without defaults."""
    return value.model_dump(mode="json", exclude_unset=True) if isinstance(value, BaseModel) else value
