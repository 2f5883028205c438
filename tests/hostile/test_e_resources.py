"""Group E: a job gets what its limits say and no more, and the neighbours do not feel it.

Numbers after "case" are those of the list of hostile cases that the project keeps.
"""

import contextlib
import ctypes
import os
import time
from pathlib import Path

import pytest

from tests import census
from tests.census import SLOWDOWN
from tests.sandboxes import Launcher, MiB, Ran

pytestmark = pytest.mark.kernel


def assert_killed(ran: Ran, reason: str) -> None:
    """The step was stopped for ``reason``, cleanly, and the evidence says so."""
    assert ran.ended.get("op") == "ended", ran.ended
    assert (ran.ended["killed"], ran.ended["teardown"]) == (reason, "clean"), (ran.ended, ran.stderr[-2000:])
    (fact,) = ran.evidence(reason)
    assert fact["observed"]
    assert fact["where"]


def read_host(path: str) -> int:
    """The first number of a file of the host."""
    return int(Path(path).read_text().split()[0])


def test_many_spinning_processes_share_one_allowance(sandbox: Launcher) -> None:
    """Case 81: eight busy processes under half a core get half a core together."""
    ran = sandbox.run(
        """
for _ in range(8):
    if os.fork() == 0:
        while True: pass
time.sleep(2)
""",
        cpus=0.5,
    )
    usage = ran.assert_succeeded().ended["usage"]
    assert 0.3 < usage["cpu_time"] / usage["wall_time"] <= 0.5 * 1.1
    assert usage["cpu_throttled"] > 0


@pytest.mark.parametrize(
    "program",
    [
        ["/bin/bash", "-c", ":(){ :|:& };: ; sleep 1"],
        """
def fork_on():
    while True:
        with __import__("contextlib").suppress(OSError):
            os.fork()
signal.alarm(1)
fork_on()
""",
        """
def sleeper():
    time.sleep(30)
try:
    while True:
        threading.Thread(target=sleeper, daemon=True).start()
except RuntimeError:
    os._exit(3)
""",
    ],
    ids=["shell", "fork", "threads"],
)
def test_bombs_stop_at_the_limit_of_processes(sandbox: Launcher, program: str | list[str]) -> None:
    """Case 83: forks beyond `pids` are refused and counted, everything is gone at the end, a neighbour
    runs on.
    """
    with sandbox.job() as neighbour:
        neighbour.start("say('up'); time.sleep(1); say('well')")
        neighbour.line()
        begin = time.monotonic()
        ran = sandbox.run(program, pids=32, wall_time=5 * SLOWDOWN)
        assert time.monotonic() - begin < 8 * SLOWDOWN
        assert ran.ended["usage"]["pids_refused"] > 0
        (fact,) = ran.evidence("pids")
        assert (fact["value"], fact["where"]) == (32, "pids.events max")
        assert ran.ended["teardown"] == "clean"
        assert neighbour.wait().assert_succeeded().said == "well"


def test_a_bomb_that_forks_while_it_is_killed_dies(sandbox: Launcher) -> None:
    """Case 84: killing wins against forking, in bounded time, and the cgroup can be removed."""
    ran = sandbox.run(
        """
for number in range(1, 65):
    signal.signal(number, signal.SIG_IGN) if number not in (9, 19, 32, 33) else None
say("up")
while True:
    with __import__("contextlib").suppress(OSError):
        os.fork()
""",
        pids=200,
        wall_time=1.0 * SLOWDOWN,
        cpu_time=100.0 * SLOWDOWN,
    )
    assert_killed(ran, "wall_time")
    assert ran.seconds < 4 * SLOWDOWN


