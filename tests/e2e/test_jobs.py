"""What a user sends and what comes back, through HTTP, queue, worker, launcher and kernel."""

import base64
import hashlib
import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import quote

import httpx
import pytest

from tests.e2e.conftest import SLOTS
from tests.e2e.service import Service, python, shell
from tests.stack import until

pytestmark = [pytest.mark.kernel, pytest.mark.e2e]

MIB = 2**20
SUM = """\
#include <fstream>
#include <iostream>
int main() {
    std::ifstream in("numbers.txt");
    std::ofstream out("sum.txt");
    long long sum = 0, n;
    while (in >> n) sum += n;
    out << sum << std::endl;
    std::cout << "read " << std::cin.rdbuf() << std::endl;
}
"""


def test_a_cpp_program_is_compiled_and_run_and_leaves_a_file(service: Service) -> None:
    """Two steps over one workspace: both outcomes, the program's output, and its file by name and digest."""
    job = service.run(
        {
            "steps": [
                {"name": "compile", "argv": ["g++", "-O1", "-o", "sum", "sum.cpp"]},
                {"name": "run", "argv": ["./sum"], "stdin": "the input", "limits": {"memory": "32MiB"}},
            ],
            "files": [
                {"path": "sum.cpp", "text": SUM},
                {"path": "numbers.txt", "text": "\n".join(map(str, range(20_000)))},
            ],
            "outputs": ["sum.txt"],
        }
    )
    assert [(s["name"], s["outcome"]["exit_code"]) for s in job["steps"]] == [("compile", 0), ("run", 0)]
    assert job["outcome"] == job["steps"][-1]["outcome"]
    assert job["steps"][1]["stdout"]["text"] == "read the input\n"
    content = b"199990000\n"
    digest = hashlib.sha256(content).hexdigest()
    expected = {"path": "sum.txt", "size": len(content), "sha256": digest, "mode": "0644"}
    assert job["artifacts"] == [expected]
    answer = service.client.get(f"/v1/jobs/{job['id']}/artifacts/sum.txt")
    assert (answer.content, answer.headers["etag"]) == (content, f'"{digest}"')


def test_a_step_that_fails_is_the_last(service: Service) -> None:
    """A compile error is the job's outcome; the program is not run; its files are kept all the same."""
    job = service.run(
        {
            "steps": [{"argv": shell("echo wrong >&2; exit 2")}, {"argv": ["true"]}],
            "files": [{"path": "a.log", "text": "x"}],
            "outputs": ["*.log"],
        }
    )
    assert (job["outcome"]["kind"], job["outcome"]["exit_code"], len(job["steps"])) == ("exited", 2, 1)
    assert job["steps"][0]["stderr"]["text"] == "wrong\n"
    assert [each["path"] for each in job["artifacts"]] == ["a.log"]


def test_bytes_come_through_exactly_both_ways(service: Service) -> None:
    """What is no text goes in as base64 and comes out as base64 and as raw bytes, the same everywhere."""
    data = bytes(range(256)) * 40 + b"\0\xff\r\n\x1b[2J"
    encoded = base64.b64encode(data).decode()
    job = service.run(
        {
            "command": {"argv": shell("tee copy; cat file >&2"), "stdin": {"base64": encoded}},
            "files": [{"path": "file", "base64": encoded}],
            "outputs": ["copy"],
        }
    )
    for stream in ("stdout", "stderr"):
        shown = job["steps"][0][stream]
        assert (shown["text"], shown["bytes"], shown["truncated"]) == (None, len(data), False)
        assert base64.b64decode(shown["base64"]) == data
        assert service.client.get(f"/v1/jobs/{job['id']}/steps/0/{stream}").content == data
    assert service.client.get(f"/v1/jobs/{job['id']}/artifacts/copy").content == data


def test_arguments_and_environment_reach_the_program_as_they_are(service: Service) -> None:
    """No shell on the way, odd characters kept, and no variable that nobody asked for."""
    arguments = ["$(id)", "; ls", "", "a b", "*", "ü\n\x1b", "--help"]
    environment = {"LD_PRELOAD": "/nowhere.so", "PYTHONPATH": "/x", "ODD-NAME": "a=b", "HOME": "/work/home"}
    show = "import sys, os, json; print(json.dumps([sys.argv[1:], dict(os.environ)]))"
    got_arguments, got = json.loads(service.output(python(show, *arguments), env=environment))
    assert got_arguments == arguments
    assert environment.items() <= got.items()
    assert set(got) - set(environment) <= {"PATH", "LANG", "LC_CTYPE"}


