"""Group A, the launcher: a peer that lies, breaks the protocol or comes in numbers gains nothing.

Numbers after "case" are those of the table in this directory's README.md.
"""

import array
import contextlib
import errno
import json
import os
import select
import signal
import socket
import struct
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests import census
from tests.census import SLOWDOWN
from tests.sandboxes import LIMITS, Launcher, Ran
from worker.sandbox.errors import SandboxError

pytestmark = [pytest.mark.kernel, pytest.mark.once]


def test_a_peer_that_sends_nonsense_harms_nobody(sandbox: Launcher) -> None:
    """A client of the launcher that breaks the protocol loses its own connection, and only that."""
    with sandbox.job() as sibling:
        sibling.start("say('up'); time.sleep(1); say('still here')")
        sibling.line()
        for packet in (
            b"",
            b"{",
            b"[]",
            b"null",
            b'{"op":"nope"}',
            b'{"op":"run"}',
            b"\xff" * 65536,
            b"[" * 60000,
        ):
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as peer:
                peer.connect(str(sandbox.socket))
                peer.settimeout(5)
                with contextlib.suppress(OSError):
                    peer.send(packet)
                    peer.shutdown(socket.SHUT_WR)
                    peer.recv(65536)
        assert sibling.wait().assert_succeeded().said == "still here"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("image", "../../etc"),
        ("image", "nowhere"),
        ("user", -1),
        ("user", 65536),
        ("user", True),
        ("hostname", "a\nb"),
        ("syscalls", "../default"),
        ("capabilities", ["SYS_ADMIN"]),
        ("argv", []),
        ("argv", ["a\0b"]),
        ("argv", "/bin/true"),
        ("env", {"A=B": "c"}),
        ("cwd", "/proc/self/fd/7"),
        ("cwd", "/work/../proc"),
        ("limits", {"memory": 1}),
    ],
)
def test_the_launcher_trusts_no_plan(sandbox: Launcher, field: str, value: object) -> None:
    """The launcher checks each field against the host's own ceilings, whatever policy the worker knows."""
    ran = sandbox.run(["/bin/true"], plan={field: value})
    assert ran.ended["op"] == "failed", ran.ended
    assert ran.ended["step"] == "plan"
    assert field in ran.ended["subject"]


@pytest.mark.parametrize(
    "limit",
    [
        {"memory": 1 << 60}, {"memory": -1}, {"memory": float("nan")}, {"memory": True}, {"pids": 0},
            {"cpus": 0},
        {"wall_time": float("inf")}, {"cpu_time": -1.0}, {"disk": 0}, {"unknown": 1}, {"memory": "1"},
    ],
)  # fmt: skip
def test_the_launcher_trusts_no_limit(sandbox: Launcher, limit: dict[str, float]) -> None:
    """A limit that is not a finite number within the host's ceilings runs nothing."""
    ran = sandbox.run(["/bin/true"], **limit)
    assert (ran.ended["op"], ran.ended["step"]) == ("failed", "plan")


