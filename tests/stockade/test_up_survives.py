"""`stockade up` when something dies: a child, itself, or just its time."""

import os
import signal

import httpx
import pytest

from tests.stack import Up, left_of, until

pytestmark = [pytest.mark.kernel, pytest.mark.once, pytest.mark.slow]


def test_jobs_and_keys_survive_a_restart(up: Up) -> None:
    """A finished job is still there, and the key still opens the door; an unfinished one finishes."""
    up.start("--grace", "1")
    done = up.run("echo", "kept")
    key = (up.state / "dev-key").read_text()
    with up.api() as api:
        unfinished = api.submit(["sh", "-c", "sleep 4; echo late"]).id
    until(lambda: state_of(up, unfinished) == "running", "job running")
    assert up.stop() == 0
    assert left_of(up.state) == []
    up.start()
    assert (up.state / "dev-key").read_text() == key
    assert up.finished(done["id"]) == done
    late = up.finished(unfinished)
    assert late["outcome"]["kind"] == "exited"
    assert late["steps"][0]["stdout"]["text"] == "late\n"


def state_of(up: Up, job_id: str) -> str:
    with up.api() as api:
        return api.get(job_id).state.value


@pytest.mark.parametrize("name", ["valkey", "launcher", "worker", "api"])
def test_a_child_that_dies_is_named_and_started_again(up: Up, name: str) -> None:
    """SIGKILL to any one of the four: it is named, comes back, and jobs run again."""
    up.start()
    assert up.run("true")["outcome"]["kind"] == "exited"
    os.kill(up.pids()[name], signal.SIGKILL)
    until(lambda: f"{name} ended with SIGKILL; starting it again" in up.output(), "named")

    def answers() -> bool:
        try:
            return httpx.get(f"http://{up.listen}/readyz", trust_env=False).status_code == 200
        except httpx.TransportError:
            return False

    until(answers, "ready again")
    assert up.run("true")["outcome"]["kind"] == "exited"


def test_the_children_die_with_it_however_it_dies(up: Up) -> None:
    """After SIGKILL of `stockade up` no process of it is left."""
    up.start()
    up.process.kill()
    up.process.wait()
    until(lambda: not [line for line in left_of(up.state) if not line.startswith("/")], "children gone")
