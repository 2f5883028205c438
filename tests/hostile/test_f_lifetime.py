"""Group F: when a job begins and ends, and that its end is the end of everything of it.

Numbers after "case" are those of the table in this directory's README.md.
"""

import contextlib
import errno
import os
import signal
import time
from pathlib import Path

import pytest

from tests import census
from tests.census import SLOWDOWN
from tests.sandboxes import Launcher, MiB
from worker.sandbox.errors import SandboxError

pytestmark = pytest.mark.kernel


def test_a_sleeper_ends_at_its_wall_time(sandbox: Launcher) -> None:
    """Case 111: a sleeping job is killed within half a second of its deadline, which the launcher keeps."""
    ran = sandbox.run("time.sleep(1e6)", wall_time=1.0)
    assert ran.ended["killed"] == "wall_time"
    assert 1.0 <= ran.ended["usage"]["wall_time"] < 1.0 + 0.5 * SLOWDOWN
    (fact,) = ran.evidence("wall_time")
    assert (fact["value"], fact["where"]) == (1.0, "CLOCK_MONOTONIC")


def test_a_daemon_ends_with_the_main_process(sandbox: Launcher) -> None:
    """Case 114: double fork, own session, output held open: the job ends at once and the pipes are at
    their end.
    """
    ran = sandbox.run(
        """
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        time.sleep(1000)
    os._exit(0)
say("main is done")
"""
    )
    assert ran.assert_succeeded().said == "main is done"
    assert ran.ended["usage"]["wall_time"] < 2 * SLOWDOWN
    assert ran.seconds < 3 * SLOWDOWN


def test_output_is_at_its_end_when_the_job_is(sandbox: Launcher) -> None:
    """Case 114: nobody who holds a pipe survives the main process, so reading ends without a time-out."""
    with sandbox.job() as job:
        job.start("[os.fork() for _ in range(4)]\nif os.getpid() != 2: time.sleep(1000)\nsay(1)")
        ran = job.wait()
        begin = time.monotonic()
    assert ran.assert_succeeded().said == 1
    assert time.monotonic() - begin < 1 * SLOWDOWN


def test_a_main_thread_may_leave_first(sandbox: Launcher) -> None:
    """Case 116: a process whose first thread has gone runs on until the last one ends."""
    ran = sandbox.run(
        """
def rest():
    time.sleep(0.5)
    os.write(1, b'"after"\\n')
    os._exit(7)
threading.Thread(target=rest).start()
_libc.pthread_exit(None)
"""
    )
    assert ran.ended["exit_code"] == 7
    assert ran.stdout == b'"after"\n'
    assert ran.ended["usage"]["wall_time"] >= 0.5


@pytest.mark.parametrize(
    ("argv", "files", "number"),
    [
        (["/work/missing"], {}, "ENOENT"),
        (["no-such-program"], {}, "ENOENT"),
        (["./plain"], {"plain": (b"text", 0o644)}, "EACCES"),
        (["/work"], {}, "EACCES"),
        (["./junk"], {"junk": (b"\x00\x01\x02junk", 0o755)}, "ENOEXEC"),
        (["./empty"], {"empty": (b"", 0o755)}, "ENOEXEC"),
        (["./script"], {"script": (b"#!/no/such/interpreter\n", 0o755)}, "ENOENT"),
        (["./script"], {"script": (b"#!/work/script\n", 0o755)}, "ELOOP"),
        (["./short"], {"short": (b"\x7fELF", 0o755)}, "ENOEXEC"),
        (["./loop/x"], {"loop": (b"", 0o644)}, "ENOTDIR"),
    ],
)
def test_a_program_that_cannot_be_executed_is_told_by_its_errno(
    sandbox: Launcher, argv: list[str], files: dict[str, tuple[bytes, int]], number: str
) -> None:
    """Case 119: a missing or unfit program is the job's failure, told at once by the kernel's errno."""
    ran = sandbox.run(argv, files=files or None)
    assert ran.ended["op"] == "ended", ran.ended
    assert errno.errorcode.get(ran.ended["exec_errno"]) == number
    assert (ran.ended["exit_code"], ran.ended["signal"], ran.ended["killed"]) == (None, None, None)
    assert ran.seconds < 5 * SLOWDOWN