def test_many_clients_at_once_get_their_own_answers(sandbox: Launcher) -> None:
    """Twelve clients at once each get their own output and their own end."""
    answers: dict[int, object] = {}

    def one(number: int) -> None:
        answers[number] = json.loads(sandbox.run(f"say({number})").assert_succeeded().stdout)

    threads = [threading.Thread(target=one, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == {number: number for number in range(12)}


NASTY: list[Any] = [
    None, True, -1, 0, 1 << 70, -(1 << 70), 1e308, "", "\ud800", "\udcff", "x" * 5000, "\0", [], [[]], {},
        {"a": {}}, [None],
    ["\ud800"], ["x", 1], {"\ud800": "x"}, {"x": "\ud800"}, [{}], "/" * 5000, "../../..", [1 << 70], {"": ""},
]  # fmt: skip


def plan() -> dict[str, Any]:
    """A plan that runs."""
    return {
        "op": "run",
        "image": "host",
        "argv": ["/bin/true"],
        "env": {},
        "cwd": "/work",
        "user": 0,
        "hostname": "x",
        "syscalls": "default",
        "capabilities": [],
        "limits": dict(LIMITS),
    }


def say(peer: socket.socket, message: Any, descriptors: list[int]) -> None:
    """Send a message as a peer can that does not use our client."""
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
    peer.sendmsg([json.dumps(message).encode()], rights)


@contextlib.contextmanager
def connected(launcher: Launcher) -> Iterator[tuple[socket.socket, int]]:
    """A raw connection, and a descriptor of /dev/null to give away."""
    null = os.open("/dev/null", os.O_RDWR)
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as peer:
            peer.connect(str(launcher.socket))
            peer.settimeout(20 * SLOWDOWN)
            yield peer, null
    finally:
        os.close(null)


@pytest.mark.parametrize("field", [*plan(), "keep", "limits.memory", "limits.cpus", "limits.wall_time"])
def test_no_value_in_a_plan_harms_the_launcher(sandbox: Launcher, field: str) -> None:
    """Every field with every kind of nonsense is answered, and the launcher serves the next job."""
    for value in NASTY:
        message = plan()
        if field.startswith("limits."):
            message["limits"][field.removeprefix("limits.")] = value
        else:
            message[field] = value
        with connected(sandbox) as (peer, null):
            say(peer, message, [null] * 3)
            answer = json.loads(peer.recv(1 << 20))
            assert answer["op"] in ("failed", "ended"), (field, value, answer)
    sandbox.run(["/bin/true"]).assert_succeeded()


@pytest.mark.parametrize(
    "message",
    [
        {"op": "collect", "patterns": ["*"], "max_files": 1, "max_bytes": 1},
        {"op": "collect", "patterns": "x", "max_files": "1", "max_bytes": None},
        {"op": "collect"},
        {"op": "kill", "reason": []},
        {"op": "kill"},
        {"op": []},
        {"op": {}},
        {"op": None},
        {},
    ],
    ids=str,
)
def test_no_other_request_harms_the_launcher(sandbox: Launcher, message: dict[str, Any]) -> None:
    """Requests before, instead of and after a run are answered with an error of ours or ignored."""
    with connected(sandbox) as (peer, null):
        say(peer, message, [])
        say(peer, plan(), [null] * 3)
        answers = [json.loads(peer.recv(1 << 20))]
        while answers[-1]["op"] != "ended":
            answers.append(json.loads(peer.recv(1 << 20)))
        say(peer, message, [null])
    sandbox.run(["/bin/true"]).assert_succeeded()


@pytest.mark.parametrize("count", [0, 1, 2, 5, 16, 40])
def test_a_wrong_number_of_descriptors_is_refused(sandbox: Launcher, count: int) -> None:
    """Three or four descriptors make a step; any other number is refused and none of them is kept."""
    with connected(sandbox) as (peer, null):
        say(peer, plan(), [null] * count)
        assert json.loads(peer.recv(1 << 20))["op"] == "failed"


@pytest.mark.parametrize(
    "kind", ["directory", "epoll", "path", "socket", "pipe", "zero", "random", "rubbish", "huge"]
)
def test_a_wrong_kind_of_descriptor_is_refused(sandbox: Launcher, kind: str) -> None:
    """Whatever is passed as the workspace's files, the job runs or fails in bounded time, and nothing hangs."""
    with contextlib.ExitStack() as stack:
        opened = stack.enter_context(contextlib.closing(_Descriptor(kind)))
        peer, null = stack.enter_context(connected(sandbox))
        say(peer, plan(), [null, null, null, opened.number])
        assert json.loads(peer.recv(1 << 20))["op"] in ("failed", "ended")


class _Descriptor:
    """One open descriptor of some kind."""

    def __init__(self, kind: str) -> None:
        self._others: list[int] = []
        if kind == "directory":
            self.number = os.open("/", os.O_RDONLY | os.O_DIRECTORY)
        elif kind == "path":
            self.number = os.open("/etc/shadow", os.O_PATH)
        elif kind == "epoll":
            poll = select.epoll()
            self.number = os.dup(poll.fileno())
            poll.close()
        elif kind == "socket":
            one, other = socket.socketpair()
            self.number = one.detach()
            self._others.append(other.detach())
        elif kind == "pipe":
            self.number, other_end = os.pipe()
            self._others.append(other_end)
        elif kind in ("zero", "random"):
            self.number = os.open({"zero": "/dev/zero", "random": "/dev/urandom"}[kind], os.O_RDONLY)
        else:
            self.number = os.memfd_create("files")
            os.write(
                self.number,
                b"\xff" * 100 if kind == "rubbish" else struct.pack("<HIQ", 1, 0o644, 1 << 62) + b"x",
            )

    def close(self) -> None:
        for number in (self.number, *self._others):
            os.close(number)


def test_a_peer_that_never_listens_holds_nobody_up(sandbox: Launcher) -> None:
    """Answers that nobody reads are not waited for: the next job of another peer runs at once."""
    with connected(sandbox) as (peer, _):
        peer.setblocking(False)
        end = time.monotonic() + 1
        while time.monotonic() < end:
            with contextlib.suppress(OSError):
                say(peer, {"op": "nope" * 100}, [])
        ran: list[Ran] = []
        other = threading.Thread(target=lambda: ran.append(sandbox.run(["/bin/true"])), daemon=True)
        other.start()
        other.join(10 * SLOWDOWN)
        answered = bool(ran)
    other.join(10 * SLOWDOWN)
    assert answered, "the launcher waits for a peer that does not read"
    ran[0].assert_succeeded()


def test_a_crowd_of_jobs_comes_and_goes() -> None:
    """Seventy jobs at once run side by side; when their callers leave together nothing of them stays."""
    crowded = Launcher()
    try:
        with contextlib.ExitStack() as stack:
            for _ in range(70):
                job = stack.enter_context(crowded.job())
                job.start(["/bin/sleep", "1000"], pids=2, wall_time=60 * SLOWDOWN)
            end = time.monotonic() + 30 * SLOWDOWN
            while len(crowded.pids()) < 70 and time.monotonic() < end:
                time.sleep(0.1)
            assert len(crowded.pids()) == 70
        end = time.monotonic() + census.SETTLE_SECONDS
        while crowded.pids() and time.monotonic() < end:
            time.sleep(0.1)
        assert crowded.pids() == []
        crowded.run(["/bin/true"]).assert_succeeded()
        assert crowded.process.poll() is None
    finally:
        crowded.stop()


def test_a_caller_that_leaves_during_collection_leaves_nothing(sandbox: Launcher) -> None:
    """A connection that closes while files are being collected or cleaned up ends that work too."""
    for delay in (0, 0.001, 0.01, 0.05):
        with sandbox.job() as job:
            job.run("for n in range(3000): open(str(n), 'w').close()", plan={"keep": True}).assert_succeeded()
            generator = job.session.collect(["**"], 3000, 1 << 20, [])
            os.close(next(generator).fd)
            time.sleep(delay)
    for delay in (0, 0.005):
        with sandbox.job() as job:
            job.start("for n in range(3000): open('/tmp/' + str(n), 'w').close()", plan={"keep": True})
            time.sleep(delay)


def test_a_dead_forker_is_no_dead_launcher() -> None:
    """When the process that forks sandboxes is killed, the next jobs run, or the launcher ends and says so."""
    wounded = Launcher()
    try:
        wounded.run(["/bin/true"]).assert_succeeded()
        forkers = [pid for pid in census.descendants(wounded.process.pid) if _name(pid) == "stockade-zygote"]
        os.kill(min(forkers), signal.SIGKILL)
        ended: list[Any] = []

        def one() -> None:
            with contextlib.suppress(SandboxError):
                ended.append(wounded.run(["/bin/true"]).ended["op"])
            with contextlib.suppress(SandboxError):
                ended.append(wounded.run(["/bin/true"]).ended["op"])
            ended.append("over")

        client = threading.Thread(target=one, daemon=True)
        client.start()
        client.join(20 * SLOWDOWN)
        assert ended and ended[-1] == "over", "a job hangs"
        assert ended[:-1][-1:] == ["ended"] or wounded.process.wait(5 * SLOWDOWN) != 0
    finally:
        wounded.stop()


def _name(pid: int) -> str:
    return census.read(f"/proc/{pid}/comm").strip()


def test_a_program_is_not_looked_for_at_the_launchers_cost(sandbox: Launcher) -> None:
    """Case 162: a long name times a long PATH is neither built nor searched by the launcher."""

    def peak() -> int:
        status = census.read(f"/proc/{sandbox.process.pid}/status")
        return int(status.split("VmHWM:")[1].split()[0]) << 10

    before = peak()
    ran = sandbox.run(["x" * 30000], plan={"env": {"PATH": ":" * 30000}})
    assert (ran.ended["op"], ran.ended.get("exec_errno")) == ("ended", errno.ENAMETOOLONG)
    assert peak() - before < 16 << 20


def test_a_directory_is_no_standard_stream(sandbox: Launcher) -> None:
    """Case 75: a descriptor of a directory of the host, which leads to all of its files, never becomes stdio."""
    with sandbox.job() as job:
        root, null = os.open("/", os.O_RDONLY), os.open("/dev/null", os.O_RDWR)
        pathless = os.open("/etc/hostname", os.O_PATH)
        try:
            for bad in (root, pathless):
                for place in range(3):
                    fds = [null] * 3
                    fds[place] = bad
                    job.session.run({"argv": ["/bin/true"], "env": {}}, *fds)
                    answer = job.session.receive()
                    assert (answer["op"], answer["subject"]) == ("failed", "descriptors")
        finally:
            for descriptor in (root, null, pathless):
                os.close(descriptor)


def test_connections_in_numbers_take_no_descriptor_from_jobs() -> None:
    """A launcher with few descriptors that is crowded with idle peers goes on serving those that it has, quietly."""
    crowded = Launcher(open_files=400)
    peers: list[socket.socket] = []
    try:
        with crowded.job() as job:
            job.start("say('up'); time.sleep(1)")
            job.line()
            for _ in range(600):
                peer = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
                peers.append(peer)
                peer.setblocking(False)
                with contextlib.suppress(OSError):
                    peer.connect(str(crowded.socket))
            job.wait().assert_succeeded()
        assert crowded.log.stat().st_size < 64 << 10
    finally:
        for peer in peers:
            peer.close()
        crowded.stop()


@pytest.mark.parametrize("path", ["../up", "a/../../up", "/etc/up", "a//b", "./a"])
def test_a_file_outside_of_the_workspace_is_refused(sandbox: Launcher, path: str) -> None:
    """A broken worker that packs a path out of the workspace gets a refusal, and no program runs."""
    ran = sandbox.run(["/bin/true"], files={path: (b"x", 0o644)})
    assert (ran.ended["op"], ran.ended["step"], ran.ended["subject"]) == ("failed", "files", path)
