"""Group E, memory: whatever form it takes, it is charged, capped and given back.

Numbers after "case" are those of the table in this directory's README.md.
"""

import time

import pytest

from tests import census
from tests.census import SLOWDOWN
from tests.sandboxes import Launcher, MiB

pytestmark = pytest.mark.kernel


def test_a_memory_hog_is_killed_at_its_limit(sandbox: Launcher) -> None:
    """Case 86: touching more than `memory` ends the step with the kernel's count; a neighbour lives."""
    with sandbox.job() as neighbour:
        neighbour.start("x = bytearray(30 << 20); say('up'); time.sleep(1); say(len(x))")
        neighbour.line()
        ran = sandbox.run("say('up'); x = bytearray(1 << 30)", memory=64 * MiB)
        ran.assert_killed("memory")
        (fact,) = ran.evidence("memory")
        assert fact["value"] == 64 * MiB
        assert fact["where"] in ("memory.events oom_kill", "memory.oom_control oom_kill")
        assert ran.ended["usage"]["memory"] <= 64 * MiB
        assert neighbour.wait().assert_succeeded().said == 30 << 20


def test_the_whole_step_dies_with_the_process_that_took_too_much(sandbox: Launcher) -> None:
    """Case 86: a parent cannot survive its child's memory kill and exit 0 as if nothing had been."""
    ran = sandbox.run(
        """
child = os.fork()
if child == 0:
    x = bytearray(1 << 30)
os.waitpid(child, 0)
time.sleep(10)
say("survived")
""",
        memory=64 * MiB,
    )
    ran.assert_killed("memory")
    assert ran.stdout == b""


def test_a_quick_parent_does_not_hide_a_memory_kill(sandbox: Launcher) -> None:
    """Case 86: even when the main process exits 0 at once, the kill is reported."""
    ran = sandbox.run(
        """
child = os.fork()
if child == 0:
    x = bytearray(1 << 30)
os.waitpid(child, 0)
os._exit(0)
""",
        memory=64 * MiB,
    )
    ran.assert_killed("memory")


@pytest.mark.parametrize(
    "program",
    [
        """
f = os.memfd_create("m")
while True: os.write(f, b"x" * 65536)
""",
        """
f = open("/dev/shm/x", "wb", buffering=0)
while True: f.write(b"x" * 65536)
""",
        """
f = open("/work/x", "wb", buffering=0)
while True: f.write(b"x" * 65536)
""",
        """
identity = sc(29, 0x77, 512 << 20, 0o1600)
_libc.shmat.restype = ctypes.c_void_p
address = _libc.shmat(identity, None, 0)
ctypes.memset(address, 1, 512 << 20)
""",
        """
import mmap
m = mmap.mmap(-1, 512 << 20)
for offset in range(0, 512 << 20, 4096): m[offset] = 1
""",
    ],
    ids=["memfd", "devshm", "workspace", "sysv", "shared-map"],
)
def test_memory_without_a_process_is_charged_too(sandbox: Launcher, program: str) -> None:
    """Case 88: memory files, shared segments and files on the job's tmpfs count, and are given back."""
    before = census.shmem()
    ran = sandbox.run(program, memory=48 * MiB, disk=512 * MiB, file_size=1024 * MiB)
    ran.assert_killed("memory")
    end = time.monotonic() + census.SETTLE_SECONDS
    while census.shmem() > before + census.SHMEM_TOLERANCE and time.monotonic() < end:
        time.sleep(0.05)
    assert census.shmem() <= before + census.SHMEM_TOLERANCE


def test_kernel_objects_are_charged(sandbox: Launcher) -> None:
    """Case 89: names that do not exist, empty files and locks take the job's memory, not the host's."""
    slab = _slab()
    ran = sandbox.run(
        """
for number in range(60000):
    try:
        os.stat(f"/tmp/{'x' * 200}{number}")
    except OSError:
        pass
f = os.open("/work/f", os.O_RDWR | os.O_CREAT)
for number in range(0, 6000, 2):
    fcntl.lockf(f, fcntl.LOCK_EX, 1, number)
say("done")
""",
        memory=32 * MiB,
        cpu_time=60 * SLOWDOWN,
        wall_time=60 * SLOWDOWN,
    )
    assert ran.ended["usage"]["memory"] <= 32 * MiB
    assert _slab() - slab < 64 * MiB
    assert ran.ended["killed"] in (None, "memory")