def test_files_are_there_with_their_modes_and_the_step_starts_where_it_says(service: Service) -> None:
    """Directories on the way are made; `cwd` is entered; a mode is a mode; the program owns its files."""
    files = [
        {"path": "bin/deep/run", "text": "#!/bin/sh\npwd; stat -c '%a %u %g' run ../data\n", "mode": "0750"},
        {"path": "bin/data", "text": "", "mode": "0400"},
    ]
    result = service.step(["./run"], files, cwd="bin/deep")
    assert result["stdout"]["text"] == "/work/bin/deep\n750 0 0\n400 0 0\n"


def test_steps_share_the_workspace_and_nothing_else(service: Service) -> None:
    """Files in /work stay; those elsewhere, processes, SysV memory and the host name do not."""
    leave = """
        import ctypes, os, subprocess
        for path in ("/work/kept", "/tmp/gone", "/dev/shm/gone", "/var/tmp/gone"):
            os.makedirs(os.path.dirname(path), exist_ok=True)
            open(path, "w").close()
        assert ctypes.CDLL(None).shmget(0x1234, 4096, 0o1666) >= 0
        subprocess.Popen(["sleep", "1000"], start_new_session=True)
    """
    look = """
        import ctypes, os
        print(os.listdir("/work"), os.listdir("/tmp"), os.listdir("/dev/shm"), os.path.exists("/var/tmp/gone"))
        print(ctypes.CDLL(None).shmget(0x1234, 4096, 0), len([p for p in os.listdir("/proc") if p.isdigit()]))
    """
    job = service.run({"steps": [{"argv": python(leave)}, {"argv": python(look)}]})
    assert job["steps"][1]["stdout"]["text"] == "['kept'] [] [] False\n-1 1\n", job
    assert service.output(python("import os; print(os.listdir('/work'))")) == "[]\n"


def test_what_a_step_used_is_told(service: Service) -> None:
    """CPU, memory, processes, files and output, each between what was surely used and what was allowed."""
    program = """
        import time, threading
        block = bytearray(b"x") * (48 << 20)
        with open("file", "wb") as file:
            file.write(block[:3 << 20])
        threads = [threading.Thread(target=time.sleep, args=(0.2,)) for _ in range(4)]
        for each in threads: each.start()
        while time.process_time() < 0.4: pass
        for each in threads: each.join()
        print("x" * 999)
    """
    used = service.step(python(program))["usage"]
    assert 0.4 <= used["cpu_time"] <= 2
    assert used["cpu_user"] + used["cpu_system"] == pytest.approx(used["cpu_time"], abs=0.1)
    assert used["wall_time"] >= 0.4
    assert 48 * MIB <= used["memory"] <= 256 * MIB
    assert 5 <= used["pids"] <= 64
    assert 3 * MIB <= used["disk"] <= 4 * MIB
    assert 1 <= used["disk_inodes"] <= 20
    assert (used["stdout_bytes"], used["stderr_bytes"], used["pids_refused"]) == (1000, 0, 0)


def test_a_step_is_charged_for_itself_alone(service: Service) -> None:
    """`true` in a fresh sandbox uses next to nothing: setting up is ours, and so is the step before."""
    spin = python("import time\nwhile time.process_time() < 0.3: pass")
    job = service.run({"steps": [{"argv": spin}, {"argv": ["true"]}]})
    used = job["steps"][1]["usage"]
    assert used["cpu_time"] < 0.05
    assert used["memory"] < 8 * MIB
    assert used["pids"] == 1


def test_a_fraction_of_a_core_is_no_more(service: Service) -> None:
    """With `cpus` 0.25 a spinning program takes four times its CPU time, and is told how long it waited."""
    spin = python("import time\nwhile time.process_time() < 0.2: pass")
    used = service.step(spin, limits={"cpus": 0.25})["usage"]
    assert used["wall_time"] > 2.5 * used["cpu_time"]
    assert used["cpu_throttled"] > 0.05


