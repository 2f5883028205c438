"""The service as its users have it: a running `stockade up`, spoken to over HTTP."""

import os
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from stockade.client import Client
from tests import census
from tests.stack import PATIENCE, Up

Job = dict[str, Any]
SOURCE = Path(__file__).resolve().parents[2] / "worker"


def python(program: str, *arguments: str) -> list[str]:
    """The argv of a Python program that is written in a test."""
    return ["python3", "-c", textwrap.dedent(program), *arguments]


def shell(program: str) -> list[str]:
    """The argv of a shell program."""
    return ["sh", "-c", program]


@dataclass
class Service:
    """A running service, the Python client of it, and a plain HTTP client for what is about HTTP itself."""

    up: Up
    client: httpx.Client
    api: Client

    def submit(self, body: dict[str, Any]) -> Job:
        """Send a job; it as it was accepted."""
        return self.api.submit(body).model_dump(mode="json")

    def finished(self, job_id: str) -> Job:
        """The job when it is finished."""
        return self.api.wait(job_id, timeout=PATIENCE).model_dump(mode="json")

    def state(self, job_id: str) -> str:
        """The job's state now."""
        return self.api.get(job_id).state.value

    def run(self, body: dict[str, Any]) -> Job:
        """Send a job and wait for its end."""
        return self.api.run(body, timeout=PATIENCE).model_dump(mode="json")

    def step(self, argv: list[str], files: list[dict[str, Any]] | None = None, **step: Any) -> Job:
        """Run one command; how its only step went."""
        job = self.run({"command": {"argv": argv, **step}, "files": files or []})
        assert len(job["steps"]) == 1, job["outcome"]
        result: Job = job["steps"][0]
        return result

    def output(self, argv: list[str], **step: Any) -> str:
        """Run one command that must succeed; what it printed."""
        result = self.step(argv, **step)
        assert (result["outcome"]["kind"], result["outcome"]["exit_code"]) == ("exited", 0), result
        return str(result["stdout"]["text"])

    def readiness(self) -> tuple[int, dict[str, Any]]:
        """What /readyz says."""
        answer = self.client.get("/readyz")
        return answer.status_code, answer.json()

    @contextmanager
    def host_unchanged(self) -> Iterator[None]:
        """Assert that the host is afterwards as it was before."""
        launcher = self.up.pids()["launcher"]
        with census.unchanged(launcher, self.up.state / "launcher", SOURCE):
            yield

    def logs(self) -> dict[str, str]:
        """Every log of the four processes."""
        return {path.name: path.read_text() for path in (self.up.state / "logs").iterdir()}


def environment_of(pid: int) -> str:
    """Command line and environment of a process."""
    parts = [Path(f"/proc/{pid}/{name}").read_bytes() for name in ("cmdline", "environ")]
    return os.fsdecode(b"\n".join(parts))
