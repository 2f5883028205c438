"""Limits: what one step of a job may use. Field, request, evidence and kernel knob share one name.

`Limits` is complete, `LimitsRequest` is what a request asks for: what it leaves out takes the
policy's default. Sizes are bytes and times are seconds; inputs may write `"64MiB"` and `"10s"` (see
`policies.units`).
"""

from typing import Annotated

from annotated_types import Ge, Le
from pydantic import Field, Strict

from policies.model import Frozen
from policies.units import AS_DURATION, AS_SIZE, DURATION_MAX, GIB, KIB, MIB, SIZE_MAX

CPUS_MIN = 0.01
"""One hundredth of a core: the kernel takes no quota below 1 ms in a period of 100 ms."""
TIME_MIN = 0.01
"""Ten milliseconds, in seconds: below that a limit would only measure the scheduler."""
COUNT_MAX = (1 << 31) - 1

Cpus = Annotated[
    float,
    Strict(),
    Ge(CPUS_MIN),
    Le(4096),
    Field(
        description="CPU time a second, in cores: 0.5 is half of one core. Over it the step is slowed down.",
        json_schema_extra={"x-kernel": "cpu.max (v1: cpu.cfs_quota_us)", "x-unit": "cores"},
    ),
]
Memory = Annotated[
    int,
    Strict(),
    Ge(4 * MIB),
    Le(SIZE_MAX),
    AS_SIZE,
    Field(
        description="Memory of all processes of the step together, page cache, kernel memory and files on the"
        " writable file systems included; no swap. Over it the whole step is killed: memory_exceeded.",
        json_schema_extra={"x-kernel": "memory.max (v1: memory.limit_in_bytes)", "x-unit": "bytes"},
    ),
]
Pids = Annotated[
    int,
    Strict(),
    Ge(1),
    Le(1 << 22),
    Field(
        description="Processes and threads at one time. Over it fork and clone fail with EAGAIN.",
        json_schema_extra={"x-kernel": "pids.max", "x-unit": "tasks"},
    ),
]
CpuTime = Annotated[
    float,
    Strict(),
    Ge(TIME_MIN),
    Le(DURATION_MAX),
    AS_DURATION,
    Field(
        description="CPU time, user and system, of all processes of the step together. Over it the step is"
        " killed: cpu_time_exceeded.",
        json_schema_extra={
            "x-kernel": "cpu.stat usage_usec (v1: cpuacct.usage), watched",
            "x-unit": "seconds",
        },
    ),
]
WallTime = Annotated[
    float,
    Strict(),
    Ge(TIME_MIN),
    Le(DURATION_MAX),
    AS_DURATION,
    Field(
        description="Time on the clock from the start of the step's program. Over it the step is killed:"
        " wall_time_exceeded.",
        json_schema_extra={"x-kernel": "CLOCK_MONOTONIC, a timer of the launcher", "x-unit": "seconds"},
    ),
]
OutputBytes = Annotated[
    int,
    Strict(),
    Ge(0),
    Le(SIZE_MAX),
    AS_SIZE,
    Field(
        description="Bytes kept of stdout, and as many of stderr: the first and the last part. The rest is"
        " counted and dropped, or with `on_output_limit: kill` the step is killed: output_exceeded.",
        json_schema_extra={"x-kernel": "pipe, counted by the worker", "x-unit": "bytes"},
    ),
]
Disk = Annotated[
    int,
    Strict(),
    Ge(MIB),
    Le(SIZE_MAX),
    AS_SIZE,
    Field(
        description="Bytes of all files that the job writes, wherever it writes them. Over it writes fail"
        " with ENOSPC.",
        json_schema_extra={"x-kernel": "tmpfs size=", "x-unit": "bytes"},
    ),
]
DiskInodes = Annotated[
    int,
    Strict(),
    Ge(128),
    Le(COUNT_MAX),
    Field(
        description="Files, directories and links that the job makes, wherever it makes them. Over it making"
        " one fails with ENOSPC.",
        json_schema_extra={"x-kernel": "tmpfs nr_inodes=", "x-unit": "inodes"},
    ),
]
OpenFiles = Annotated[
    int,
    Strict(),
    Ge(8),
    Le(1 << 20),
    Field(
        description="Descriptors that one process may have open. Over it open fails with EMFILE.",
        json_schema_extra={"x-kernel": "RLIMIT_NOFILE", "x-unit": "descriptors"},
    ),
]
FileSize = Annotated[
    int,
    Strict(),
    Ge(0),
    Le(SIZE_MAX),
    AS_SIZE,
    Field(
        description="Size to which one file may grow. Over it the writer gets SIGXFSZ.",
        json_schema_extra={"x-kernel": "RLIMIT_FSIZE", "x-unit": "bytes"},
    ),
]
Stack = Annotated[
    int,
    Strict(),
    Ge(64 * KIB),
    Le(SIZE_MAX),
    AS_SIZE,
    Field(
        description="Size to which the stack of a process's first thread may grow. Over it SIGSEGV.",
        json_schema_extra={"x-kernel": "RLIMIT_STACK", "x-unit": "bytes"},
    ),
]


class Limits(Frozen):
    """What one step may use, complete. Sizes in bytes, times in seconds."""

    cpus: Cpus
    memory: Memory
    pids: Pids
    cpu_time: CpuTime
    wall_time: WallTime
    output: OutputBytes
    disk: Disk
    disk_inodes: DiskInodes
    open_files: OpenFiles
    file_size: FileSize
    stack: Stack


class LimitsRequest(Frozen):
    """The limits that a request asks for; what is left out, or null, takes the policy's default."""

    cpus: Cpus | None = None
    memory: Memory | None = None
    pids: Pids | None = None
    cpu_time: CpuTime | None = None
    wall_time: WallTime | None = None
    output: OutputBytes | None = None
    disk: Disk | None = None
    disk_inodes: DiskInodes | None = None
    open_files: OpenFiles | None = None
    file_size: FileSize | None = None
    stack: Stack | None = None

    def over(self, defaults: Limits) -> Limits:
        """Return `defaults` with everything that this request names put in its place."""
        asked = {name: value for name, value in self if value is not None}
        return defaults.model_copy(update=asked) if asked else defaults


LAUNCHER_MAX = Limits(
    cpus=256,
    memory=1024 * GIB,
    pids=32768,
    cpu_time=7 * 86400,
    wall_time=7 * 86400,
    output=256 * MIB,
    disk=1024 * GIB,
    disk_inodes=1 << 24,
    open_files=1 << 20,
    file_size=1024 * GIB,
    stack=1024 * GIB,
)
"""What no policy may exceed: the launcher gives no more to one step, and `output` must fit into an answer."""