def test_how_it_was_isolated_is_told(service: Service) -> None:
    """Kernel, cgroup version, filter, capabilities and ids in force; no two running jobs share their ids."""
    with ThreadPoolExecutor(2) as pool:
        both = list(pool.map(lambda _: service.step(["sleep", "0.5"])["isolation"], range(2)))
    first = both[0]
    assert first["kernel"] == os.uname().release
    assert first["cgroup"] in ("v1", "v2")
    assert {"mount", "pid", "net", "ipc", "uts", "cgroup", "user"} == {
        {"mnt": "mount"}.get(name, name) for name in first["namespaces"]
    }
    assert first["no_new_privs"] is True
    assert len(first["seccomp"]["sha256"]) == 64
    assert "SYS_ADMIN" not in first["capabilities"]
    assert (first["image"], bool(first["image_note"])) == ("host", True)
    ranges = [each["user_namespace"] for each in both]
    assert all(each["base"] >= 1_000_000 and each["size"] == 65536 for each in ranges)
    assert abs(ranges[0]["base"] - ranges[1]["base"]) >= 65536


FORK_BOMB = """
    import os
    while True:
        try:
            os.fork()
        except OSError:
            pass
"""
ODD_FILES = """
    import os, socket
    os.makedirs("out/deep/er")
    for name in ("out/a.txt", "out/deep/b.txt", "out/deep/er/c.txt", "out/no.bin", "plain"):
        with open(name, "w") as file: file.write(name)
    os.symlink("/etc/passwd", "out/link.txt")
    os.symlink("plain", "inner")
    os.symlink("/etc", "away")
    os.mkfifo("out/fifo.txt")
    os.mkdir("out/directory.txt")
    socket.socket(socket.AF_UNIX).bind("out/socket.txt")
    os.chmod("plain", 0o751)
"""


def test_globs_choose_files_and_nothing_that_is_no_file(service: Service) -> None:
    """`**` crosses directories; links, pipes and sockets are errors, each by name; a link is never followed."""
    outputs = ["out/**/*.txt", "plain", "inner", "away/passwd", "missing"]
    begun = time.monotonic()
    job = service.run({"command": python(ODD_FILES), "outputs": outputs})
    assert time.monotonic() - begun < 20
    kept = {each["path"]: each["mode"] for each in job["artifacts"]}
    texts = {"out/a.txt", "out/deep/b.txt", "out/deep/er/c.txt"}
    assert set(kept) == texts | {"plain"}
    assert kept["plain"] == "0751"
    errors = {each["path"]: each["error"] for each in job["artifact_errors"]}
    assert {"out/link.txt", "out/fifo.txt", "out/socket.txt", "inner", "away/passwd"} <= set(errors)
    assert errors["out/fifo.txt"] == errors["out/socket.txt"] == "not_regular_file"
    assert not set(errors) & set(kept)
    listed = service.client.get(f"/v1/jobs/{job['id']}/artifacts").json()
    assert listed == {key: job[key] for key in ("artifacts", "artifact_errors")}
    for path in ("out/link.txt", "../../etc/passwd", "out/no.bin"):
        assert service.client.get(f"/v1/jobs/{job['id']}/artifacts/{path}").status_code == 404


def test_odd_file_names_are_kept_or_told(service: Service) -> None:
    """Every name that is text can be fetched, however odd; one that is not is an error, not a failure of ours."""
    names = ["a\nb", "a b%41?#&", "ü€", "..x", "<script>", "-rf", "a\\b", '"']
    make = (
        f"import os\nfor name in {names!r} + [os.fsdecode(b'\\xff')]:\n    open(name, 'w').write(repr(name))"
    )
    job = service.run({"command": python(make), "outputs": ["*"]})
    assert {each["path"] for each in job["artifacts"]} == set(names)
    assert [each["error"] for each in job["artifact_errors"]] == ["name_not_text"]
    for name in names:
        answer = service.client.get(f"/v1/jobs/{job['id']}/artifacts/{quote(name)}")
        assert (answer.status_code, answer.text) == (200, repr(name))


