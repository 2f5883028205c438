"""JobSpec: what is asked of the service, of valid shape.

A `JobSpec` that exists can be run: its paths stay inside the workspace, nothing in it holds a NUL, its
files can be written beside each other, and exactly one of two forms of everything that has two forms is
there. What a *policy* allows of it is another question: `policies.admission`.
"""

import binascii
import re
from typing import Annotated, Any, Literal, LiteralString, Self

from annotated_types import Gt, Le
from pydantic import (
    AfterValidator,
    AwareDatetime,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    Strict,
    StringConstraints,
    model_validator,
)
from pydantic_core import PydanticCustomError

from policies.admission import default_name
from policies.image_names import HOST_IMAGE
from policies.limits import LimitsRequest
from policies.model import Frozen
from policies.policy import FILES_BYTES_MAX, FILES_MAX, STEPS_MAX, Name
from policies.priority import Priority
from policies.units import AS_DURATION, DURATION_MAX, KIB

WORKSPACE = "/work"
"""Where the job's workspace is mounted inside the sandbox: working directory and HOME of every step."""
ARGV_MAX = 256
ENV_MAX = 256
ARGV_ENV_BYTES = 64 * KIB
"""Bytes of all arguments and environment variables of one step together, terminators included."""
OUTPUTS_MAX = 100
LABELS_MAX = 16
PATH_BYTES = 4095
"""Longest path that the kernel takes (PATH_MAX without its terminator)."""
PATH_DEPTH = 64
"""Most components of a path."""
NAME_BYTES = 255
"""Longest file name that the kernel takes (NAME_MAX)."""

MODE_PATTERN = "^0?[0-7]{3}$"
MODE_FORM = 'three octal digits as text, such as "0644" or "755"'


def _wrong(kind: LiteralString, message: str, allowed: str, field: str = "") -> PydanticCustomError:
    """Return the error whose message says what is wrong and whose context says what is allowed.

    `field` is the path, below the model that finds it, of the field at fault.
    """
    return PydanticCustomError(kind, "{message}", {"message": message, "allowed": allowed, "field": field})


def _without_nul(text: str) -> str:
    if "\0" in text:
        raise _wrong("nul", "must not contain a NUL character", "text without NUL")
    return text


def _relative(path: str) -> str:
    """Refuse a path that is not plainly below the workspace: absolute, `..`, `.`, empty components."""
    if "\0" in path:
        raise _wrong("path", "must not contain a NUL character", "a path without NUL")
    if path.startswith("/"):
        raise _wrong("path", "must be relative to the workspace, without a leading /", "a relative path")
    parts = path.split("/")
    if "" in parts or "." in parts or ".." in parts:
        message = 'must be a plain path: no component may be empty, "." or ".."'
        raise _wrong("path", message, 'a path such as "src/main.py"')
    if len(path.encode()) > PATH_BYTES or len(parts) > PATH_DEPTH:
        form = f"at most {PATH_BYTES} bytes and {PATH_DEPTH} components"
        raise _wrong("path", f"must have {form}", form)
    if any(len(part.encode()) > NAME_BYTES for part in parts):
        form = f"at most {NAME_BYTES} bytes in each component"
        raise _wrong("path", f"must have {form}", form)
    return path


def _working_directory(path: str) -> str:
    """Return the absolute form of a path relative to the workspace, or below it."""
    if path in ("", ".", WORKSPACE, WORKSPACE + "/"):
        return WORKSPACE
    below = path.removeprefix(WORKSPACE + "/")
    if below.startswith("/"):
        raise _wrong(
            "path", f"must be relative to the workspace or below {WORKSPACE}", f"{WORKSPACE} or below"
        )
    return f"{WORKSPACE}/{_relative(below.removesuffix('/'))}"


def _variable_name(name: str) -> str:
    if not name or "=" in name or "\0" in name:
        raise _wrong("env_name", 'must not be empty, nor contain "=" or NUL', 'a name without "=" and NUL')
    return name