def test_zombies_are_counted_and_vanish(sandbox: Launcher) -> None:
    """Case 85: children that are never waited for count towards `pids` and are gone with the job."""
    ran = sandbox.run(
        """
made = 0
try:
    while made < 500:
        if os.fork() == 0:
            os._exit(0)
        made += 1
except BlockingIOError:
    pass
say(made)
""",
        pids=20,
    )
    assert ran.assert_succeeded().said == 19
    assert ran.ended["usage"]["pids_refused"] > 0


def test_orphans_are_reaped(sandbox: Launcher) -> None:
    """Case 85: PID 1 waits for processes that lost their parent, so they never add up."""
    ran = sandbox.run(
        """
for _ in range(200):
    middle = os.fork()
    if middle == 0:
        if os.fork() == 0:
            os._exit(0)
        os._exit(0)
    os.waitpid(middle, 0)
    for attempt in range(100):
        if len([p for p in os.listdir("/proc") if p.isdigit()]) < 5: break
        time.sleep(0.01)
say("done")
""",
        pids=12,
        user=0,
    )
    assert ran.assert_succeeded().said == "done"
    assert ran.ended["usage"]["pids_refused"] == 0


def test_a_memory_hog_is_killed_at_its_limit(sandbox: Launcher) -> None:
    """Case 86: touching more than `memory` ends the step with the kernel's count; a neighbour lives."""
    with sandbox.job() as neighbour:
        neighbour.start("x = bytearray(30 << 20); say('up'); time.sleep(1); say(len(x))")
        neighbour.line()
        ran = sandbox.run("say('up'); x = bytearray(10 << 30)", memory=64 * MiB)
        assert_killed(ran, "memory")
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
    assert_killed(ran, "memory")
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
    assert_killed(ran, "memory")


def test_an_exit_code_alone_is_no_verdict(sandbox: Launcher) -> None:
    """A program that exits 137 by itself was not killed, and a SIGKILL of its own is only a signal."""
    exited = sandbox.run("sys.exit(137)")
    assert (exited.ended["exit_code"], exited.ended["killed"], exited.ended["evidence"]) == (137, None, [])
    signalled = sandbox.run("os.kill(os.getpid(), 9)")
    assert (signalled.ended["signal"], signalled.ended["killed"], signalled.ended["evidence"]) == (
        9,
        None,
        [],
    )


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
    assert_killed(ran, "memory")
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
    assert ran.ended["killed"] == "memory" or ran.said in ("ENOSPC", "EOPNOTSUPP", "ENOMEM")


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
    assert_killed(ran, "memory")


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


def test_pipes_of_one_job_do_not_shrink_anothers(sandbox: Launcher) -> None:
    """Case 91: the per-user allowance of pipe buffers is each job's own, because its user is."""
    with sandbox.job() as greedy:
        greedy.start(
            """
held = []
try:
    for _ in range(100):
        pair = os.pipe()
        held.append(pair)
        fcntl.fcntl(pair[1], 1031, 1 << 20)
except OSError as error:
    say([len(held), errno.errorcode[error.errno]])
say("all")
time.sleep(60)
""",
        )
        greedy.line()
        ran = sandbox.run("a, b = os.pipe(); say(fcntl.fcntl(b, 1032))")
        assert ran.assert_succeeded().said == 65536


def test_full_sockets_are_charged(sandbox: Launcher) -> None:
    """Case 92: what lies unread in sockets counts as memory or stops at the descriptors."""
    ran = sandbox.run(
        """
held = []
try:
    while True:
        a, b = socket.socketpair()
        a.setblocking(False)
        held.append((a, b))
        try:
            while True: a.send(b"x" * 65536)
        except BlockingIOError:
            pass
except OSError as error:
    say(errno.errorcode[error.errno])
""",
        open_files=256,
        memory=128 * MiB,
    )
    assert ran.ended["killed"] == "memory" or ran.said in ("EMFILE", "ENOBUFS", "ENOMEM")


