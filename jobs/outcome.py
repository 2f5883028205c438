"""Outcome: why a step ended, as a value, with the evidence; and what it used, wrote and left.

Names are those of the limits: `usage.memory` is the peak of what `limits.memory` bounds, in the same unit.
"""

import binascii
import signal as signals
from base64 import b64encode
from enum import StrEnum
from typing import Annotated, Any, Literal, Self

from annotated_types import Ge
from pydantic import BeforeValidator, ConfigDict, Field, JsonValue, Strict, StringConstraints, model_validator
from pydantic_core import PydanticCustomError

from policies.model import Frozen

Bytes = bytes
"""The type, where a field of that name hides it."""
Count = Annotated[int, Strict(), Ge(0)]
Seconds = Annotated[float, Strict(), Ge(0)]


class OutcomeKind(StrEnum):
    """Why a step or a job ended. The last two say that we failed, not the program."""

    EXITED = "exited"
    SIGNALED = "signaled"
    EXEC_FAILED = "exec_failed"
    CPU_TIME_EXCEEDED = "cpu_time_exceeded"
    WALL_TIME_EXCEEDED = "wall_time_exceeded"
    MEMORY_EXCEEDED = "memory_exceeded"
    PIDS_EXCEEDED = "pids_exceeded"
    OUTPUT_EXCEEDED = "output_exceeded"
    DISK_EXCEEDED = "disk_exceeded"
    SYSCALL_DENIED = "syscall_denied"
    CANCELLED = "cancelled"
    QUEUE_TIME_EXCEEDED = "queue_time_exceeded"
    DEADLINE_EXCEEDED = "deadline_exceeded"
    SANDBOX_ERROR = "sandbox_error"
    WORKER_LOST = "worker_lost"

    @property
    def ours(self) -> bool:
        """Whether it says that the service failed, which is no verdict on the program."""
        return self in (OutcomeKind.SANDBOX_ERROR, OutcomeKind.WORKER_LOST)


class Evidence(Frozen):
    """One observation behind an outcome."""

    limit: str = Field(
        description="The limit that it is about, by its name in `limits`.", examples=["memory"]
    )
    value: JsonValue = Field(description="The limit's value in force, in bytes, seconds or a count.")
    observed: JsonValue = Field(description="What was observed.")
    where: str = Field(description="Where it was read.", examples=["memory.events oom_kill"])


class Outcome(Frozen):
    """Why it ended."""

    kind: OutcomeKind = Field(description="Why, in one word.")
    exit_code: Annotated[int, Strict(), Ge(0)] | None = Field(
        default=None,
        description="The program's exit status; null when a signal ended it or it never started.",
    )
    signal: Annotated[int, Strict(), Ge(1)] | None = Field(
        default=None, description="Number of the signal that ended the program, or null."
    )
    signal_name: str | None = Field(default=None, description="Its name.", examples=["SIGSEGV"])
    errno: str | None = Field(
        default=None,
        description="Name of the error with which the program could not be started.",
        examples=["ENOENT"],
    )
    message: str = Field(description="One sentence for people.")
    evidence: tuple[Evidence, ...] = Field(default=(), description="What this rests on.")

    @property
    def succeeded(self) -> bool:
        """Whether the program ended by itself with exit status 0."""
        return self.kind is OutcomeKind.EXITED and self.exit_code == 0


def signal_name(number: int) -> str:
    """Return the name of signal `number`, such as "SIGKILL"; a real-time signal is "SIGRTMIN+n"."""
    try:
        return signals.Signals(number).name
    except ValueError:
        return f"SIGRTMIN+{number - signals.SIGRTMIN}" if number > signals.SIGRTMIN else f"signal {number}"