def test_what_is_too_much_to_keep_is_said(service: Service) -> None:
    """Beyond the policy's bytes and number of files a job still has its outcome, and the rest an error."""
    fill = shell("truncate -s 60M sparse; for n in $(seq 150); do : >f$n; done")
    job = service.run({"command": fill, "outputs": ["sparse", "f*"]})
    assert job["outcome"]["kind"] == "exited"
    assert 99 <= len(job["artifacts"]) <= 100, "one that is too large may count as one of the hundred"
    errors = {each["error"] for each in job["artifact_errors"]}
    assert {"too_large", "too_many"} <= errors


def test_submit_and_wait_is_one_request(service: Service) -> None:
    """`?wait=` answers when the job ends, long before the seconds are over; with too few, it is not there yet."""
    begun = time.monotonic()
    answer = service.client.post("/v1/jobs?wait=60", json={"command": ["echo", "done"]})
    assert (answer.status_code, answer.json()["state"]) == (201, "finished")
    assert time.monotonic() - begun < 20
    slow = service.client.post("/v1/jobs?wait=0.2", json={"command": ["sleep", "1.5"]}).json()
    assert slow["state"] in ("queued", "running")
    with pytest.raises(httpx.ReadTimeout):
        service.client.get(f"/v1/jobs/{slow['id']}?wait=60", timeout=0.2)
    assert service.finished(slow["id"])["outcome"]["exit_code"] == 0, "a caller that left changes nothing"


def test_cancelled_while_it_waits_and_while_it_runs(service: Service) -> None:
    """A queued job never starts; a running one, deaf to every signal, is dead at once; both are `cancelled`."""
    deaf = python(
        """
        import signal, time
        for number in set(signal.valid_signals()) - {signal.SIGKILL, signal.SIGSTOP}:
            signal.signal(number, signal.SIG_IGN)
        print("ready", flush=True)
        time.sleep(1000)
        """
    )
    running = [service.submit({"command": deaf})["id"] for _ in range(SLOTS)]
    for each in running:
        until(lambda each=each: service.state(each) == "running", "running")
    time.sleep(0.5)
    queued = service.submit({"command": ["true"]})["id"]
    cancelled = service.client.post(f"/v1/jobs/{queued}:cancel").json()
    assert (cancelled["state"], cancelled["outcome"]["kind"], cancelled["steps"]) == (
        "finished",
        "cancelled",
        [],
    )
    begun = time.monotonic()
    for each in running:
        assert service.client.post(f"/v1/jobs/{each}:cancel").json()["state"] in ("cancelling", "finished")
    for each in running:
        job = service.finished(each)
        assert job["outcome"]["kind"] == "cancelled"
        assert job["steps"][0]["stdout"]["text"] == "ready\n", "what it wrote before is kept"
    assert time.monotonic() - begun < 10
    assert service.finished(queued)["attempt"] == 0


def test_twenty_jobs_at_once_get_their_own_results(service: Service) -> None:
    """Good and hostile jobs side by side: each its own output and verdict, and the host is as before."""
    hostile = {
        "fork": (python(FORK_BOMB), {"pids": 20, "wall_time": "1s"}),
        "hog": (python("x = bytearray(b'x') * (1 << 30)"), {"memory": "32MiB"}),
        "spin": (python("while True: pass"), {"cpu_time": "0.3s"}),
        "sleep": (["sleep", "1000"], {"wall_time": "0.5s"}),
    }
    with service.host_unchanged():
        bodies = {name: {"command": {"argv": a, "limits": v}} for name, (a, v) in hostile.items()}
        bodies |= {str(n): {"command": shell(f"echo {n} >f; sleep 0.1; cat f")} for n in range(16)}
        with ThreadPoolExecutor(20) as pool:
            jobs = dict(zip(bodies, pool.map(service.run, bodies.values()), strict=True))
    for n in range(16):
        step = jobs[str(n)]["steps"][0]
        assert (step["outcome"]["kind"], step["stdout"]["text"]) == ("exited", f"{n}\n")
    kinds = {name: jobs[name]["outcome"]["kind"] for name in hostile}
    assert kinds == {
        "fork": "wall_time_exceeded",
        "hog": "memory_exceeded",
        "spin": "cpu_time_exceeded",
        "sleep": "wall_time_exceeded",
    }
    assert {job["attempt"] for job in jobs.values()} == {1}
