"""Group G: what comes out of a job: bytes exactly, files safely, all of it bounded.

Numbers after "case" are those of the table in this directory's README.md.
"""

import contextlib
import hashlib
import os
import time

import pytest

from tests import census
from tests.census import SLOWDOWN
from tests.sandboxes import Launcher, MiB
from worker.sandbox.errors import SandboxError

pytestmark = pytest.mark.kernel

KEEP = {"keep": True}


def test_two_endless_streams_are_drained_side_by_side(sandbox: Launcher) -> None:
    """Case 123: `yes` on both streams neither blocks nor grows anything but what the reader keeps."""
    before = _memory(sandbox.process.pid)
    with sandbox.job() as job:
        job.start(["/bin/sh", "-c", "yes out & yes err >&2 & sleep 1000"])
        job.pump_until(4 * MiB)
        job.session.kill("output")
        ran = job.wait()
    assert ran.ended["killed"] == "output"
    assert set(ran.stdout.split(b"\n")) <= {b"out", b"ou", b"o", b""}
    assert set(ran.stderr.split(b"\n")) <= {b"err", b"er", b"e", b""}
    assert len(ran.stderr) > 65536
    assert _memory(sandbox.process.pid) - before < 4 * MiB


def _memory(pid: int) -> int:
    (line,) = (line for line in census.read(f"/proc/{pid}/status").splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) << 10


def test_bytes_come_out_as_they_went_in(sandbox: Launcher) -> None:
    """Case 124: every byte value, no newline, escape sequences, carriage returns: all exact, also from
    stdin.
    """
    everything = bytes(range(256)) * 4096 + b"\x1b]0;pwned\x07\r\x00\xff\xfe\xed\xa0\x80"
    ran = sandbox.run(["/bin/sh", "-c", "tee /dev/stderr"], stdin=everything).assert_succeeded()
    assert ran.stdout == everything
    assert ran.stderr == everything


def test_the_launchers_log_cannot_be_forged(sandbox: Launcher) -> None:
    """Case 124: what a job prints, names or is called never begins a line in the launcher's log."""
    ran = sandbox.run(
        ["/bin/sh", "-c", 'printf \'\\n{"event":"forged"}\\n\' | tee /dev/stderr; exec /work/"x\ny"'],
        env={"A": '\n{"event":"forged"}'},
    )
    assert b"forged" in ran.stdout
    sandbox.run(['/work/\n{"event":"forged"}'])
    assert "forged" not in sandbox.log.read_text()


def test_input_that_is_never_read_holds_nobody_up(sandbox: Launcher) -> None:
    """Case 127: 16 MiB of input for a program that ignores it, or closes it at once."""
    for program in (["/bin/true"], ["/bin/sh", "-c", "exec <&-; exit 0"]):
        ran = sandbox.run(program, stdin=b"x" * (16 * MiB))
        assert ran.assert_succeeded().ended["usage"]["wall_time"] < 2 * SLOWDOWN


def test_input_cannot_be_changed(sandbox: Launcher) -> None:
    """Case 127: standard input is read-only and sealed; reading it costs the job no copy."""
    ran = sandbox.run(
        """
say([tried(os.write, 0, b"x"), tried(os.ftruncate, 0, 0), tried(os.open, "/proc/self/fd/0", os.O_RDWR),
    tried(os.open, "/dev/stdin", os.O_WRONLY), len(os.read(0, 100))])
""",
        stdin=b"hello",
    )
    written, cut, reopened, device, read = ran.assert_succeeded().said
    assert written == "EBADF"
    assert cut in {"EINVAL", "EBADF"}
    assert {reopened, device} <= {"EACCES", "EPERM", "ENOENT", "ok"}
    assert read == 5


