"""Group B, what a job writes: bounded together, thrown away at once, and never a way to a file of the host.

Numbers after "case" are those of the table in this directory's README.md.
"""

import shutil
import time
from pathlib import Path

import pytest

from tests.census import SLOWDOWN
from tests.sandboxes import Launcher, MiB

pytestmark = pytest.mark.kernel

REFUSED = {"EPERM", "EACCES"}
UNSEEN = REFUSED | {"ENOENT"}
WRITE_REFUSED = UNSEEN | {"EROFS"}


@pytest.mark.parametrize(
    "path",
    [
        "../escaped",
        "a/../../escaped",
        "/escaped",
        "",
        ".",
        "..",
        "a/",
        "a//b",
        "a/./b",
        "\0",
        "a\0b",
        "x" * 300,
    ],
)
def test_no_input_file_lands_outside_of_the_workspace(sandbox: Launcher, path: str) -> None:
    """Case 33: whatever a worker asks for, the launcher writes below the workspace or nothing at all."""
    ran = sandbox.run(["/bin/ls", "-a", "/"], files={path: b"x"})
    assert b"escaped" not in ran.stdout
    if ran.ended["op"] == "ended":
        assert path in {"a//b", "a/./b", "a\0b"}
    for root in ("/", "/jobs", str(sandbox.directory), str(sandbox.state)):
        assert not Path(root, "escaped").exists()


def test_a_second_step_does_not_follow_what_the_first_one_planted(sandbox: Launcher, sentinel: Path) -> None:
    """Case 33: links that a compile step left lead, at most, back into the sandbox."""
    with sandbox.job() as job:
        job.run(
            f"""
os.symlink({str(sentinel)!r}, "out")
os.symlink({str(sentinel / "precious")!r}, "run.sh")
os.symlink("/proc/1/root", "d")
os.symlink("/etc", "e")
""",
            plan={"keep": True},
        ).assert_succeeded()
        ran = job.run(["/bin/sh", "-c", "echo pwned >run.sh; echo pwned >out/new; ls -a"])
        assert ran.ended["op"] == "ended"
        through = job.run(["/bin/pwd"], cwd="/work/d", plan={"keep": True})
        assert through.ended["op"] == "failed" or through.ended["exec_errno"]
        collected, errors = job.collect(["**"])
    assert collected == {}
    assert {error["path"] for error in errors} >= {"run.sh"}


def test_ownership_changes_stay_inside(sandbox: Launcher, sentinel: Path) -> None:
    """Case 34: chown and chmod of planted links reach nothing of the host, in the job or at teardown."""
    ran = sandbox.run(
        f"""
os.symlink({str(sentinel)!r}, "dir")
os.symlink({str(sentinel / "precious")!r}, "file")
say([tried(os.chown, "file", 5, 5), tried(os.chmod, "dir", 0o777), tried(os.chown, "file", 5, 5,
    follow_symlinks=False),
    tried(os.link, "/usr/bin/id", "hard"), tried(os.chmod, "/usr/bin/id", 0o4755), tried(os.chown,
        "/usr/bin/id", 5, 5)])
"""
    )
    through, changed, link, hard, mode, owner = ran.assert_succeeded().said
    assert (through, changed, link) == ("ENOENT", "ENOENT", "ok")
    assert hard in {"EXDEV", "EROFS", "EPERM"}
    assert {mode, owner} <= {"EROFS", "EPERM"}


def test_a_hostile_tree_is_torn_down_at_once(sandbox: Launcher, sentinel: Path) -> None:
    """Case 35: closed directories, many files, deep nesting, links to the host: gone in two seconds."""
    ran = sandbox.run(
        f"""
depth = 0
for depth in range(2500):
    os.mkdir("d", 0o700)
    os.chdir("d")
os.chdir("/work")
os.mkdir("closed", 0o000)
os.symlink({str(sentinel)!r}, "closed/link")
for number in range(5000):
    open(f"/tmp/{{number}}", "w").close()
name = os.open("flagged", os.O_RDWR | os.O_CREAT)
say(tried(fcntl.ioctl, name, 0x40086602, struct.pack("=l", 0x10)))
os.chmod("/work", 0)
"""
    )
    assert ran.assert_succeeded().said in REFUSED | {"ENOTTY", "EOPNOTSUPP", "ENOTSUP"}


