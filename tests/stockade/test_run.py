"""`stockade run`: one command in a sandbox, with the manners of a shell tool."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = [pytest.mark.kernel, pytest.mark.once]
STOCKADE = Path(sys.executable).with_name("stockade")


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "state"


def run(state: Path, *arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    done = subprocess.run(
        [STOCKADE, "run", "--state", state, *arguments],
        input=stdin,
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert list(state.iterdir()) == [], "its files are gone"
    assert b"Traceback" not in done.stderr
    return done


def test_it_prints_what_the_command_prints_and_nothing_else(state: Path) -> None:
    """stdout and stderr are the command's, byte for byte, and stay apart."""
    done = run(state, "--", "sh", "-c", r"printf 'a\0\377'; printf b >&2")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"a\0\xff", b"b")


def test_standard_input_reaches_the_command(state: Path) -> None:
    """A pipe into it is a pipe into the command."""
    assert run(state, "--", "tr", "a-z", "A-Z", stdin=b"shout").stdout == b"SHOUT"


@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (0, 1, 2)])
def test_a_closed_standard_stream_is_dev_null_to_the_command(state: Path, closed: tuple[int, ...]) -> None:
    """Nothing of ours takes its number and is handed to the command in its place."""
    look = f"import os, sys; sys.exit(any(os.fstat(n).st_rdev != os.makedev(1, 3) for n in {closed}))"
    command = [str(STOCKADE), "run", "--state", str(state), "--", "python3", "-c", look]
    closing = " ".join(f"{stream}>&-" for stream in closed)
    done = subprocess.run(["sh", "-c", f"exec {shlex.join(command)} {closing}"], timeout=60, check=False)
    assert done.returncode == 0


@pytest.mark.parametrize(
    ("command", "status"),
    [
        (["sh", "-c", "exit 3"], 3),
        (["sh", "-c", "exit 137"], 137),
        (["sh", "-c", "kill -TERM $$"], 143),
        (["no-such-command"], 127),
        (["/etc/hosts"], 126),
    ],
)
def test_the_exit_status_is_the_commands(state: Path, command: list[str], status: int) -> None:
    """Its own status, 128 + signal, 127 for a missing program, 126 for one that cannot be started."""
    assert run(state, "--", *command).returncode == status


def test_a_limit_stops_it_and_is_named_with_its_evidence(state: Path) -> None:
    """Status 137, and one line each on standard error for the verdict and for what the kernel counted."""
    hog = "x = []\nwhile True: x.append(bytearray(1 << 20))"
    done = run(state, "--memory", "32MiB", "--", "python3", "-c", hog)
    assert done.returncode == 137
    assert b"stockade run: memory_exceeded: It was killed for using more than" in done.stderr
    assert b"memory 32MiB, " in done.stderr
    assert b"oom_kill" in done.stderr


def test_json_has_the_output_the_outcome_and_the_usage(state: Path) -> None:
    """One line of JSON on standard output; the exit status is still the command's."""
    done = run(state, "--json", "--cpu-time", "5", "--", "sh", "-c", "echo out; echo err >&2; exit 4")
    assert done.returncode == 4
    result = json.loads(done.stdout)
    assert done.stderr == b""
    assert (result["stdout"]["text"], result["stderr"]["text"]) == ("out\n", "err\n")
    assert (result["outcome"]["kind"], result["outcome"]["exit_code"]) == ("exited", 4)
    assert result["usage"]["memory"] > 0
    assert result["isolation"]["no_new_privs"] is True


def test_files_environment_and_directory_are_passed(state: Path, tmp_path: Path) -> None:
    """--file copies into the workspace with its mode, --env sets, --cwd enters."""
    script = tmp_path / "hello.sh"
    script.write_text('#!/bin/sh\necho "$GREETING from $PWD"\n')
    script.chmod(0o755)
    done = run(
        state, "--file", f"{script}:bin/hello", "--env", "GREETING=hi", "--cwd", "bin", "--", "./hello"
    )
    assert done.stdout == b"hi from /work/bin\n"


def test_everything_that_is_wrong_is_said_at_once(state: Path, tmp_path: Path) -> None:
    """A refusal is status 125, and names each option."""
    state.mkdir()
    done = run(state, "--memory", "lots", "--pids", "-1", "--", "true")
    assert done.returncode == 125
    assert b"limits.memory: " in done.stderr
    assert b"limits.pids: " in done.stderr
    done = run(state, "--memory", "1TiB", "--wall-time", "2h", "--", "true")
    assert done.returncode == 125
    assert b"limits.memory: " in done.stderr
    assert b"limits.wall_time: " in done.stderr


def test_a_bound_on_output_that_is_not_captured_is_refused(state: Path) -> None:
    """A limit that cannot be applied is an error: without --json the output never passes through us."""
    state.mkdir()
    done = run(state, "--output", "1KiB", "--", "true")
    assert (done.returncode, done.stdout) == (125, b"")
    assert b"--output needs --json" in done.stderr


def test_an_unknown_policy_is_refused_with_those_there_are(state: Path) -> None:
    """The message lists the policies."""
    state.mkdir()
    done = run(state, "--policy", "mine", "--", "true")
    assert done.returncode == 125
    assert b"there is no policy 'mine', there are default, " in done.stderr


def test_ctrl_c_ends_the_command_and_leaves_nothing(state: Path, tmp_path: Path) -> None:
    """After SIGINT: status 130, no launcher, no sandbox, no file."""
    process = subprocess.Popen(
        [STOCKADE, "run", "--state", state, "--", "sh", "-c", "echo ready; exec sleep 600"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130
    assert list(state.iterdir()) == []
    assert not processes_of(state)


def test_it_takes_its_sandbox_along_when_it_is_killed(state: Path) -> None:
    """Even SIGKILL leaves no launcher and no sandbox."""
    command = [STOCKADE, "run", "--state", state, "--", "sh", "-c", "echo ready; exec sleep 601"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.kill()
    deadline = time.monotonic() + 60
    while processes_of(state) or sleepers("601"):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def processes_of(state: Path) -> list[str]:
    return [line for line in command_lines() if str(state) in line]


def sleepers(seconds: str) -> list[str]:
    return [line for line in command_lines() if line == f"sleep {seconds} "]


def command_lines() -> list[str]:
    lines = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                lines.append((entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"))
            except OSError:
                continue
    return lines
