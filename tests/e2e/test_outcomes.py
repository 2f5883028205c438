"""Every outcome, reached by a real program, with the evidence that it rests on."""

import json
from typing import Any

import pytest

from tests.e2e.service import Job, Service, python, shell

pytestmark = [pytest.mark.kernel, pytest.mark.e2e]

MIB = 2**20
HOG = "x = []\nwhile True: x.append(bytearray(b'x') * (1 << 20))"
FOREIGN_SYSTEM_CALL = """
    import ctypes, mmap
    page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    page.write(bytes.fromhex("b814000000cd80c3"))  # mov eax, 20; int 0x80; ret: getpid of i386
    ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(page)))()
"""
FORKS = """
    import os, time
    while os.fork(): pass
    time.sleep(1000)
"""

BY_ITSELF = [
    ("status 0", ["true"], {"kind": "exited", "exit_code": 0}),
    ("status 3", shell("exit 3"), {"kind": "exited", "exit_code": 3}),
    ("status 137", python("import os; os._exit(137)"), {"kind": "exited", "exit_code": 137}),
    ("status 159", shell("exit 159"), {"kind": "exited", "exit_code": 159}),
    ("crash", shell("kill -SEGV $$"), {"kind": "signaled", "signal": 11, "signal_name": "SIGSEGV"}),
    ("SIGKILL", shell("kill -9 $$"), {"kind": "signaled", "signal": 9, "signal_name": "SIGKILL"}),
    ("SIGXCPU", shell("kill -XCPU $$"), {"kind": "signaled", "signal": 24, "signal_name": "SIGXCPU"}),
    ("missing", ["no-such-program"], {"kind": "exec_failed", "errno": "ENOENT"}),
    ("missing path", ["./no-such-program"], {"kind": "exec_failed", "errno": "ENOENT"}),
    ("not executable", ["/etc/hosts"], {"kind": "exec_failed", "errno": "EACCES"}),
    ("directory", ["/usr"], {"kind": "exec_failed", "errno": "EACCES"}),
    ("no format", ["./garbage"], {"kind": "exec_failed", "errno": "ENOEXEC"}),
    ("no interpreter", ["./script"], {"kind": "exec_failed", "errno": "ENOENT"}),
]
FILES = [
    {"path": "garbage", "text": "\x01\x02", "mode": "0755"},
    {"path": "script", "text": "#!/no/such/interpreter\n", "mode": "0755"},
]


@pytest.mark.parametrize(
    ("argv", "expected"), [each[1:] for each in BY_ITSELF], ids=[e[0] for e in BY_ITSELF]
)
def test_a_program_that_ends_by_itself(service: Service, argv: list[str], expected: dict[str, Any]) -> None:
    """Its own status is only that, whatever the number; a signal has its name; a failed exec its errno."""
    outcome = service.step(argv, FILES)["outcome"]
    rest = {"exit_code": None, "signal": None, "signal_name": None, "errno": None, "evidence": []}
    assert {key: outcome[key] for key in rest | expected} == rest | expected
    assert outcome["message"]


STOPPED: list[tuple[str, list[str], dict[str, Any], str, str]] = [
    ("endless loop", python("while True: pass"), {"cpu_time": 0.4}, "cpu_time_exceeded", "cpu_time"),
    (
        "many processes",
        shell("for n in 1 2 3 4; do sh -c 'while :; do :; done' & done; wait"),
        {"cpu_time": 0.4},
        "cpu_time_exceeded",
        "cpu_time",
    ),
    ("sleep", ["sleep", "1000"], {"wall_time": 0.4}, "wall_time_exceeded", "wall_time"),
    ("stopped itself", shell("kill -STOP $$"), {"wall_time": 0.4}, "wall_time_exceeded", "wall_time"),
    ("memory", python(HOG), {"memory": 24 * MIB}, "memory_exceeded", "memory"),
    ("memory of a child", ["./spare-child"], {"memory": 24 * MIB}, "memory_exceeded", "memory"),
    ("processes", python(FORKS), {"pids": 16}, "pids_exceeded", "pids"),
    ("disk", ["dd", "if=/dev/zero", "of=x", "bs=1M"], {"disk": 3 * MIB}, "disk_exceeded", "disk"),
    (
        "disk elsewhere",
        ["dd", "if=/dev/zero", "of=/dev/shm/x", "bs=1M"],
        {"disk": 3 * MIB},
        "disk_exceeded",
        "disk",
    ),
    (
        "inodes",
        python("for n in range(10**6): open(str(n), 'w').close()"),
        {"disk_inodes": 200},
        "disk_exceeded",
        "disk_inodes",
    ),
    ("system call", python(FOREIGN_SYSTEM_CALL), {}, "syscall_denied", "syscalls"),
]
SPARE_CHILD = [
    {"path": "spare-child", "text": "#!/bin/sh\npython3 hog.py\nexit 0\n", "mode": "0755"},
    {"path": "hog.py", "text": HOG},
]