def test_twenty_thousand_directories_deep(sandbox: Launcher, sentinel: Path) -> None:
    """Case 35: a chain of directories far deeper than a path can name, with links in it, holds nothing up."""
    with sandbox.job() as job:
        ran = job.run(
            f"""
for depth in range(20000):
    os.mkdir("d")
    os.chdir("d")
    if depth % 1000 == 0:
        os.symlink({str(sentinel)!r}, "link")
say(depth)
""",
            disk_inodes=30000,
        )
        assert ran.assert_succeeded().said == 19999
        begin = time.monotonic()
    assert time.monotonic() - begin < 2 * SLOWDOWN


def test_one_cap_holds_over_every_writable_place(sandbox: Launcher) -> None:
    """Case 38: the bytes of all writable places together stay under `disk`, and the host's disk under
    nothing.
    """
    free = shutil.disk_usage("/").free
    ran = sandbox.run(
        """
total, refused = 0, []
for directory, names, _ in os.walk("/"):
    if directory.startswith(("/proc", "/usr", "/dev/pts")):
        names.clear()
        continue
    path = f"{directory}/filler"
    try:
        with open(path, "wb", buffering=0) as file:
            while True:
                total += file.write(b"x" * 65536)
    except OSError as error:
        refused.append(errno.errorcode[error.errno])
say([total, sorted(set(refused))])
sys.exit(1)
""",
        disk=8 * MiB,
    )
    total, refused = ran.said
    assert 7 * MiB <= total <= 8 * MiB
    assert "ENOSPC" in refused
    assert set(refused) <= WRITE_REFUSED | {"ENOSPC"}
    (fact,) = ran.evidence("disk")
    assert fact["value"] == 8 * MiB
    assert fact["where"] == "statfs f_blocks - f_bfree"
    assert ran.ended["usage"]["disk"] <= 8 * MiB
    assert free - shutil.disk_usage("/").free < 64 * MiB


def test_one_cap_holds_over_every_file(sandbox: Launcher) -> None:
    """Case 38: `disk_inodes` counts files, directories and links wherever they are made."""
    ran = sandbox.run(
        """
made = 0
for directory in ("/work", "/tmp", "/dev/shm", "/var/tmp"):
    while True:
        try:
            [lambda p: open(p, "w").close(), os.mkdir, lambda p: os.symlink("x",
                p)][made % 3](f"{directory}/{made}")
            made += 1
        except OSError as error:
            if error.errno != errno.ENOSPC: raise
            break
say(made)
sys.exit(1)
""",
        disk_inodes=300,
    )
    assert 280 <= ran.said <= 301  # overlay on Linux 6.1 takes one inode fewer for itself than on 6.18
    (fact,) = ran.evidence("disk_inodes")
    assert (fact["value"], fact["where"]) == (300, "statfs f_files - f_ffree")


def test_promised_sizes_cost_nothing(sandbox: Launcher) -> None:
    """Case 40: a petabyte that is only claimed is refused, and allocation stops at the caps."""
    ran = sandbox.run(
        """
f = os.open("huge", os.O_RDWR | os.O_CREAT)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
say([tried(os.ftruncate, f, 1 << 50), tried(os.posix_fallocate, f, 0, 1 << 40),
    tried(os.posix_fallocate, f, 0, 32 << 20), tried(os.posix_fallocate, f, 0, 8 << 20)])
""",
        disk=16 * MiB,
        file_size=64 * MiB,
    )
    assert ran.assert_succeeded().said == ["EFBIG", "EFBIG", "ENOSPC", "ok"]


def test_everything_but_the_workspace_is_fresh_in_each_step(sandbox: Launcher) -> None:
    """A second step finds the first one's workspace, and nothing that it left anywhere else."""
    with sandbox.job() as job:
        job.run(
            "[open(d + '/left', 'w').write('x') for d in ('/work', '/tmp', '/dev/shm', '/etc', "
            "'/var/tmp', '/run')]",
            plan={"keep": True},
        ).assert_succeeded()
        ran = job.run(
            "say({d: os.path.exists(d + '/left') for d in ('/work', '/tmp', '/dev/shm', '/etc', "
            "'/var/tmp', '/run')})"
        )
    places = ran.assert_succeeded().said
    assert places.pop("/work") is True
    assert set(places.values()) == {False}


def test_what_earlier_steps_left_counts_towards_the_disk(sandbox: Launcher) -> None:
    """Two steps cannot take the disk cap twice."""
    fill = """
total = 0
try:
    with open(f"/{sys.argv[1]}/{os.urandom(4).hex()}", "wb", buffering=0) as f:
        while True:
            total += f.write(b"x" * 65536)
except OSError:
    say(total)
"""
    with sandbox.job() as job:
        argv = [
            "/usr/bin/python3",
            "-I",
            "-c",
            "import json, os, sys\ndef say(x): print(json.dumps(x))\n" + fill,
        ]
        first = job.run([*argv, "work"], plan={"keep": True}, disk=6 * MiB).assert_succeeded().said
        second = job.run([*argv, "work"], plan={"keep": True}, disk=8 * MiB).assert_succeeded().said
    assert 5 * MiB < first <= 6 * MiB
    assert first + second <= 8 * MiB


