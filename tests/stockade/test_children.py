"""Child processes: started with nothing of ours, told from each other, surely ended."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from stockade.children import Child, ChildDied


def wait_for(path: Path) -> str:
    deadline = time.monotonic() + 10
    while not (path.exists() and path.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return path.read_text()


def run_to_its_end(child: Child) -> None:
    child.start()
    child.wait_until(lambda: child.status() is not None, timeout=10)


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_a_child_gets_only_the_environment_that_it_was_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A secret in our environment is not in the child's."""
    monkeypatch.setenv("SECRET", "x")
    child = Child("env", ["env"], tmp_path / "log", env={"STOCKADE_LISTEN": "127.0.0.1:1"})
    run_to_its_end(child)
    names = {line.partition("=")[0] for line in (tmp_path / "log").read_text().splitlines()}
    assert names == {"PATH", "LANG", "STOCKADE_LISTEN"}


def test_a_child_that_ends_before_it_is_ready_is_named_with_its_last_words(tmp_path: Path) -> None:
    """The error holds the child's name, how it ended and the end of its log."""
    child = Child("oven", ["sh", "-c", "echo no gas >&2; exit 3"], tmp_path / "log")
    child.start()
    with pytest.raises(ChildDied, match=r"(?s)oven ended with status 3 .*no gas"):
        child.wait_until(lambda: False, timeout=10)


def test_a_child_that_never_gets_ready_is_named(tmp_path: Path) -> None:
    """Waiting ends, and says for whom it waited how long."""
    child = Child("oven", ["sleep", "60"], tmp_path / "log")
    child.start()
    with pytest.raises(ChildDied, match=r"oven was not ready after 0\.1 s"):
        child.wait_until(lambda: False, timeout=0.1)
    assert child.stop(5)


def test_a_child_that_ignores_the_request_is_killed_with_its_own_children(tmp_path: Path) -> None:
    """After the grace period nothing of its process group is left, and stop says that it was not clean."""
    note = tmp_path / "pids"
    script = f"trap '' TERM; sleep 61 & echo $! $$ > {note}; while :; do sleep 0.1; done"
    child = Child("mule", ["sh", "-c", script], tmp_path / "log")
    child.start()
    pids = [int(word) for word in wait_for(note).split()]
    assert not child.stop(0.2)
    deadline = time.monotonic() + 5
    while any(map(alive, pids)):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    child.stop(0.2)  # once more changes nothing
    assert child.status() == "SIGKILL"


def test_a_child_dies_with_its_parent(tmp_path: Path) -> None:
    """When the parent is killed outright, the kernel ends the child."""
    note = tmp_path / "pid"
    script = (
        "import sys, time; from pathlib import Path; from stockade.children import Child\n"
        f"child = Child('orphan', ['sleep', '62'], Path({str(tmp_path / 'log')!r})); child.start()\n"
        f"Path({str(note)!r}).write_text(str(child.pid)); time.sleep(60)"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    parent = subprocess.Popen([sys.executable, "-c", script], env=env)
    pid = int(wait_for(note))
    time.sleep(0.2)  # setpriv has asked for the signal by now
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    deadline = time.monotonic() + 5
    while alive(pid):
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.kernel
def test_an_unprivileged_child_has_no_privilege_left(tmp_path: Path) -> None:
    """Other user, no groups, no capabilities to have or to gain."""
    child = Child(
        "grep", ["grep", "-E", "Uid|Groups|Cap|NoNewPrivs", "/proc/self/status"], tmp_path / "log", "stockade"
    )
    run_to_its_end(child)
    status = dict(line.split(":", 1) for line in (tmp_path / "log").read_text().splitlines())
    assert "0" not in status["Uid"].split()
    assert status["Groups"].split() == []
    assert {int(status[f"Cap{kind}"], 16) for kind in ("Inh", "Prm", "Eff", "Bnd", "Amb")} == {0}
    assert status["NoNewPrivs"].strip() == "1"