@pytest.mark.parametrize(
    ("argv", "limits", "kind", "limit"), [each[1:] for each in STOPPED], ids=[each[0] for each in STOPPED]
)
def test_a_program_that_a_limit_stops(
    service: Service, argv: list[str], limits: dict[str, Any], kind: str, limit: str
) -> None:
    """The verdict names the limit, its value, what was observed, and where; nothing of it stays on the host."""
    with service.host_unchanged():
        result = service.step(argv, SPARE_CHILD, limits=limits)
    outcome = result["outcome"]
    assert outcome["kind"] == kind, json.dumps(result)
    (evidence,) = [each for each in outcome["evidence"] if each["limit"] == limit]
    assert evidence["value"] == limits.get(limit)
    assert evidence["observed"]
    assert evidence["where"]
    if limit in ("cpu_time", "wall_time"):
        assert limits[limit] <= evidence["observed"] < limits[limit] + 2
        assert result["usage"][limit] >= limits[limit]


def test_meeting_a_limit_and_coping_is_no_verdict(service: Service) -> None:
    """A program that is refused a process or a block, and ends well, has ended well; the evidence is told."""
    copes = """
        import os
        try:
            while os.fork():
                pass
            os.pause() if hasattr(os, "pause") else __import__("time").sleep(1000)
        except OSError as error:
            print(error.errno)
    """
    outcome = service.step(python(copes), limits={"pids": 8})["outcome"]
    assert (outcome["kind"], outcome["exit_code"]) == ("exited", 0)
    assert [each["limit"] for each in outcome["evidence"]] == ["pids"]


def test_a_file_over_its_size_is_a_signal(service: Service) -> None:
    """RLIMIT_FSIZE sends SIGXFSZ, as the kernel says; the file ends at the limit."""
    command = shell("dd if=/dev/zero of=x bs=1000 count=2000; s=$?; stat -c %s x; exit $s")
    result = service.step(command, limits={"file_size": 1 * MIB})
    assert result["stdout"]["text"] == f"{MIB}\n"
    assert result["outcome"]["exit_code"] == 128 + 25, "dd was ended by SIGXFSZ"
    direct = service.step(["dd", "if=/dev/zero", "of=x", "bs=1M"], limits={"file_size": 1 * MIB})
    assert (direct["outcome"]["kind"], direct["outcome"]["signal_name"]) == ("signaled", "SIGXFSZ")


def write_much(stream: str) -> list[str]:
    """A program that writes 400,010 bytes: BEGIN, 400,000 bytes of filling, END."""
    return python(f"import sys; sys.{stream}.write('BEGIN' + 'x' * 400_000 + '12END'); print(end='')")


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_too_much_output_is_cut_in_the_middle_and_the_step_goes_on(service: Service, stream: str) -> None:
    """First and last part are kept, the gap and the total told, the verdict is the program's own."""
    result = service.step(write_much(stream), limits={"output": 4096})
    assert (result["outcome"]["kind"], result["outcome"]["exit_code"]) == ("exited", 0)
    output = result[stream]
    assert (output["bytes"], output["truncated"]) == (400_010, True)
    assert output["omitted"] == {"at": 2048, "bytes": 400_010 - 4096}
    text = output["text"]
    assert (len(text), text[:6], text[-6:]) == (4096, "BEGINx", "x12END")
    assert result["usage"][f"{stream}_bytes"] == 400_010


def test_endless_output_is_killed_when_asked(service: Service) -> None:
    """`on_output_limit: kill` ends a flood on both streams with the stream and its bytes as evidence."""
    flood = shell("yes >&2 & exec yes")
    result = service.step(flood, limits={"output": 8192}, on_output_limit="kill")
    assert result["outcome"]["kind"] == "output_exceeded"
    assert all(each["value"] == 8192 < each["observed"] for each in result["outcome"]["evidence"])
    assert {each["limit"] for each in result["outcome"]["evidence"]} == {"output"}
    assert max(len(result[s]["text"]) for s in ("stdout", "stderr")) == 8192
    assert result["usage"]["wall_time"] < 10


def test_an_endless_flood_that_is_only_cut_ends_by_its_time(service: Service) -> None:
    """Without `kill` the flood goes on until another limit stops it; what is kept stays small."""
    result = service.step(["yes"], limits={"output": 8192, "wall_time": "0.7s"})
    assert result["outcome"]["kind"] == "wall_time_exceeded"
    assert result["stdout"]["bytes"] > 8192 == len(result["stdout"]["text"])


def test_the_last_words_before_a_kill_are_kept(service: Service) -> None:
    """What a program wrote just before it died is there, whether it crashed or was killed."""
    crash = service.step(python("import os; os.write(1, b'x' * 60000 + b'last'); os.abort()"))
    assert crash["stdout"]["text"].endswith("last")
    killed = service.step(shell("echo last; exec sleep 1000"), limits={"wall_time": 0.5})
    assert killed["stdout"]["text"] == "last\n"


def test_standard_input_may_stay_unread(service: Service) -> None:
    """A megabyte that nobody reads, or of which the first line is read, holds nothing up."""
    body = "line\n" * 200_000
    assert service.output(["true"], stdin=body) == ""
    assert service.output(["head", "-n1"], stdin=body) == "line\n"
    assert service.output(["cat"]) == "", "without stdin there is none"


def test_what_a_daemon_holds_does_not_hold_the_job(service: Service) -> None:
    """A child in a session of its own that keeps stdout open dies with its step, at once."""
    result: Job = service.step(shell("setsid sleep 1000 & echo started"))
    assert (result["outcome"]["kind"], result["stdout"]["text"]) == ("exited", "started\n")
    assert result["usage"]["wall_time"] < 5