def _base64(text: str) -> str:
    """Refuse what is not exactly base64 of RFC 4648, section 4: its alphabet, padded, in one line."""
    try:
        binascii.a2b_base64(text, strict_mode=True)
    except ValueError as error:
        raise _wrong("base64", f"not base64: {error}", "base64 (RFC 4648, section 4), padded") from None
    return text


def _mode(value: Any) -> str:
    """Return `value` with its four digits. A number is refused: 644 would be read as decimal."""
    if type(value) is not str or not re.fullmatch(MODE_PATTERN, value):
        raise _wrong("mode", f"must be {MODE_FORM}", MODE_FORM)
    return value.rjust(4, "0")


_COMPONENT = r"(?!\.{1,2}(/|$))[^/\u0000]+"
_PLAIN_PATH = f"{_COMPONENT}(/{_COMPONENT})*"
"""The form of `_relative` for the JSON schema, which has no functions."""

_ONE_CONTENT: dict[str, JsonValue] = {
    "oneOf": [
        {"required": ["text"], "properties": {"text": {"type": "string"}}},
        {"required": ["base64"], "properties": {"base64": {"type": "string"}}},
    ]
}

Argument = Annotated[
    str,
    StringConstraints(max_length=ARGV_ENV_BYTES),
    AfterValidator(_without_nul),
    Field(json_schema_extra={"pattern": r"^[^\u0000]*$"}),
]
VariableName = Annotated[str, StringConstraints(max_length=ARGV_ENV_BYTES), AfterValidator(_variable_name)]
RelativePath = Annotated[
    str,
    StringConstraints(min_length=1, max_length=PATH_BYTES),
    AfterValidator(_relative),
    Field(json_schema_extra={"pattern": f"^{_PLAIN_PATH}$"}),
]
"""A path below the workspace in its plain form."""
StepName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
_ModeText = Annotated[str, StringConstraints(pattern=MODE_PATTERN)]


LabelName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]{0,62}$")]
LabelValue = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._/:@+-]{0,128}$")]
"""What a label may hold: plain characters only, so that a label is inert wherever it is shown."""


class Content(Frozen):
    """Bytes, as text (then they are its UTF-8 form) or as base64: exactly one of the two."""

    model_config = ConfigDict(json_schema_extra=_ONE_CONTENT)

    text: Annotated[str, StringConstraints(max_length=FILES_BYTES_MAX)] | None = Field(
        default=None, description="The content as text; stored as UTF-8."
    )
    base64: Annotated[str, AfterValidator(_base64)] | None = Field(
        default=None,
        description="The content as base64 (RFC 4648, section 4), padded, in one line.",
        json_schema_extra={"contentEncoding": "base64"},
    )

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        if (self.text is None) == (self.base64 is None):
            raise _wrong("one_of", 'give exactly one of "text" and "base64"', '"text" or "base64"')
        return self

    @property
    def data(self) -> bytes:
        """The bytes themselves."""
        return binascii.a2b_base64(self.base64) if self.base64 is not None else (self.text or "").encode()

    @property
    def size(self) -> int:
        """How many bytes they are, without decoding them."""
        if self.base64 is None:
            text = self.text or ""
            return len(text) if text.isascii() else len(text.encode())
        return len(self.base64) // 4 * 3 - self.base64[-2:].count("=")


class File(Content):
    """A file that is put into the workspace before the first step."""

    path: RelativePath = Field(
        description="Where, relative to the workspace; directories on the way are made.",
        examples=["src/main.py"],
    )
    mode: Annotated[str, BeforeValidator(_mode, json_schema_input_type=_ModeText)] = Field(
        default="0644", description="Permission bits as octal text.", examples=["0644", "0755"]
    )

    @property
    def mode_bits(self) -> int:
        """The permission bits as the number that chmod(2) takes."""
        return int(self.mode, 8)


