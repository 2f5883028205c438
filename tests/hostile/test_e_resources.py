"""Group E, CPU time and processes: a job gets what its limits say, and the neighbours do not feel it.

Numbers after "case" are those of the table in this directory's README.md.
"""

import contextlib
import time

import pytest

from tests.census import SLOWDOWN
from tests.sandboxes import Launcher, MiB
from worker.sandbox.plan import FLOORS

pytestmark = pytest.mark.kernel


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
    ran.assert_killed("wall_time")
    assert ran.seconds < 4 * SLOWDOWN


def test_a_starved_step_dies_as_fast_as_any(sandbox: Launcher) -> None:
    """Case 84: a step with next to no CPU time and many processes is not slowed down in dying by its own limit."""
    ran = sandbox.run(
        """
for _ in range(60):
    if os.fork() == 0:
        time.sleep(1000)
time.sleep(1000)
""",
        pids=64,
        cpus=0.02,
        wall_time=4.0 * SLOWDOWN,
    )
    ran.assert_killed("wall_time")
    assert ran.seconds < (4.0 + 1.0) * SLOWDOWN


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
    ran.assert_killed("wall_time")
    assert ran.seconds < (0.6 + 3) * SLOWDOWN


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
    ran.assert_killed("cpu_time")
    (fact,) = ran.evidence("cpu_time")
    assert 0.5 <= fact["observed"] < 0.5 + 0.5 * SLOWDOWN


def test_the_least_limits_give_an_outcome(sandbox: Launcher) -> None:
    """With limits so small that nothing runs, the job gets its verdict and the launcher no fault."""
    for name, least in FLOORS.items():
        limits = {name: least}
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