def test_input_files_arrive_exactly(sandbox: Launcher) -> None:
    """Names, modes and bytes of input files are those that were sent; the job owns them."""
    files: dict[str, bytes | tuple[bytes, int]] = {
        "plain": b"\x00\xff" * 1000,
        "a/b/c d": (b"", 0o400),
        "tool": (b"#!/bin/sh\necho ran\n", 0o755),
        "ü": b"x",
    }
    ran = sandbox.run(
        """
import hashlib, subprocess
found = {}
for directory, _, names in os.walk("/work"):
    for name in names:
        path = os.path.join(directory, name)
        about = os.stat(path)
        found[os.path.relpath(path, "/work")] = [about.st_mode & 0o7777, about.st_uid, len(open(path,
            "rb").read())]
say([found, subprocess.run(["./tool"], capture_output=True, text=True).stdout])
""",
        files=files,
    )
    found, output = ran.assert_succeeded().said
    assert found == {
        "plain": [0o644, 0, 2000],
        "a/b/c d": [0o400, 0, 0],
        "tool": [0o755, 0, 19],
        "ü": [0o644, 0, 1],
    }
    assert output == "ran\n"


@pytest.mark.parametrize("limit", ["disk", "disk_inodes"])
def test_a_full_disk_does_not_make_the_next_step_ours(sandbox: Launcher, limit: str) -> None:
    """Case 38: when a step has used up the disk, the next one still starts and meets the limit itself."""
    fill = {
        "disk": """
try:
    with open("/work/filler", "wb", buffering=0) as f:
        while True: f.write(b"x" * 4096)
except OSError: pass
""",
        "disk_inodes": """
try:
    for n in range(10**6): open(f"/work/{n}", "w").close()
except OSError: pass
""",
    }
    caps = {"disk": 4 * MiB, "disk_inodes": 200}
    with sandbox.job() as job:
        job.run(fill[limit], plan={"keep": True}, **caps).assert_succeeded()
        ran = job.run(
            ["/bin/sh", "-c", "echo started; for n in a b c d; do echo x >/work/$n || exit 1; done"],
            plan={"keep": True},
            **caps,
        )
        assert ran.ended["op"] == "ended", ran.ended
        assert ran.stdout == b"started\n"
        assert ran.ended["exit_code"] != 0
        assert ran.evidence(limit)
        found, _ = job.collect(["1"])
        assert found == ({"1": b""} if limit == "disk_inodes" else {})


def test_a_closed_workspace_is_the_jobs_own_fault(sandbox: Launcher) -> None:
    """Case 128: a job that takes its own rights to the workspace away loses its files, not the service its head."""
    with sandbox.job() as job:
        job.run("open('x', 'w').close(); os.chmod('/work', 0)", plan={"keep": True}).assert_succeeded()
        found, errors = job.collect(["x", "**"])
        assert found == {}
        assert {error["error"] for error in errors} == {"unreadable"}
        ran = job.run(["/bin/pwd"], plan={"keep": True})
        assert ran.ended["op"] == "ended"
    with sandbox.job() as job:
        job.run("os.chown('/work', 5, 5); os.chmod('/work', 0o700)", plan={"keep": True}).assert_succeeded()
        found, errors = job.collect(["**"])
        assert found == {}
        assert {error["error"] for error in errors} == {"unreadable"}


def test_a_wide_tree_is_cleaned_between_steps_at_once(sandbox: Launcher) -> None:
    """Case 35: twenty thousand full directories beside each other cost the next step time in their number only."""
    fill = """
os.mkdir("/tmp/wide")
for n in range(20000):
    os.mkdir(f"/tmp/wide/{n}")
    os.mknod(f"/tmp/wide/{n}/file")
"""
    with sandbox.job() as job:
        ran = job.run(
            fill, plan={"keep": True}, disk_inodes=60000, memory=512 * MiB, cpu_time=60.0, wall_time=60.0
        )
        ran.assert_succeeded()
        started = time.monotonic()
        job.run(["/bin/true"]).assert_succeeded()
    # Answers come when the step before is cleaned up.
    assert ran.seconds - ran.ended["usage"]["wall_time"] + time.monotonic() - started < 4 * SLOWDOWN
