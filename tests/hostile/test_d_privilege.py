"""Group D: what a job's root may do, and that it stays no more than that.

Numbers after "case" are those of the table in this directory's README.md.
"""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import census
from tests.sandboxes import Launcher, secret

pytestmark = pytest.mark.kernel

DEFAULT_BOUNDING_SET = "00000000000004fb"
NOTHING = "0000000000000000"
CAPS = """
def caps(task="self"):
    lines = content(f"/proc/{task}/status").splitlines()
    return {line[3:6]: line.split()[1] for line in lines if line.startswith("Cap")}
"""


def test_a_jobs_root_has_eight_capabilities(sandbox: Launcher) -> None:
    """Case 69: the bounding set of every task is the policy's, and nothing is ambient or inheritable."""
    ran = sandbox.run(
        f"{CAPS}\nimport subprocess\nsay([caps(), subprocess.run(['cat', '/proc/self/status'], "
        f"capture_output=True, text=True).stdout])"
    )
    own, child = ran.assert_succeeded().said
    expected = {"Inh": NOTHING, "Amb": NOTHING}
    expected |= dict.fromkeys(("Prm", "Eff", "Bnd"), DEFAULT_BOUNDING_SET)
    assert own == expected
    assert [line.split()[1] for line in child.splitlines() if line.startswith("CapBnd")] == [
        DEFAULT_BOUNDING_SET
    ]


def test_another_user_has_no_capability(sandbox: Launcher) -> None:
    """Case 69: a job that a policy runs as a plain user starts with none."""
    ran = sandbox.run(f"{CAPS}\nsay([caps(), os.getresuid(), os.getresgid()])", user=1000)
    own, uids, gids = ran.assert_succeeded().said
    assert {own[kind] for kind in ("Eff", "Prm", "Amb", "Inh")} == {NOTHING}
    assert int(own["Bnd"], 16) & ~int(DEFAULT_BOUNDING_SET, 16) == 0
    assert uids == gids == [1000, 1000, 1000]


def test_a_policy_can_take_every_capability(sandbox: Launcher) -> None:
    """Case 69: an empty list means none at all, for root too."""
    ran = sandbox.run(f"{CAPS}\nsay(caps())", capabilities=[])
    assert set(ran.assert_succeeded().said.values()) == {NOTHING}


def test_lost_capabilities_do_not_come_back(sandbox: Launcher) -> None:
    """Case 70: capset, ambient raising, setuid 0 and execution never exceed the bounding set."""
    ran = sandbox.run(
        f"""{CAPS}
import subprocess
header = struct.pack("=Ii", 0x20080522, 0)
everything = struct.pack("=6I", *[0xffffffff] * 6)
answers = [sc(126, header, everything), sc(157, 47, 2, 21, 0, 0), sc(157, 28, 0, 0, 0, 0), sc(157, 24, 63,
    0, 0, 0)]
os.setuid(0)
after = caps()
child = subprocess.run(["cat", "/proc/self/status"], capture_output=True, text=True).stdout
say([answers, after, child])
"""
    )
    answers, after, child = ran.assert_succeeded().said
    assert not [answer for answer in answers if isinstance(answer, int)]
    allowed = int(DEFAULT_BOUNDING_SET, 16)
    values = [*after.values(), *[line.split()[1] for line in child.splitlines() if line.startswith("Cap")]]
    assert not [value for value in values if int(value, 16) & ~allowed]


def test_a_plain_user_does_not_become_root(sandbox: Launcher) -> None:
    """Case 70: without capabilities no call leads back to uid 0."""
    ran = sandbox.run(
        "say([tried(os.setuid, 0), tried(os.setresuid, 0, 0, 0), tried(os.setgid, 0), "
        "tried(os.setgroups, [0]), os.getuid()])",
        user=1000,
    )
    assert ran.assert_succeeded().said == ["EPERM"] * 4 + [1000]


def test_the_maps_of_ids_are_final(sandbox: Launcher) -> None:
    """Case 71: the user namespace's maps cannot be written a second time."""
    ran = sandbox.run(
        """
def write(name, text):
    return tried(lambda: os.write(os.open(f"/proc/self/{name}", os.O_WRONLY), text))
say([write("uid_map", b"0 0 1"), write("gid_map", b"0 0 1"), write("setgroups", b"allow"),
    write("projid_map", b"0 0 1")])
"""
    )
    uid, gid, groups, projects = ran.assert_succeeded().said
    assert uid == gid == "EPERM"
    assert {groups, projects} <= {"EPERM", "EINVAL", "EACCES", "ok"}


def test_ids_end_where_the_map_ends(sandbox: Launcher) -> None:
    """Case 72: ids beyond the range do not exist, neither for processes nor for files."""
    ran = sandbox.run(
        """
open("f", "w").close()
child = os.fork()
if child == 0:
    os.setresuid(65535, 65535, 65535)
    os._exit(0)
say([tried(os.setresuid, 70000, 70000, 70000), tried(os.setresgid, 70000, 70000, 70000),
    tried(os.chown, "f", 70000, 70000), tried(os.chown, "f", 65535, 65535), os.waitpid(child, 0)[1]])
"""
    )
    assert ran.assert_succeeded().said == ["EINVAL", "EINVAL", "EINVAL", "ok", 0]