def test_descriptors_in_flight_are_bounded(sandbox: Launcher) -> None:
    """Case 92: descriptors parked in socket messages, in a cycle, stop at the limit and are freed with the
    job.
    """
    ran = sandbox.run(
        """
import array
a, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
a.setblocking(False)
sent = 0
parked = []
try:
    while sent < 20000:
        x, y = socket.socketpair()
        y.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [x.fileno()] * 50))])
        sent += 50
        a.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [y.fileno()]))])
        sent += 1
        x.close(); y.close()
except OSError as error:
    say([sent, errno.errorcode[error.errno]])
""",
        open_files=100,
    )
    sent, refused = ran.assert_succeeded().said
    assert refused in {"ETOOMANYREFS", "EAGAIN"}
    assert sent <= 1000


def test_open_files_are_bounded_in_every_process(sandbox: Launcher) -> None:
    """Case 93: each process stops at `open_files`, and all of a job's together leave the host most of its
    own.
    """
    ran = sandbox.run(
        """
def fill():
    held = []
    try:
        while True: held.append(os.open("/dev/null", os.O_RDONLY))
    except OSError as error:
        return errno.errorcode[error.errno]
answers = []
for _ in range(20):
    read, write = os.pipe()
    if os.fork() == 0:
        os.write(write, fill().encode())
        time.sleep(60)
    os.close(write)
    answers.append(os.read(read, 20).decode())
    os.close(read)
say(answers)
""",
        open_files=1000,
        pids=30,
    )
    assert set(ran.assert_succeeded().said) == {"EMFILE"}
    used, _, most = (int(number) for number in Path("/proc/sys/fs/file-nr").read_text().split())
    assert used < most / 2


def test_event_descriptors_are_bounded_and_the_hosts_are_free(sandbox: Launcher) -> None:
    """Case 94: inotify, epoll, eventfd, timerfd and signalfd stop at a limit, and the host can still have
    them.
    """
    with sandbox.job() as job:
        job.start(
            """
def bomb(make):
    held = []
    try:
        while len(held) < 5000: held.append(make())
    except OSError as error:
        name = errno.errorcode[error.errno]
    else:
        name = "unbounded"
    if make is not inotify:
        for descriptor in held: os.close(descriptor)
    return name
def checked(descriptor):
    if descriptor < 0:
        raise OSError(ctypes.get_errno(), "")
    return descriptor
def inotify():
    return checked(_libc.inotify_init1(0))
mask = struct.pack("=Q", 0)
calls = [lambda: os.eventfd(0), lambda: checked(_libc.epoll_create1(0)),
    lambda: checked(_libc.timerfd_create(1, 0)),
    lambda: checked(_libc.signalfd(-1, mask, 0)), inotify]
say([bomb(c) for c in calls])
time.sleep(60)
""",
            open_files=1024,
        )
        answers = job.line()
        host = ctypes.CDLL(None, use_errno=True).inotify_init1(0)
        assert host >= 0, "the job has taken the host's inotify instances"
        os.close(host)
    assert set(answers) <= {"EMFILE", "ENOSPC", "ENFILE"}


def test_inotify_watches_of_a_job_are_its_own(sandbox: Launcher) -> None:
    """Case 94: watches that a job uses up are those of its own user."""
    ran = sandbox.run(
        """
d = _libc.inotify_init1(0)
made = sum(1 for n in range(3000) if not os.mkdir(f"/tmp/{n}") and _libc.inotify_add_watch(d,
    f"/tmp/{n}".encode(), 2) >= 0)
say(made)
"""
    )
    assert ran.assert_succeeded().said > 0