def test_only_regular_files_are_collected(sandbox: Launcher) -> None:
    """Case 128: links, directories, pipes, sockets and unreadable files are each told by kind, at once."""
    with sandbox.job() as job:
        job.run(
            """
os.symlink("/etc/passwd", "link")
os.symlink("good", "inner")
os.symlink("/", "rootlink")
os.mkdir("dir")
os.mkfifo("fifo")
socket.socket(socket.AF_UNIX).bind("socket")
open("good", "w").write("good")
os.link("good", "hard")
open("closed", "w").close()
os.chmod("closed", 0)
os.symlink("loop", "loop")
""",
            plan=KEEP,
        ).assert_succeeded()
        begin = time.monotonic()
        names = ["link", "inner", "rootlink/etc/passwd", "dir", "fifo", "socket", "good", "hard", "loop",
            "none",
                 "../etc/passwd", "/etc/passwd", "dir/../../etc/passwd"]  # fmt: skip
        found, errors = job.collect(names)
        assert time.monotonic() - begin < 1 * SLOWDOWN
    assert found == {"good": b"good", "hard": b"good"}
    told = {error["path"]: error["error"] for error in errors}
    assert set(told) == set(names) - {"good", "hard"}
    for name in ("link", "inner", "dir", "fifo", "socket", "loop"):
        assert told[name] == "not_regular_file"
    assert all(error["message"] for error in errors)


def test_a_glob_never_leaves_the_workspace(sandbox: Launcher) -> None:
    """Case 128: `**` walks the workspace's own directories and no link out of it."""
    with sandbox.job() as job:
        job.run(
            """
os.makedirs("a/b")
open("a/b/c", "w").write("c")
os.symlink("/", "a/out")
os.symlink("/etc", "etc")
""",
            plan=KEEP,
        ).assert_succeeded()
        found, errors = job.collect(["**"])
        everything, _ = job.collect(["a/*/*"])
    assert found == {"a/b/c": b"c"}
    assert everything == {"a/b/c": b"c"}
    assert {error["path"] for error in errors} == {"a/out", "etc"}


def test_collection_is_bounded_in_number_size_and_time(sandbox: Launcher) -> None:
    """Case 130: ten thousand files, deep trees and greedy patterns stop at the caps, and say so."""
    with sandbox.job() as job:
        job.run(
            """
for number in range(8000):
    open(f"f{number}", "w").close()
os.mkdir("deep")
os.chdir("deep")
for depth in range(1000):
    os.mkdir("d")
    os.chdir("d")
open("bottom", "w").close()
""",
            plan=KEEP,
        ).assert_succeeded()
        begin = time.monotonic()
        found, errors = job.collect(["**"], max_files=10)
        assert time.monotonic() - begin < 12 * SLOWDOWN
        assert len(found) == 10
        assert [error["error"] for error in errors] == ["too_many"]


def test_patterns_cannot_be_made_to_take_for_ever(sandbox: Launcher) -> None:
    """Case 130: a pattern built to make matching explode ends within the collector's own time."""
    with sandbox.job() as job:
        job.run("[open('a' * 200 + str(n), 'w').close() for n in range(50)]", plan=KEEP).assert_succeeded()
        begin = time.monotonic()
        for pattern in (
            "*a" * 40 + "b",
            "**" * 30 + "b",
            "[!b]*" * 40 + "!",
            "**/" * 50 + "*a*b*c*" * 20 + "x",
        ):
            with contextlib.suppress(SandboxError):  # to be refused is as good as to match nothing
                assert job.collect([pattern])[0] == {}
        assert time.monotonic() - begin < 5 * SLOWDOWN


def test_files_that_only_claim_to_be_large_are_bounded(sandbox: Launcher) -> None:
    """Case 131: a sparse file over the cap is too large; what is taken never exceeds the cap."""
    with sandbox.job() as job:
        job.run(
            "open('sparse', 'w').truncate(60 << 20); open('small', 'w').truncate(1000); open('x', "
            "'w').write('x' * 2000)",
            plan=KEEP,
        ).assert_succeeded()
        found, errors = job.collect(["sparse", "small", "x"], max_bytes=2500)
    assert found == {"small": b"\0" * 1000}
    assert {error["path"]: error["error"] for error in errors} == {"sparse": "too_large", "x": "too_large"}


def test_nothing_of_the_image_is_executed_to_collect(sandbox: Launcher) -> None:
    """Case 132 (CVE-2019-14271): libraries and loaders that a job planted are never mapped by the
    collector.
    """
    with sandbox.job() as job:
        job.run(
            """
for name in ("libnss_files.so.2", "libc.so.6", "ld.so.preload"):
    for place in ("/work", "/etc", "/tmp"):
        open(f"{place}/{name}", "w").write("#!/bin/sh\\ntouch /work/pwned\\n")
        os.chmod(f"{place}/{name}", 0o755)
""",
            plan=KEEP,
        ).assert_succeeded()
        found, _ = job.collect(["**"])
        assert "pwned" not in found
        assert len(found) == 3
    maps = census.read(f"/proc/{sandbox.process.pid}/maps")
    assert "/work/" not in maps