class Usage(Frozen):
    """What one step used, read from a cgroup and a file system of its own; setting up is not in it."""

    cpu_time: Seconds = Field(
        description="CPU seconds of all processes (cpu.stat usage_usec; v1 cpuacct.usage)."
    )
    cpu_user: Seconds = Field(
        description="Of these in user mode (cpu.stat user_usec; v1 cpuacct.usage_user)."
    )
    cpu_system: Seconds = Field(
        description="Of these in the kernel (cpu.stat system_usec; v1 cpuacct.usage_sys)."
    )
    cpu_throttled: Seconds = Field(
        description="Seconds it was held back by `cpus` (cpu.stat throttled_usec; v1 throttled_time)."
    )
    wall_time: Seconds = Field(description="Seconds on the clock from start to end (CLOCK_MONOTONIC).")
    memory: Count = Field(description="Peak bytes (memory.peak; v1 memory.max_usage_in_bytes).")
    pids: Count = Field(description="Peak number of processes and threads (pids.peak).")
    pids_refused: Count = Field(description="How often fork or clone was refused (pids.events max).")
    disk: Count = Field(description="Bytes of the writable file system in use at the end (statfs).")
    disk_inodes: Count = Field(description="Inodes of it in use at the end (statfs).")
    io_read_bytes: Count = Field(description="Bytes read from block devices (io.stat; v1 blkio).")
    io_write_bytes: Count = Field(description="Bytes written to block devices (io.stat; v1 blkio).")
    stdout_bytes: Count = Field(description="Bytes that the program wrote to stdout, kept or not.")
    stderr_bytes: Count = Field(description="Bytes that the program wrote to stderr, kept or not.")


class Omission(Frozen):
    """The gap in a kept output."""

    at: Count = Field(description="Offset in the kept content, in bytes, at which bytes were dropped.")
    bytes: Count = Field(description="How many bytes were dropped there.")


_PIECES_MAX = 3
"""Bytes of a character of UTF-8 that may follow its first."""

_ONE_CONTENT: dict[str, JsonValue] = {
    "oneOf": [
        {"properties": {"text": {"type": "string"}, "base64": {"type": "null"}}},
        {"properties": {"text": {"type": "null"}, "base64": {"type": "string"}}},
    ]
}


class Output(Frozen):
    """What was kept of stdout or stderr: all of it, or its first and last part joined."""

    model_config = ConfigDict(json_schema_extra=_ONE_CONTENT)

    text: str | None = Field(default=None, description="The kept content, if it is valid UTF-8; else null.")
    base64: str | None = Field(
        default=None,
        description="The kept content as base64, if it is not valid UTF-8; else null.",
        json_schema_extra={"contentEncoding": "base64"},
    )
    bytes: Count = Field(description="How many bytes the program wrote.")
    truncated: bool = Field(default=False, description="Whether some of them were dropped.")
    omitted: Omission | None = Field(default=None, description="Which; null when none were.")

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        if (self.text is None) == (self.base64 is None):
            raise PydanticCustomError("one_of", "exactly one of text and base64 must be set")
        return self

    @classmethod
    def of(cls, head: Bytes, tail: Bytes = b"", total: int | None = None) -> Self:
        """Return the output of which `head` and `tail` were kept.

        Where the cut goes through a character of an output that is UTF-8, the pieces of that character are
        dropped too, so that a long text stays text.

        Args:
            head: the first bytes.
            tail: the last bytes, after `head`; none when nothing was dropped.
            total: bytes written; the default is that nothing was dropped.
        """
        if total is None or total == len(head) + len(tail):
            return cls._build(head + tail, None)
        begin, end = _without_cut_end(head), _without_cut_start(tail)
        if _is_text(begin) and _is_text(end):
            head, tail = begin, end
        kept = head + tail
        return cls._build(kept, Omission.model_construct(at=len(head), bytes=total - len(kept)))

    @classmethod
    def _build(cls, kept: Bytes, omitted: Omission | None) -> Self:
        total = len(kept) + (omitted.bytes if omitted else 0)
        text = base64 = None
        try:
            text = kept.decode()
        except UnicodeDecodeError:
            base64 = b64encode(kept).decode()
        return cls(text=text, base64=base64, bytes=total, truncated=omitted is not None, omitted=omitted)

    @property
    def data(self) -> Bytes:
        """The kept content itself."""
        return binascii.a2b_base64(self.base64) if self.base64 is not None else (self.text or "").encode()