def test_arguments_beyond_the_kernels_room_are_told(sandbox: Launcher) -> None:
    """Case 119: one argument over 128 KiB is E2BIG of the job, or refused before; never a hang."""
    ran = sandbox.run(["/bin/true", "x" * (140 << 10)])
    assert ran.ended["op"] == "failed" or ran.ended["exec_errno"] == 7


def test_three_megabytes_of_arguments_are_refused(sandbox: Launcher) -> None:
    """Case 119: a plan larger than a message of the launcher is an error of the caller."""
    with pytest.raises(SandboxError):
        sandbox.run(["/bin/true", *["x" * 100_000] * 30])


def test_a_missing_working_directory_is_told(sandbox: Launcher) -> None:
    """Case 119: a directory that is not there is named by errno, before the program runs."""
    ran = sandbox.run(["/bin/pwd"], cwd="/work/none")
    assert (ran.ended["exec_errno"], ran.stdout) == (2, b"")


def test_programs_that_end_at_once_are_never_lost(sandbox: Launcher) -> None:
    """Case 121: fifty programs that exit before anybody looks each have their exit status and a clean end."""
    for number in range(50):
        ran = sandbox.run(["/bin/sh", "-c", f"exit {number}"])
        assert (ran.ended["exit_code"], ran.ended["teardown"]) == (number, "clean")


@pytest.mark.parametrize("delay", [0, 0.001, 0.003, 0.01, 0.05, 0.3])
def test_a_caller_that_goes_away_leaves_nothing(sandbox: Launcher, delay: float) -> None:
    """Case 122: whenever the connection closes, everything of the job is gone soon after."""
    with sandbox.job() as job:
        job.start(
            "[os.fork() for _ in range(3)]\nopen('/work/x', 'wb').write(b'x' * (4 << 20))\ntime.sleep(1000)"
        )
        time.sleep(delay * SLOWDOWN)
    end = time.monotonic() + census.SETTLE_SECONDS
    while sandbox.pids() and time.monotonic() < end:
        time.sleep(0.01)
    assert sandbox.pids() == []


@pytest.mark.parametrize("reason", ["cancelled", "output"])
def test_a_running_job_can_be_killed_for_a_reason(sandbox: Launcher, reason: str) -> None:
    """Case 122: a cancelled step ends at once, once, and says why."""
    with sandbox.job() as job:
        job.start("say('up'); time.sleep(1000)")
        job.line()
        job.session.kill(reason)
        job.session.kill("cancelled")
        ran = job.wait()
    assert (ran.ended["killed"], ran.ended["teardown"]) == (reason, "clean")
    assert ran.seconds < 5 * SLOWDOWN


@pytest.mark.parametrize("delay", [0, 0.002, 0.01])
def test_a_step_can_be_killed_before_it_runs(sandbox: Launcher, delay: float) -> None:
    """Case 122: a kill that comes during set-up gives one end, `cancelled` or what the program managed."""
    with sandbox.job() as job:
        job.start(["/bin/sleep", "1000"])
        time.sleep(delay)
        job.session.kill("cancelled")
        ran = job.wait()
    assert (ran.ended["op"], ran.ended["killed"]) == ("ended", "cancelled")


def test_a_kill_after_the_end_means_nothing(sandbox: Launcher) -> None:
    """Case 122: a late cancel neither harms the session nor the next step."""
    with sandbox.job() as job:
        job.run(["/bin/true"], plan={"keep": True}).assert_succeeded()
        job.session.kill("cancelled")
        job.run(["/bin/true"]).assert_succeeded()


def test_a_killed_launcher_takes_its_jobs_along() -> None:
    """Case 199: when the launcher is killed outright, no process of a job outlives it."""
    doomed = Launcher()
    with doomed.job() as job:
        job.start(
            "signal.signal(15, signal.SIG_IGN)\n[os.fork() for _ in range(3)]\nsay('up')\ntime.sleep(1000)"
        )
        job.line()
        end = time.monotonic() + 10 * SLOWDOWN
        while len(doomed.pids()) < 8 and time.monotonic() < end:
            time.sleep(0.02)
        inside = census.descendants(doomed.process.pid)
        assert len(inside) > 8
        os.kill(doomed.process.pid, signal.SIGKILL)
        doomed.process.wait()
    end = time.monotonic() + census.SETTLE_SECONDS
    while [pid for pid in inside if os.path.exists(f"/proc/{pid}")] and time.monotonic() < end:
        time.sleep(0.02)
    assert [pid for pid in inside if os.path.exists(f"/proc/{pid}")] == []
    doomed.remove()
    after = Launcher()
    try:
        after.run(["/bin/true"]).assert_succeeded()
        name = census.parent_cgroup(after.process.pid)
    finally:
        after.stop()
    assert name
    assert not [
        path for mount in census.cgroup_mounts() for path in mount.glob(f"**/{name}/*") if path.is_dir()
    ]