def _stdin(value: Any) -> Any:
    """Read text as content; let objects through to be checked."""
    if type(value) is str:
        return {"text": value}
    if isinstance(value, dict | Content):
        return value
    form = 'text, or an object with "text" or "base64"'
    raise _wrong("stdin", f"must be {form}", form)


_NO_LIMITS = LimitsRequest()
_NO_INPUT = Content(text="")


class Step(Frozen):
    """One command of a job. It sees the workspace as the steps before it left it; all else is fresh."""

    name: StepName | None = Field(
        default=None,
        description='A name to know it by; the default is "step-1", "step-2", …',
        examples=["compile"],
    )
    argv: tuple[Argument, ...] = Field(
        min_length=1,
        max_length=ARGV_MAX,
        description="The program, found on PATH when it has no slash, and its arguments. No shell reads it.",
        examples=[["python3", "-c", "print(1)"]],
    )
    stdin: Annotated[Content, BeforeValidator(_stdin, json_schema_input_type=str | Content)] = Field(
        default=_NO_INPUT, description="What the program reads on standard input; text, or an object."
    )
    env: dict[VariableName, Argument] = Field(
        default_factory=dict,
        max_length=ENV_MAX,
        json_schema_extra={"propertyNames": {"pattern": r"^[^=\u0000]+$"}},
        description="Environment variables, over those that every program gets: PATH, HOME, LANG.",
    )
    cwd: Annotated[Argument, AfterValidator(_working_directory)] = Field(
        default=WORKSPACE,
        description=f"Directory to start in: relative to the workspace, or below {WORKSPACE}.",
        json_schema_extra={"pattern": rf"^(\.?|{WORKSPACE}/?|({WORKSPACE}/)?{_PLAIN_PATH}/?)$"},
        examples=["src"],
    )
    limits: LimitsRequest = Field(
        default=_NO_LIMITS, description="Limits of this step; the policy has defaults and ceilings."
    )
    on_output_limit: Literal["truncate", "kill"] = Field(
        default="truncate",
        description="What happens when stdout or stderr passes the limit `output`: the middle is dropped and"
        " the step goes on, or the step is killed.",
    )

    @model_validator(mode="after")
    def _fits_execve(self) -> Self:
        if not self.argv[0]:
            raise _wrong("argv", "the program must not be empty", "a program's name or path", "argv[0]")
        size = sum(map(len, self.argv)) + sum(map(len, self.env)) + sum(map(len, self.env.values()))
        if 4 * size + len(self.argv) + 2 * len(self.env) > ARGV_ENV_BYTES:
            self._check_bytes()
        return self

    def _check_bytes(self) -> None:
        """Count exactly, in UTF-8, where a rough count is not enough to be sure."""
        strings = [*self.argv, *(f"{name}={value}" for name, value in self.env.items())]
        size = sum(len(string.encode()) + 1 for string in strings)
        if size > ARGV_ENV_BYTES:
            message = f"argv and env are {size} bytes together; at most {ARGV_ENV_BYTES} are allowed"
            raise _wrong("too_big", message, f"at most {ARGV_ENV_BYTES} bytes", "argv")


def _command(value: Any) -> Any:
    """Read a list as the argv of a step; let objects through to be checked."""
    if isinstance(value, list | tuple):
        return {"argv": value}
    if value is None or isinstance(value, dict | Step):
        return value
    form = 'a list of arguments, or an object with "argv"'
    raise _wrong("command", f"must be {form}", form)


_ONE_FORM: dict[str, JsonValue] = {
    "oneOf": [
        {"required": ["command"], "properties": {"command": {"not": {"type": "null"}}}},
        {"required": ["steps"], "properties": {"steps": {"not": {"type": "null"}}}},
    ]
}