def test_timers_and_queued_signals_are_bounded(sandbox: Launcher) -> None:
    """Case 95: POSIX timers and queued real-time signals stop with EAGAIN."""
    ran = sandbox.run(
        """
def until_refused(call, most):
    for count in range(most):
        answer = call()
        if not isinstance(answer, int): return [count, answer]
    return [most, None]
slot = ctypes.create_string_buffer(8)
timers = until_refused(lambda: sc(222, 1, 0, slot), 50000)
signal.pthread_sigmask(signal.SIG_BLOCK, {40})
info = struct.pack("=iii", 40, 0, -1).ljust(128, b"\\0")
queued = until_refused(lambda: sc(129, os.getpid(), 40, info), 50000)
say([timers, queued])
"""
    )
    timers, queued = ran.assert_succeeded().said
    assert timers[1] == queued[1] == "EAGAIN"
    assert timers[0] + queued[0] <= 2100


def test_message_queues_and_semaphores_are_bounded(sandbox: Launcher) -> None:
    """Case 96: POSIX queues stop at a small allowance, System V objects at their own counts, or at memory."""
    ran = sandbox.run(
        """
def until_refused(call, most):
    for count in range(most):
        answer = call(count)
        if not isinstance(answer, int): return answer
    return None
attributes = struct.pack("=8q", 0, 10, 8192, 0, 0, 0, 0, 0)
say([until_refused(lambda n: sc(240, f"q{n}".encode(), 0o102, 0o600, attributes), 300),
    until_refused(lambda n: sc(64, 0, 30000, 0o600), 40000),
    until_refused(lambda n: sc(68, 0, 0o600), 40000)])
""",
        memory=256 * MiB,
        cpu_time=60 * SLOWDOWN,
        wall_time=60 * SLOWDOWN,
    )
    if ran.ended["killed"] == "memory":
        return
    queues, semaphores, messages = ran.assert_succeeded().said
    assert queues in {"EMFILE", "ENOSPC", "ENOMEM", "ENOSYS", "EPERM"}
    assert semaphores in {"ENOSPC", "ENOMEM"}
    assert messages in {"ENOSPC", "ENOMEM"}


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
    assert_killed(ran, "memory")
    assert ran.ended["usage"]["memory"] <= 32 * MiB
    assert census.read("/proc/swaps").splitlines() == before


def test_an_exception_storm_starts_nothing_on_the_host(sandbox: Launcher) -> None:
    """Case 103 (Houdini): crashing without end costs the job's own allowance; no helper of the host runs."""
    ran = sandbox.run(
        """
end = time.monotonic() + 1
crashes = 0
while time.monotonic() < end:
    child = os.fork()
    if child == 0:
        os.kill(os.getpid(), signal.SIGSEGV)
    assert os.waitpid(child, 0)[1] & 0x80 == 0
    crashes += 1
say(crashes)
"""
    )
    assert ran.assert_succeeded().said > 10


def test_nothing_can_be_logged_on_the_host(sandbox: Launcher) -> None:
    """Case 104 (Houdini): there is no kernel log, no system log and no console to flood."""
    ran = sandbox.run(
        """
say([tried(os.open, path, os.O_WRONLY) for path in ("/dev/kmsg", "/dev/log", "/dev/console", "/dev/ttyS0")]
    + [sc(103, 3, ctypes.create_string_buffer(64), 64), tried(os.open, "/dev/tty", os.O_WRONLY)])
"""
    )
    *paths, kernel_log, terminal = ran.assert_succeeded().said
    assert set(paths) == {"ENOENT"}
    assert kernel_log == "EPERM"
    assert terminal == "ENXIO"


def test_packets_go_nowhere(sandbox: Launcher) -> None:
    """Case 105: without network a flood of packets stays on the job's own loopback, on its own CPU time."""
    before = _softirqs()
    ran = sandbox.run(
        """
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
end = time.monotonic() + 0.5
while time.monotonic() < end:
    try: s.sendto(b"x", ("127.0.0.1", 9))
    except ConnectionRefusedError: pass
say(tried(s.sendto, b"x", ("192.0.2.1", 9)))
"""
    )
    assert ran.assert_succeeded().said == "ENETUNREACH"
    assert ran.ended["usage"]["cpu_time"] > 0.1
    assert _softirqs() >= before


