"""What dies, and what becomes of the jobs: each reaches exactly one end, and none is blamed for our faults."""

import hashlib
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.service import Service, python, shell
from tests.stack import PATIENCE, STOCKADE, Up, cgroups_of, left_of, still_there, until

pytestmark = [pytest.mark.kernel, pytest.mark.e2e, pytest.mark.slow]


@contextmanager
def without(up: Up, name: str) -> Iterator[None]:
    """Kill one of the four processes, and keep `stockade up` from starting it again meanwhile."""
    os.kill(up.process.pid, signal.SIGSTOP)
    try:
        os.kill(up.pids()[name], signal.SIGKILL)
        yield
    finally:
        os.kill(up.process.pid, signal.SIGCONT)


def is_ready(service: Service) -> bool:
    return service.readiness()[0] == 200


def test_without_redis_it_says_so_and_running_jobs_do_not_notice(service: Service) -> None:
    """503 that names Redis; /readyz says which part; a job that runs meanwhile ends well, in its one attempt."""
    job_id = service.submit({"command": shell("sleep 3; echo survived")})["id"]
    until(lambda: service.state(job_id) == "running", "running")
    with without(service.up, "valkey"):
        for answer in (
            service.client.post("/v1/jobs", json={"command": ["true"]}),
            service.client.get(f"/v1/jobs/{job_id}"),
            service.client.post(f"/v1/jobs/{job_id}:cancel"),
        ):
            assert (answer.status_code, answer.json()["component"]) == (503, "redis")
            assert answer.headers["content-type"] == "application/problem+json"
        status, parts = service.readiness()
        assert (status, parts["ready"], parts["redis"]["ready"]) == (503, False, False)
        assert service.client.get("/healthz").status_code == 200
        time.sleep(3)
    until(lambda: is_ready(service), "ready again")
    job = service.finished(job_id)
    assert (job["outcome"]["kind"], job["steps"][0]["stdout"]["text"]) == ("exited", "survived\n")
    assert job["attempt"] == 1


def test_without_its_launcher_it_says_so_and_jobs_wait(service: Service) -> None:
    """/readyz names the launcher; what is sent meanwhile is accepted, and runs when the launcher is back."""
    with without(service.up, "launcher"):
        job_id = service.submit({"command": ["echo", "late"]})["id"]
        _, parts = until(lambda: (found := service.readiness())[0] == 503 and found, "readyz says no")
        assert (parts["redis"]["ready"], parts["worker"]["ready"], parts["launcher"]["ready"]) == (
            True,
            True,
            False,
        )
        assert service.state(job_id) != "finished"
    job = service.finished(job_id)
    assert (job["outcome"]["kind"], job["steps"][0]["stdout"]["text"]) == ("exited", "late\n")
    until(lambda: is_ready(service), "ready again")


def mixed_jobs() -> dict[str, dict[str, Any]]:
    """Jobs that are in every phase of their way at any moment of the first two seconds."""
    make = "import os\nopen('big', 'wb').write(bytes(range(256)) * 8192)"
    kinds: dict[str, dict[str, Any]] = {
        "short": {"command": shell("echo short")},
        "long": {"command": shell("sleep 1.5; echo long")},
        "steps": {"steps": [{"argv": shell(f"sleep 0.3; echo {n} >>f; cat f")} for n in range(3)]},
        "artifact": {"command": python(make), "outputs": ["big"]},
    }
    return {f"{name} {n}": body for n in range(3) for name, body in kinds.items()}


def test_whatever_dies_every_job_has_its_one_result(service: Service) -> None:
    """Launcher and worker are killed among running jobs: all finish well and whole, after another attempt or not."""
    mark = f"87{os.getpid():06d}.5"
    endless = service.submit({"command": {"argv": ["sleep", mark], "limits": {"wall_time": "300s"}}})["id"]
    jobs = {name: service.submit(body)["id"] for name, body in mixed_jobs().items()}
    time.sleep(0.4)
    os.kill(service.up.pids()["launcher"], signal.SIGKILL)
    time.sleep(0.8)
    os.kill(service.up.pids()["worker"], signal.SIGKILL)
    with ThreadPoolExecutor(4) as pool:
        results = dict(zip(jobs, pool.map(service.finished, jobs.values()), strict=True))
    for name, job in results.items():
        assert (job["outcome"]["kind"], job["outcome"]["exit_code"]) == ("exited", 0), (name, job["outcome"])
        assert job["attempt"] <= 3
    assert max(job["attempt"] for job in results.values()) > 1, "somebody was hit"
    for n in range(3):
        assert results[f"long {n}"]["steps"][0]["stdout"]["text"] == "long\n"
        assert [s["stdout"]["text"] for s in results[f"steps {n}"]["steps"]] == ["0\n", "0\n1\n", "0\n1\n2\n"]
        kept = results[f"artifact {n}"]
        content = service.client.get(f"/v1/jobs/{kept['id']}/artifacts/big").content
        assert len(content) == 256 * 8192
        assert hashlib.sha256(content).hexdigest() == kept["artifacts"][0]["sha256"]
    until(lambda: is_ready(service), "ready again")
    until(lambda: len(sleepers(mark)) == 1, "one process for a job that was begun three times")
    service.client.post(f"/v1/jobs/{endless}:cancel").raise_for_status()
    assert service.finished(endless)["outcome"]["kind"] == "cancelled"
    assert sleepers(mark) == []