def _without_cut_end(head: bytes) -> bytes:
    """Return `head` without the first bytes of a character whose rest is missing."""
    for end in range(len(head) - 1, max(len(head) - 1 - _PIECES_MAX, -1), -1):
        byte = head[end]
        if byte < 0x80:
            break
        if byte >= 0xC0:  # the first byte of a character; it says how many there must be
            needed = 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
            return head[:end] if len(head) - end < needed else head
    return head


def _without_cut_start(tail: bytes) -> bytes:
    """Return `tail` without the last bytes of a character whose first is missing."""
    start = 0
    while start < min(_PIECES_MAX, len(tail)) and 0x80 <= tail[start] < 0xC0:
        start += 1
    return tail[start:]


def _is_text(content: bytes) -> bool:
    try:
        content.decode()
    except UnicodeDecodeError:
        return False
    return True


class IdRange(Frozen):
    """The range of host uids and gids that the ids of a sandbox stand for."""

    base: Count = Field(description="The host id behind id 0 of the sandbox.")
    size: Count = Field(description="How many ids.")


class Seccomp(Frozen):
    """The system call filter that was in force."""

    profile: str = Field(description="Its name.")
    sha256: str = Field(description="SHA-256 of the compiled filter, hexadecimal.")


class Isolation(Frozen):
    """How a step was really isolated, as the launcher applied it."""

    cgroup: Literal["v1", "v2"] = Field(description="Which cgroup interface enforced the limits.")
    namespaces: tuple[str, ...] = Field(description="The namespaces that were its own.")
    user_namespace: IdRange = Field(description="What its user ids are on the host.")
    seccomp: Seccomp = Field(description="Its system call filter.")
    capabilities: tuple[str, ...] = Field(description="Its capability bounding set.")
    no_new_privs: Literal[True] = Field(description="PR_SET_NO_NEW_PRIVS was set.")
    image: str = Field(description="The image that it ran in.")
    image_note: str | None = Field(default=None, description="What to know about this image; else null.")
    kernel: str = Field(description="The kernel's release.")


def octal(mode: Any) -> Any:
    """Return permission bits as four octal digits: 0o644 is "0644". Leaves what is no number alone."""
    return f"{mode:04o}" if type(mode) is int and 0 <= mode <= 0o7777 else mode


def readable(path: Any) -> Any:
    """Return a file name with what is not UTF-8 in it escaped, so that it can stand in JSON."""
    return path.encode("utf-8", "backslashreplace").decode() if type(path) is str else path


class Artifact(Frozen):
    """A file that was collected from the workspace when the job ended. Its path is valid UTF-8."""

    path: Annotated[str, StringConstraints(min_length=1, max_length=4095)] = Field(
        description="Its path, relative to the workspace."
    )
    size: Count = Field(description="Its size in bytes.")
    sha256: Annotated[str, StringConstraints(pattern="^[0-9a-f]{64}$")] = Field(
        description="SHA-256 of its content, hexadecimal."
    )
    mode: Annotated[
        str, BeforeValidator(octal, json_schema_input_type=str), StringConstraints(pattern="^[0-7]{4}$")
    ] = Field(description="Its permission bits, octal.", examples=["0644"])


class ArtifactError(Frozen):
    """A file that matched `outputs` and was not collected."""

    path: Annotated[str, BeforeValidator(readable, json_schema_input_type=str)] = Field(
        description="Its path, relative to the workspace, bytes that are not UTF-8 escaped; or the pattern."
    )
    error: str = Field(
        description="Why, in one word.", examples=["not_regular_file", "too_large", "too_many"]
    )
    message: Annotated[str, BeforeValidator(readable, json_schema_input_type=str)] = Field(
        description="Why, in one sentence."
    )


class StepResult(Frozen):
    """How one step went."""

    name: str = Field(description="The step's name.")
    outcome: Outcome = Field(description="Why it ended.")
    usage: Usage = Field(description="What it used.")
    stdout: Output = Field(description="What it wrote to standard output.")
    stderr: Output = Field(description="What it wrote to standard error.")
    isolation: Isolation = Field(description="How it was isolated.")