def test_a_stopped_launcher_leaves_nothing() -> None:
    """SIGTERM with jobs running kills them, and no cgroup, process, socket or mount stays."""
    before = {path for mount in census.cgroup_mounts() for path in mount.glob("**/stockade-*")}
    stopped = Launcher()
    with contextlib.ExitStack() as stack:
        jobs = [stack.enter_context(stopped.job()) for _ in range(3)]
        for job in jobs:
            job.start("say('up'); time.sleep(1000)")
            job.line()
        inside = census.descendants(stopped.process.pid)
        name = census.parent_cgroup(stopped.process.pid)
        stopped.process.terminate()
        assert stopped.process.wait(20 * SLOWDOWN) == 0
    assert not stopped.socket.exists()
    assert [pid for pid in inside if os.path.exists(f"/proc/{pid}")] == []
    made = {path for mount in census.cgroup_mounts() for path in mount.glob("**/stockade-*")} - before
    assert not [path for path in made if path.name == name]
    stopped.remove()


VFORK_C = b"""
#include <unistd.h>
int main(void) {
    if (vfork() == 0) {
        for (;;) pause();
    }
    return 0;
}
"""


@pytest.mark.skipif(not Path("/usr/bin/gcc").exists(), reason="needs a C compiler in the image `host`")
def test_a_parent_that_waits_for_its_vfork_child_is_killed(sandbox: Launcher) -> None:
    """Case 110: the uninterruptible wait of vfork ends with the kill, and the teardown is clean."""
    with sandbox.job() as job:
        files = {"a.c": VFORK_C}
        job.run(["gcc", "a.c", "-o", "a"], files=files, plan={"keep": True}).assert_succeeded()
        ran = job.run(["./a"], wall_time=0.5 * SLOWDOWN)
    assert (ran.ended["killed"], ran.ended["teardown"]) == ("wall_time", "clean")
    assert ran.seconds < 2 * SLOWDOWN


def test_init_cannot_be_killed_from_inside(sandbox: Launcher) -> None:
    """Case 199: no signal of the job ends its PID 1."""
    ran = sandbox.run("say([tried(os.kill, 1, n) for n in (9, 15, 19, 11, 2)])")
    assert set(ran.assert_succeeded().said) == {"EPERM"}


def test_a_sandbox_whose_init_dies_is_told(sandbox: Launcher) -> None:
    """Case 199: when PID 1 is killed from the host, the step ends as ours or as killed, not as a success."""
    with sandbox.job() as job:
        job.start("say('up'); time.sleep(1000)")
        job.line()
        (task,) = sandbox.pids()
        init = census.processes()[task]
        os.kill(init, signal.SIGKILL)
        ran = job.wait()
    assert ran.ended.get("exit_code") != 0
    assert ran.ended["op"] == "failed" or ran.ended["signal"] or ran.ended["killed"], ran.ended


def test_many_mixed_jobs_leave_the_launcher_as_it_was(sandbox: Launcher) -> None:
    """Case 213: good and hostile jobs in turn: descriptors, mounts, cgroups and memory of the launcher
    stay flat.
    """
    programs: list[tuple[object, dict[str, float]]] = [
        (["/bin/true"], {}),
        ("x = bytearray(1 << 30)", {"memory": 16 * MiB}),
        ("[os.fork() for _ in range(10)]", {"pids": 16}),
        (["/work/missing"], {}),
        ("os.kill(os.getpid(), 11)", {}),
    ]
    for _ in range(20):
        sandbox.run(["/bin/true"])
    resident = _resident(sandbox.process.pid)
    for number in range(40):
        program, limits = programs[number % len(programs)]
        sandbox.run(program, **limits)  # type: ignore[arg-type]
    assert _resident(sandbox.process.pid) - resident < 2 * MiB


def _resident(pid: int) -> int:
    (line,) = (line for line in census.read(f"/proc/{pid}/status").splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) << 10