def _softirqs() -> int:
    lines = census.read("/proc/softirqs").splitlines()
    return sum(int(value) for line in lines if "NET_RX" in line for value in line.split()[1:])


def test_a_file_over_its_size_is_a_signal(sandbox: Launcher) -> None:
    """Case 108: SIGXFSZ has its default action, so a plain program is told by it."""
    ran = sandbox.run(["/bin/dd", "if=/dev/zero", "of=/work/x", "bs=64k", "count=64"], file_size=1 * MiB)
    assert (ran.ended["signal"], ran.ended["killed"]) == (25, None)


def test_deep_recursion_is_a_signal(sandbox: Launcher) -> None:
    """Case 108: running out of `stack` is SIGSEGV of the program, and of nothing else."""
    ran = sandbox.run(["/bin/bash", "-c", "f() { f; }; f"], stack=1 * MiB)
    assert (ran.ended["signal"], ran.ended["killed"]) == (11, None)


def test_signals_have_their_defaults(sandbox: Launcher) -> None:
    """A job starts with no signal ignored or blocked: SIGPIPE ends a writer whose reader is gone."""
    ran = sandbox.run(
        """
lines = dict(line.split(":\\t") for line in content("/proc/self/status").splitlines())
say([lines["SigBlk"], lines["SigIgn"]])
"""
    )
    blocked, _ = ran.assert_succeeded().said  # Python itself ignores SIGPIPE and SIGXFSZ
    assert int(blocked, 16) == 0
    plain = sandbox.run(["/bin/grep", "-E", "Sig(Ign|Blk)", "/proc/self/status"]).assert_succeeded()
    assert {line.split()[1] for line in plain.stdout.decode().splitlines()} == {"0000000000000000"}


def test_endless_reading_of_proc_does_not_slow_a_neighbour_down(sandbox: Launcher) -> None:
    """Case 109: expensive kernel work is under the same CPU allowance as everything else."""
    with sandbox.job() as greedy:
        greedy.start(
            """
say("up")
while True:
    open("/proc/self/smaps").read()
    sc(324, 1, 0)
""",
            cpus=0.2,
            wall_time=30 * SLOWDOWN,
        )
        greedy.line()
        ran = sandbox.run("end = time.process_time() + 0.3\nwhile time.process_time() < end: pass")
        assert ran.assert_succeeded().ended["usage"]["wall_time"] < 2.0 * SLOWDOWN


STUBBORN = {
    "stopped": "os.kill(os.getpid(), signal.SIGSTOP)",
    "stopped-children": """
for _ in range(5):
    if os.fork() == 0: os.kill(os.getpid(), signal.SIGSTOP)
os.kill(os.getpid(), signal.SIGSTOP)
""",
    "spawned": """
code = "import ctypes, os, time; l = ctypes.CDLL(None); time.sleep(1000)"
os.posix_spawn("/usr/bin/python3", ["python3", "-I", "-c", code], {})
time.sleep(1000)
""",
    "trace-stop": """
previous = os.getpid()
for _ in range(6):
    child = os.fork()
    if child == 0:
        sc(101, 0, 0, 0, 0)
        os.kill(os.getpid(), signal.SIGSTOP)
        time.sleep(1000)
time.sleep(1000)
""",
    "ignoring": """
for number in range(1, 65):
    if number not in (9, 19, 32, 33): signal.signal(number, signal.SIG_IGN)
time.sleep(1000)
""",
    "blocking": "signal.pthread_sigmask(signal.SIG_BLOCK, set(range(1, 32)))\ntime.sleep(1000)",
    "futex": "lock = threading.Lock(); lock.acquire(); lock.acquire()",
    "threads": """
for _ in range(20): threading.Thread(target=lambda: [time.sleep(1000)], daemon=True).start()
time.sleep(1000)
""",
}