def test_names_of_any_bytes_are_told_and_bounded(sandbox: Launcher) -> None:
    """Case 134: file names that are no text, with newlines, quotes or 255 bytes, come back exactly."""
    with sandbox.job() as job:
        job.run(
            """
for name in (b"\\xff\\xfe", b"new\\nline", b'"quo\\\\te', b"n" * 255, "ü".encode(), b" ", b"-rf", b"*"):
    with open(name, "wb") as file:
        file.write(b"x")
""",
            plan=KEEP,
        ).assert_succeeded()
        found, errors = job.collect(["*"])
    names = {os.fsencode(name) for name in found}
    assert names == {b"\xff\xfe", b"new\nline", b'"quo\\te', b"n" * 255, "ü".encode(), b" ", b"-rf", b"*"}
    assert errors == []


def test_many_errors_fit_into_one_answer(sandbox: Launcher) -> None:
    """Case 134: a workspace full of what cannot be collected gives a bounded list, not a broken answer."""
    with sandbox.job() as job:
        job.run("for n in range(3000): os.symlink('/x', 'n' * 200 + str(n))", plan=KEEP).assert_succeeded()
        found, errors = job.collect(["*"], max_files=10_000)
    assert found == {}
    assert 0 < len(errors) <= 1000
    assert {error["error"] for error in errors} <= {"not_regular_file", "too_many"}


def test_the_last_words_are_heard(sandbox: Launcher) -> None:
    """Case 135: what a program wrote just before it died is all there, whichever way it died."""
    line = "x" * 60000
    for ending in ("os._exit(0)", "os.kill(os.getpid(), 9)", "os.abort()"):
        ran = sandbox.run(f"os.write(1, b'x' * 60000); os.write(2, b'x' * 60000); {ending}")
        assert ran.stdout == line.encode()
        assert ran.stderr[:60000] == line.encode()


def test_output_before_a_kill_is_kept(sandbox: Launcher) -> None:
    """Case 135: a job that is stopped by a limit keeps what it had written."""
    ran = sandbox.run("os.write(1, b'x' * 50000); x = bytearray(1 << 30)", memory=32 * MiB)
    assert ran.ended["killed"] == "memory"
    assert ran.stdout == b"x" * 50000


def test_collected_files_are_exact(sandbox: Launcher) -> None:
    """An artifact's bytes, size and mode are those that the program left."""
    content = bytes(range(256)) * 1000
    with sandbox.job() as job:
        job.run(
            ["/bin/sh", "-c", "mkdir -p out/a && cat > out/a/data && chmod 751 out/a/data"],
            stdin=content,
            plan=KEEP,
        ).assert_succeeded()
        errors: list[dict[str, str]] = []
        (file,) = job.session.collect(["out/**"], 10, MiB, errors)
        with os.fdopen(file.fd, "rb") as data:
            assert hashlib.sha256(data.read()).digest() == hashlib.sha256(content).digest()
    assert (file.path, file.size, file.mode, errors) == ("out/a/data", len(content), 0o751, [])


def test_a_file_that_root_of_the_job_closed_is_told(sandbox: Launcher) -> None:
    """Case 128: the collector has the job's user's rights and no more: a closed file is `unreadable`."""
    with sandbox.job() as job:
        job.run("open('closed', 'w').write('x'); os.chmod('closed', 0)", plan=KEEP).assert_succeeded()
        found, errors = job.collect(["closed"])
    assert found == {}
    assert [(error["path"], error["error"]) for error in errors] == [("closed", "unreadable")]


@pytest.mark.parametrize("patterns", [[], [""], ["a\0b"], ["x"] * 5000])
def test_odd_patterns_are_refused_or_find_nothing(sandbox: Launcher, patterns: list[str]) -> None:
    """Case 134: the launcher answers every request for files, with files or with an error of ours."""
    with sandbox.job() as job:
        job.run(["/bin/true"], plan=KEEP).assert_succeeded()
        try:
            found, _ = job.collect(patterns)
        except SandboxError:
            return
    assert found == {}