def _slab() -> int:
    (line,) = (line for line in census.read("/proc/meminfo").splitlines() if line.startswith("Slab:"))
    return int(line.split()[1]) << 10


def test_extended_attributes_are_bounded(sandbox: Launcher) -> None:
    """Case 89: attributes, which no disk cap counts on every kernel, run into a limit of the job."""
    ran = sandbox.run(
        """
f = os.open("/work/f", os.O_RDWR | os.O_CREAT)
try:
    for number in range(4000):
        os.setxattr(f, f"user.{number}", b"x" * 65536)
except OSError as error:
    say(errno.errorcode[error.errno])
""",
        memory=32 * MiB,
        disk_inodes=100,
    )
    assert ran.ended["killed"] == "memory" or ran.said in ("ENOSPC", "EOPNOTSUPP", "ENOTSUP", "ENOMEM")


def test_page_tables_are_charged(sandbox: Launcher) -> None:
    """Case 90: one touched page in every 2 MiB of a huge map costs more tables than pages, and is killed."""
    ran = sandbox.run(
        """
import mmap
size = 120 << 30
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int,
    ctypes.c_long]
address = _libc.mmap(None, size, 3, 0x4022, -1, 0)
_libc.madvise(ctypes.c_void_p(address), ctypes.c_size_t(size), 15)
for offset in range(0, size, 2 << 20):
    ctypes.c_char.from_address(address + offset).value = b"x"
""",
        memory=48 * MiB,
    )
    ran.assert_killed("memory")


def test_mappings_are_bounded(sandbox: Launcher) -> None:
    """Case 90: the most mappings that a process may have fit into the limits or end in an error of its
    own.
    """
    ran = sandbox.run(
        """
import mmap
held = []
try:
    for number in range(70000):
        held.append(mmap.mmap(-1, 4096, prot=mmap.PROT_READ if number % 2 else mmap.PROT_WRITE))
except OSError as error:
    say(errno.errorcode[error.errno])
""",
        memory=64 * MiB,
        cpu_time=60 * SLOWDOWN,
        wall_time=60 * SLOWDOWN,
    )
    assert ran.ended["killed"] == "memory" or ran.said == "ENOMEM"


def test_memory_cannot_be_locked_or_hidden(sandbox: Launcher) -> None:
    """Case 97: mlock stops at 64 KiB and secret memory does not exist."""
    ran = sandbox.run(
        """
import mmap
m = mmap.mmap(-1, 1 << 20)
address = ctypes.addressof(ctypes.c_char.from_buffer(m))
say([sc(151, 3), sc(149, address, 1 << 20), sc(149, address, 32 << 10), sc(447, 0)])
"""
    )
    everything, much, little, secret_memory = ran.assert_succeeded().said
    assert everything in {"ENOMEM", "EPERM"}
    assert much in {"ENOMEM", "EPERM", "EAGAIN"}
    assert little in {0, "EPERM"}
    assert secret_memory in {"EPERM", "ENOSYS"}


def test_huge_pages_are_not_for_jobs(sandbox: Launcher) -> None:
    """Case 98: reserved huge pages of the host cannot be taken."""
    free = [line for line in census.read("/proc/meminfo").splitlines() if line.startswith("HugePages_Free")]
    ran = sandbox.run(
        """
import mmap
say([tried(mmap.mmap, -1, 2 << 20, flags=0x22 | 0x40000), sc(29, 0, 2 << 20, 0o4600 | 0o1000)])
"""
    )
    mapped, segment = ran.assert_succeeded().said
    assert mapped in {"ENOMEM", "EPERM", "EINVAL"}
    assert segment in {"ENOMEM", "EPERM", "EINVAL", "ENOSYS"}
    assert [
        line for line in census.read("/proc/meminfo").splitlines() if line.startswith("HugePages_Free")
    ] == free


def test_a_job_never_swaps(sandbox: Launcher) -> None:
    """Case 99: a job over its memory is killed instead of being swapped out at others' cost."""
    before = census.read("/proc/swaps").splitlines()
    ran = sandbox.run("x = bytearray(200 << 20)", memory=32 * MiB)
    ran.assert_killed("memory")
    assert ran.ended["usage"]["memory"] <= 32 * MiB
    assert census.read("/proc/swaps").splitlines() == before