@pytest.mark.parametrize("program", STUBBORN.values(), ids=STUBBORN)
def test_whoever_will_not_end_is_ended(sandbox: Launcher, program: str) -> None:
    """Cases 110, 112: stopped, traced, waiting or deaf, a step is gone shortly after its wall time."""
    ran = sandbox.run(program, wall_time=0.6 * SLOWDOWN)
    assert_killed(ran, "wall_time")
    assert ran.seconds < (0.6 + 1.5) * SLOWDOWN


def test_usage_is_that_of_the_step_alone(sandbox: Launcher) -> None:
    """Set-up is not charged: a program that does nothing has used almost nothing, in each step anew."""
    with sandbox.job() as job:
        heavy = job.run(
            """
x = bytearray(100 << 20)
end = time.process_time() + 0.5
while time.process_time() < end: pass
""",
            plan={"keep": True},
        )
        light = job.run(["/bin/true"], plan={"keep": True})
    used = heavy.assert_succeeded().ended["usage"]
    assert 0.5 <= used["cpu_time"] < 1.5 * SLOWDOWN
    assert used["memory"] >= 100 << 20
    assert used["cpu_time"] == pytest.approx(used["cpu_user"] + used["cpu_system"], rel=0.2, abs=0.05)
    used = light.assert_succeeded().ended["usage"]
    assert used["cpu_time"] < 0.02 * SLOWDOWN
    assert used["memory"] < 8 * MiB
    assert used["pids"] == 1
    assert used["wall_time"] < 1.0 * SLOWDOWN


def test_cpu_time_is_a_limit_of_its_own(sandbox: Launcher) -> None:
    """An endless loop ends by `cpu_time`, over all its processes together, long before the wall time."""
    ran = sandbox.run(
        """
for _ in range(3): os.fork()
while True: pass
""",
        cpu_time=0.5,
        cpus=2.0,
        wall_time=30 * SLOWDOWN,
    )
    assert_killed(ran, "cpu_time")
    (fact,) = ran.evidence("cpu_time")
    assert 0.5 <= fact["observed"] < 0.5 + 0.5 * SLOWDOWN


def test_the_least_limits_give_an_outcome(sandbox: Launcher) -> None:
    """With limits so small that nothing runs, the job gets its verdict and the launcher no fault."""
    for limits in ({"memory": 4 * MiB}, {"pids": 1}, {"wall_time": 0.01}, {"cpu_time": 0.01}, {"disk": 4096},
                   {"disk_inodes": 1}, {"open_files": 8}, {"file_size": 0}, {"cpus": 0.01}):  # fmt: skip
        ran = sandbox.run("say([1] * 100)", **limits)
        assert ran.ended["op"] == "ended", (limits, ran.ended)
        assert ran.ended["teardown"] == "clean"


def test_many_hostile_jobs_at_once_do_not_disturb_an_honest_one(sandbox: Launcher) -> None:
    """Bombs and hogs side by side: the honest job's result is right, and every bomb is told its limit."""
    bombs: list[tuple[str, dict[str, float], str]] = [
        (
            "while True:\n  with __import__('contextlib').suppress(OSError): os.fork()",
            {"cpu_time": 1.0},
            "cpu_time",
        ),
        ("x = bytearray(1 << 30)", {"memory": 32 * MiB}, "memory"),
        ("while True: pass", {"cpu_time": 0.5}, "cpu_time"),
        ("time.sleep(1000)", {"wall_time": 1.0 * SLOWDOWN}, "wall_time"),
    ]
    with contextlib.ExitStack() as stack:
        started = []
        for program, limits, reason in bombs:
            job = stack.enter_context(sandbox.job())
            job.start(program, **({"pids": 30, "cpus": 0.3} | limits))
            started.append((job, reason))
        honest = sandbox.run("say(sum(range(200000)))")
        assert honest.assert_succeeded().said == 19999900000
        for job, reason in started:
            assert job.wait().ended["killed"] == reason
