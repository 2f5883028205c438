"""The Python client and `stockade job` as their users have them, and the page that tells of them."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.service import Service
from tests.stack import PATIENCE, STOCKADE

pytestmark = [pytest.mark.kernel, pytest.mark.e2e, pytest.mark.once]
PAGE = (Path(__file__).parents[2] / "docs" / "client.md").read_text()


def environment(service: Service) -> dict[str, str]:
    """What a user of the service sets."""
    key = (service.up.state / "dev-key").read_text().strip()
    return os.environ | {"STOCKADE_URL": f"http://{service.up.listen}", "STOCKADE_KEY": key}


def test_the_page_of_the_client_is_true(service: Service, tmp_path: Path) -> None:
    """Its blocks, one after the other as one program; each asserts what it says."""
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    assert len(blocks) == PAGE.count("```python") >= 6
    program = "\n".join(blocks).replace('Client("http://127.0.0.1:8000", "sk_…")', "Client()")
    command = [sys.executable, "-P", "-W", "error", "-c", program]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env=environment(service),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "command.limits.pids: pids of 100000 is over the policy's ceiling" in done.stdout
    assert (tmp_path / "total.txt").read_text() == "42"


def test_the_command_line_of_the_page_is_true(service: Service, tmp_path: Path) -> None:
    """A shell runs its lines and prints what the page prints."""
    (console,) = re.findall(r"^```console\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    lines = [line.removeprefix("# ") for line in console.splitlines() if line.startswith("# ")]
    printed = [line for line in console.splitlines() if not line.startswith("# ")]
    path = f"{STOCKADE.parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["sh", "-e", "-c", "\n".join(lines)], cwd=tmp_path, env=environment(service) | {"PATH": path},
        capture_output=True, text=True, timeout=PATIENCE, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == printed
    assert (tmp_path / "results" / "out.txt").read_text() == "kept\n"


def test_a_job_is_followed_and_its_status_passed_on(service: Service) -> None:
    """The service of the state directory is found; what the job prints comes as it is, and its status at the end."""
    program = ["sh", "-c", "printf 'a\\377'; sleep 0.2; echo b >&2; cat; kill -SEGV $$"]
    command = [STOCKADE, "job", "submit", "--follow", "--stdin", "--state", service.up.state, "--", *program]
    done = subprocess.run(command, input=b"in", capture_output=True, timeout=PATIENCE, check=False)
    assert done.stdout == b"a\xffin"
    assert done.stderr.startswith(b"b\nstockade job: signaled: ")
    assert done.returncode == 128 + 11


def test_ctrl_c_cancels_the_job_that_is_followed(service: Service) -> None:
    """A signal to the command ends the program in its sandbox, and the command says so."""
    program = ["sh", "-c", "echo started; exec sleep 60"]
    command = [
        STOCKADE,
        "job",
        "submit",
        "--follow",
        "--state",
        service.up.state,
        "--label",
        "of=ctrl-c",
        "--",
        *program,
    ]

    def interruptible() -> None:
        """As at a terminal; what runs in the background is started with the signal ignored."""
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=interruptible
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline() == b"started\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) == 130
        said = process.stderr.read().decode()
    (job,) = service.api.list(labels={"of": "ctrl-c"})
    assert said == f"stockade job: {job.id} is cancelled\n"
    assert service.finished(job.id)["outcome"]["kind"] == "cancelled"