class JobSpec(Frozen):
    """What is asked: one command or several steps over one workspace, under a policy."""

    model_config = ConfigDict(json_schema_extra=_ONE_FORM)

    image: Annotated[str, StringConstraints(min_length=1, max_length=255)] = Field(
        default=HOST_IMAGE, description="The root file system to run in."
    )
    policy: Name = Field(default="default", description="The policy to run under.")
    command: Annotated[
        Step | None,
        BeforeValidator(
            _command,
            json_schema_input_type=Step
            | Annotated[list[Argument], Field(min_length=1, max_length=ARGV_MAX)]
            | None,
        ),
    ] = Field(
        default=None,
        description='The only step of the job; a list is short for {"argv": list}.',
        examples=[["python3", "-c", "print(1)"]],
    )
    steps: tuple[Step, ...] | None = Field(
        default=None,
        min_length=1,
        max_length=STEPS_MAX,
        description="The steps in order. One that does not exit with 0 is the last to run.",
    )
    files: tuple[File, ...] = Field(
        default=(), max_length=FILES_MAX, description="Files to put into the workspace before the first step."
    )
    outputs: tuple[RelativePath, ...] = Field(
        default=(),
        max_length=OUTPUTS_MAX,
        description="Which files of the workspace to keep as artifacts: globs, `**` for any depth.",
        examples=[["result.json", "plots/**/*.png"]],
    )

    labels: dict[LabelName, LabelValue] = Field(
        default_factory=dict,
        max_length=LABELS_MAX,
        description="Words of the caller's own to find the job by: `GET /v1/jobs?label=NAME:VALUE`.",
        examples=[{"course": "algorithms-1"}],
    )
    pool: Name | None = Field(
        default=None,
        description="The kind of worker to run on; one of the policy's `pools`, whose first is the default.",
    )
    priority: Priority | None = Field(
        default=None,
        description="Which of the project's own jobs go first; it gives no place before those of others."
        " The default is `normal`, or the policy's `priority_max` where that is lower.",
    )
    max_queue_time: Annotated[float, Strict(), Gt(0), Le(DURATION_MAX), AS_DURATION] | None = Field(
        default=None,
        description="Seconds that it may wait for its start; then it ends with `queue_time_exceeded`."
        " The default, and the most, is the policy's.",
        json_schema_extra={"x-unit": "seconds"},
    )
    deadline: AwareDatetime | None = Field(
        default=None,
        description="When it must have ended (RFC 3339, with a time zone); else it is stopped with"
        " `deadline_exceeded`, whether it runs or still waits.",
        examples=["2030-01-01T12:00:00Z"],
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.command is None) == (self.steps is None):
            raise _wrong("one_of", 'give exactly one of "command" and "steps"', '"command" or "steps"')
        if self.files:
            _check_files(self.files)
        if self.steps is not None and len(self.steps) > 1:
            _check_names(self.steps)
        return self

    @property
    def sequence(self) -> tuple[Step, ...]:
        """The steps in order, whichever of the two forms was used."""
        return (self.command,) if self.command is not None else self.steps or ()


def _check_files(files: tuple[File, ...]) -> None:
    """Refuse two files of one path, and a file where another needs a directory."""
    paths = {file.path for file in files}
    if len(paths) < len(files):
        _refuse_duplicate(files)
    for index, file in enumerate(files):
        parent = file.path
        while "/" in parent:
            parent = parent.rpartition("/")[0]
            if parent in paths:
                message = f"{parent!r}, on the way to this path, is a file of this request itself"
                raise _wrong("clash", message, "no path below another file", f"files[{index}].path")


def _refuse_duplicate(files: tuple[File, ...]) -> None:
    seen: set[str] = set()
    for index, file in enumerate(files):
        if file.path in seen:
            raise _wrong("duplicate", "this path stands twice", "every path once", f"files[{index}].path")
        seen.add(file.path)


def _check_names(steps: tuple[Step, ...]) -> None:
    names = [step.name or default_name(index) for index, step in enumerate(steps)]
    for index, name in enumerate(names):
        if name in names[:index]:
            message = f"the name {name!r} stands twice"
            raise _wrong("duplicate", message, "every name once", f"steps[{index}].name")