def test_no_supplementary_group_is_left(sandbox: Launcher) -> None:
    """Case 73: none of the launcher's groups stays with the job."""
    assert sandbox.run("say(os.getgroups())").assert_succeeded().said == []


@pytest.fixture(scope="module")
def careless_launcher() -> Iterator[tuple[Launcher, str]]:
    """A launcher with a secret in its environment and an open, inheritable descriptor 57 of the host's
    root.
    """
    text = secret()
    descriptor = os.open("/", os.O_RDONLY | os.O_DIRECTORY)
    os.dup2(descriptor, 57, inheritable=True)
    os.close(descriptor)
    try:
        started = Launcher(environment={"STOCKADE_TEST_SECRET": text}, plant=57)
    finally:
        os.close(57)
    yield started, text
    started.stop()


def test_no_secret_of_the_service_is_in_reach(careless_launcher: tuple[Launcher, str]) -> None:
    """Case 74: the launcher's environment is in no environment, command line or memory that a job can
    read.
    """
    launcher, text = careless_launcher
    ran = launcher.run(
        f"""
import re
word = ("{text[:12]}" + "{text[12:]}")
half = word[12:].encode()
hits = []
for pid in [p for p in os.listdir("/proc") if p.isdigit()]:
    for name in ("environ", "cmdline"):
        try:
            if word.encode() in open(f"/proc/{{pid}}/{{name}}", "rb").read(): hits.append([pid, name])
        except OSError:
            pass
# The word itself stands in this program's memory; anything before or after it would come from an environment.
pattern = b"STOCKADE_TEST_" + b"SECRET="
if os.environ.get("STOCKADE_TEST_" + "SECRET"): hits.append("environment")
with open("/proc/self/mem", "rb", 0) as memory:
    for line in open("/proc/self/maps"):
        begin, end = (int(part, 16) for part in line.split()[0].split("-"))
        if "r" in line.split()[1] and end < 1 << 47:
            try:
                memory.seek(begin)
                data = memory.read(end - begin)
            except OSError:
                continue
            if re.search(re.escape(pattern) + rb"[s]entinel", data): hits.append(line)
say([hits, sorted(os.environ)])
"""
    )
    hits, names = ran.assert_succeeded().said
    assert hits == []
    assert set(names) <= {"PATH", "HOME", "LANG", "LC_CTYPE"}


def test_a_forgotten_descriptor_does_not_travel(careless_launcher: tuple[Launcher, str]) -> None:
    """Case 75: what the launcher has open without close-on-exec is closed before the job begins."""
    launcher, _ = careless_launcher
    ran = launcher.run(
        "say([sorted(os.listdir('/proc/self/fd')), tried(os.fstat, 57), "
        "content('/proc/self/fd/57/etc/shadow')])"
    )
    listed, descriptor, reached = ran.assert_succeeded().said
    assert listed == ["0", "1", "2", "3"]
    assert descriptor == "EBADF"
    assert reached == "ENOENT"


@pytest.mark.parametrize("profile", ["default", "strict", "debug"])
def test_a_crash_leaves_no_core_file(sandbox: Launcher, profile: str) -> None:
    """Case 77: a crash writes no core file, and the limit of 1 that also stops a core handler cannot be changed."""
    with sandbox.job() as job:
        ran = job.run(
            """
new = struct.pack("=QQ", 0, 0)
say([resource.getrlimit(resource.RLIMIT_CORE), sc(160, 4, new), sc(160, 4 | 1 << 32, new), sc(302, 0, 4, new, 0),
    sc(302, os.getpid(), 4 | 7 << 32, new, 0), resource.getrlimit(resource.RLIMIT_CORE)])
os.kill(os.getpid(), signal.SIGSEGV)
""",
            plan={"keep": True, "syscalls": profile},
        )
        assert ran.ended["signal"] == 11
        before, *refused, after = ran.said
        left = job.run(["/bin/ls", "-a", "/work"]).assert_succeeded().stdout.split()
    assert before == after == [1, 1]
    assert set(refused) <= {"EPERM", 0}
    assert left == [b".", b".."]


def test_a_piped_core_pattern_runs_nothing(sandbox: Launcher, tmp_path: Path) -> None:
    """Case 77: with a core handler on the host either no job is run, or a crash does not start it."""
    pattern = Path("/proc/sys/kernel/core_pattern")
    before = pattern.read_text()
    helper, ran_file = tmp_path / "helper", tmp_path / "ran"
    helper.write_text(f"#!/bin/sh\ntouch {ran_file}\n")
    helper.chmod(0o755)
    pattern.write_text(f"|{helper}")
    try:
        ran = sandbox.run("os.kill(os.getpid(), signal.SIGSEGV)")
    finally:
        pattern.write_text(before)
    assert ran.ended["op"] == "failed" or ran.ended["signal"] == 11
    assert not ran_file.exists()


