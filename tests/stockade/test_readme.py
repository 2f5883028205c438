"""The README's examples are true."""

import json
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from tests.stack import PATIENCE, STOCKADE, Up

pytestmark = [pytest.mark.kernel, pytest.mark.once]
README = (Path(__file__).parents[2] / "README.md").read_text()


def test_the_command_line_prints_what_the_readme_says(tmp_path: Path) -> None:
    """The same verdict and status; where the kernel counted differs between cgroup v1 and v2."""
    console = re.search(r"# (stockade run .*)\n(.*)\n.*\n# echo \$\?\n(\d+)", README)
    assert console
    command, verdict, status = console.groups()
    argv = [STOCKADE, "run", "--state", tmp_path, *shlex.split(command)[2:]]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == int(status)
    assert done.stderr.splitlines()[0] == verdict


def test_the_job_of_the_readme_runs_and_leaves_its_artifact(up: Up) -> None:
    """Compiled in one step, run in the next, and the output file is fetched."""
    body = re.search(r"```json\n(.*?)```", README, re.DOTALL)
    assert body
    up.start()
    with up.api() as api:
        job = api.run(json.loads(body[1]), timeout=PATIENCE)
        assert job.outcome.kind == "exited", job
        assert api.artifact(job.id, "answer") == b"42"