@pytest.fixture
def up() -> Iterator[Up]:
    """A state directory of its own that the service user can reach, not started yet."""
    home = Path(f"/tmp/stockade-test-stop-{os.getpid()}")
    home.mkdir(mode=0o755)
    stack = Up(home / "state")
    yield stack
    if stack.started and stack.process.poll() is None:
        stack.process.kill()
        stack.process.wait()
    subprocess.run(["rm", "-rf", home], check=True)


def sleepers(mark: str) -> list[str]:
    """Processes of the host with this word in their command line."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                line = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if mark.encode() in line:
                found.append(line.replace(b"\0", b" ").decode())
    return found


def mounts_of(state: Path) -> list[str]:
    """Mounts, in any process's namespace, that name this state directory."""
    found = set()
    for entry in Path("/proc").glob("[0-9]*/mountinfo"):
        try:
            found |= {line for line in entry.read_text().splitlines() if str(state) in line}
        except OSError:
            continue
    return sorted(found)


def test_ctrl_c_among_running_jobs_leaves_nothing_and_loses_none(up: Up) -> None:
    """No process, cgroup, mount or socket is left; started again, it finishes every job, and old ones are there."""
    mark = f"86{os.getpid():06d}.5"
    up.start("--slots", "6", "--grace", "3")
    with up.client() as client, up.api() as api:
        service = Service(up, client, api)
        done = service.run({"command": shell("echo kept | tee f"), "outputs": ["f"]})
        stuck = service.submit({"command": shell(f"trap '' TERM INT; setsid sleep {mark} & sleep {mark}")})[
            "id"
        ]
        waiting = [service.submit({"command": shell("sleep 2; echo late")})["id"] for _ in range(8)]
        until(lambda: service.state(waiting[0]) == "running" and len(sleepers(mark)) >= 2, "running")
    cgroups = cgroups_of(up.state)
    up.process.send_signal(signal.SIGINT)
    assert up.process.wait(PATIENCE) == 0
    assert left_of(up.state) == []
    assert sleepers(mark) == []
    assert still_there(cgroups) == []
    assert mounts_of(up.state) == []
    assert not any(path.is_socket() for path in up.state.rglob("*"))
    up.start("--slots", "6", "--grace", "3")
    with up.client() as client, up.api() as api:
        service = Service(up, client, api)
        assert client.get(f"/v1/jobs/{done['id']}").json() == done
        assert client.get(f"/v1/jobs/{done['id']}/artifacts/f").content == b"kept\n"
        for job_id in waiting:
            job = service.finished(job_id)
            assert (job["outcome"]["kind"], job["steps"][0]["stdout"]["text"]) == ("exited", "late\n")
        until(lambda: service.state(stuck) == "running", "running again")
        client.post(f"/v1/jobs/{stuck}:cancel").raise_for_status()
        assert service.finished(stuck)["outcome"]["kind"] == "cancelled"
    assert up.stop() == 0
    assert sleepers(mark) == []


def without_mount(path: str, command: list[str]) -> subprocess.CompletedProcess[str]:
    """Run a command where nothing is mounted at a path."""
    script = f'umount -R -l "{path}" && exec "$@"'
    return subprocess.run(
        ["unshare", "--mount", "sh", "-c", script, "sh", *command],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


def controllers() -> list[str]:
    """Where the cgroup controllers are mounted that limits are made of."""
    mounts = re.findall(
        r" (/sys/fs/cgroup\S*) \S+ .*- (cgroup2?) \S+ (\S+)", Path("/proc/self/mountinfo").read_text()
    )
    wanted = ("memory", "pids", "cpu")
    v1 = [
        path for path, kind, options in mounts if kind == "cgroup" and set(wanted) & set(options.split(","))
    ]
    return v1 or [path for path, kind, _ in mounts if kind == "cgroup2"]


@pytest.mark.parametrize("path", controllers())
def test_a_controller_that_is_missing_stops_everything(up: Up, path: str) -> None:
    """Without any one of the controllers nothing runs unlimited: the command fails, naming what it misses."""
    done = without_mount(path, [str(STOCKADE), "run", "--state", str(up.state), "--", "echo", "unlimited"])
    assert done.returncode == 125, done.stdout + done.stderr
    assert "unlimited" not in done.stdout
    assert "cgroup" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (up.state.exists() and list(up.state.iterdir()))


def test_up_without_cgroups_ends_with_the_reason(up: Up) -> None:
    """`stockade up` does not serve where its launcher cannot limit anything; it says why, and leaves nothing."""
    listen = up.listen
    done = without_mount(
        controllers()[0], [str(STOCKADE), "up", "--state", str(up.state), "--listen", listen]
    )
    assert done.returncode == 1
    assert "launcher ended with status" in done.stderr
    assert "cgroup" in done.stderr
    assert left_of(up.state) == []