def test_a_job_is_killed_before_the_host(sandbox: Launcher) -> None:
    """Case 78: the score that the host's out-of-memory killer goes by can never be pushed below neutral."""
    ran = sandbox.run(
        """
def write(value):
    return tried(lambda: os.write(os.open("/proc/self/oom_score_adj", os.O_WRONLY), value))
first = int(content("/proc/self/oom_score_adj"))
say([first, write(b"-1"), write(b"-1000"), int(content("/proc/self/oom_score_adj"))])
"""
    )
    first, *refused, last = ran.assert_succeeded().said
    assert first >= 500
    assert refused == ["EACCES", "EACCES"]
    assert last == first


def test_limits_of_processes_cannot_be_raised(sandbox: Launcher) -> None:
    """Case 79: the hard limits are the soft ones, and higher values are refused."""
    ran = sandbox.run(
        """
names = ["NOFILE", "FSIZE", "STACK", "CORE", "MEMLOCK", "MSGQUEUE", "SIGPENDING", "RTPRIO", "NICE"]
def unchanged(name):
    kind = getattr(resource, "RLIMIT_" + name)
    soft, hard = resource.getrlimit(kind)
    try:
        resource.setrlimit(kind, (soft, hard + 1))
    except (OSError, ValueError):
        pass
    return resource.getrlimit(kind) == (soft, hard) and soft == hard and hard != resource.RLIM_INFINITY
say({name: unchanged(name) for name in names})
"""
    )
    assert {name: answer for name, answer in ran.assert_succeeded().said.items() if answer is not True} == {}


def test_the_requested_limits_are_those_in_force(sandbox: Launcher) -> None:
    """Case 79: open files, file size and stack are set to the byte."""
    ran = sandbox.run(
        "say([resource.getrlimit(k)[0] for k in (resource.RLIMIT_NOFILE, resource.RLIMIT_FSIZE, "
        "resource.RLIMIT_STACK)])",
        open_files=77,
        file_size=12345,
        stack=1 << 20,
    )
    assert ran.assert_succeeded().said == [77, 12345, 1 << 20]


def test_priority_cannot_be_taken(sandbox: Launcher) -> None:
    """Case 80: real-time scheduling, negative niceness and real-time I/O are refused."""
    ran = sandbox.run(
        """
say([tried(os.sched_setscheduler, 0, os.SCHED_FIFO, os.sched_param(1)), tried(os.setpriority,
    os.PRIO_PROCESS, 0, -20),
    sc(251, 1, 0, 1 << 13), tried(os.sched_setscheduler, 0, os.SCHED_RR, os.sched_param(1)),
    tried(os.setpriority, os.PRIO_PROCESS, 1, 10), tried(os.kill, 1, 15)])
"""
    )
    fifo, nice, io, rr, of_init, signalled = ran.assert_succeeded().said
    assert fifo == rr == "EPERM"
    assert nice in {"EACCES", "EPERM"}
    assert io in {"EPERM", "ENOSYS"}
    assert of_init in {"EPERM", "EACCES", "ESRCH"}
    assert signalled == "EPERM"


def test_nothing_of_a_job_runs_as_a_user_of_the_host(sandbox: Launcher) -> None:
    """The host's uid of every task of a job lies in the job range, whatever the task calls itself."""
    with sandbox.job() as job:
        job.start(
            """
for uid in (0, 1, 1000, 65534):
    if os.fork() == 0:
        os.setresgid(uid, uid, uid); os.setresuid(uid, uid, uid)
        time.sleep(60)
time.sleep(0.3)
say("up")
time.sleep(60)
"""
        )
        job.line()
        below = census.descendants(launcher_pid := sandbox.process.pid)
        names = {pid: census.read(f"/proc/{pid}/comm").strip() for pid in below}
        ours = {pid for pid in below if census.uid_of(pid) < census.FIRST_JOB_UID}
        assert launcher_pid not in below
        assert len(below) - len(ours) >= 5
        assert not {
            name for name in map(names.get, ours) if not str(name).startswith(("stockade-", "python"))
        }


def test_an_environment_reaches_the_job_only(sandbox: Launcher) -> None:
    """Case 162: variables that steer loaders and interpreters act inside, on the program that was asked
    for.
    """
    marker = secret()
    ran = sandbox.run(
        ["/usr/bin/env"],
        env={"LD_PRELOAD": "/work/none.so", "PYTHONPATH": "/work", "IFS": "x", "MARK": marker, "LANG": "C"},
    )
    assert f"MARK={marker}".encode() in ran.assert_succeeded().stdout
    assert b"PYTHONPATH=/work\n" in ran.stdout
    environment = Path(f"/proc/{sandbox.process.pid}/environ").read_bytes()
    assert marker.encode() not in environment


def test_arguments_are_never_read_by_a_shell(sandbox: Launcher) -> None:
    """Case 163: what looks like shell is passed on as it is."""
    words = ["$(id)", "`id`", "; id", "a\nb", "*", "-n", "'\"", "ü", "\x7f"]
    ran = sandbox.run(["/usr/bin/printf", "%s|", *words])
    assert ran.assert_succeeded().stdout.decode() == "|".join(words) + "|"
    assert subprocess.run(["id", "-u"], capture_output=True, check=True).stdout == b"0\n"
