"""Group E, kernel objects: descriptors, pipes, sockets, timers and queues end at the job's own allowance.

Numbers after "case" are those of the table in this directory's README.md.
"""

import ctypes
import os
from pathlib import Path

import pytest

from tests import census
from tests.census import SLOWDOWN
from tests.sandboxes import Launcher, MiB

pytestmark = pytest.mark.kernel


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


@pytest.mark.parametrize("kind", ["SOCK_DGRAM", "SOCK_STREAM"])
def test_full_internet_sockets_are_bounded(sandbox: Launcher, kind: str) -> None:
    """Case 92: what lies unread in UDP and TCP sockets of the job's own loopback takes no memory beside its limit."""
    ran = sandbox.run(
        f"""
sent, held = 0, []
listener = socket.socket()
listener.bind(("127.0.0.1", 0))
listener.listen(100)
for _ in range(60):
    if socket.{kind} == socket.SOCK_DGRAM:
        a = b = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        a.bind(("127.0.0.1", 0))
        a.connect(a.getsockname())
    else:
        a = socket.create_connection(listener.getsockname())
        b, _ = listener.accept()
    for end in (a, b):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
    a.setblocking(False)
    held += [a, b]
    try:
        for _ in range(80): a.send(b"x" * 60000)
    except OSError:
        pass
pages = 0
for line in open("/proc/net/sockstat"):
    words = line.split()
    if words[0] in ("TCP:", "UDP:"):
        pages += int(words[words.index("mem") + 1])
say(pages * 4096)
""",
        open_files=256,
        memory=128 * MiB,
    )
    assert ran.ended["killed"] == "memory" or ran.assert_succeeded().said <= (128 + 16) * MiB


def test_no_machine_code_is_made_for_sockets(sandbox: Launcher) -> None:
    """Case 95: filters of sockets would be translated at the cost of one allowance of the whole host."""
    ran = sandbox.run(
        """
program = ctypes.create_string_buffer(struct.pack("HBBI", 6, 0, 0, 0))
about = struct.pack("HxxxxxxQ", 1, ctypes.addressof(program))
one, other = socket.socketpair()
say([tried(one.setsockopt, 1, option, about) for option in (26, 51)])
"""
    )
    assert ran.assert_succeeded().said == ["EPERM", "EPERM"]
