"""stdout and stderr, byte for byte."""

from typing import Any

import httpx
import pytest

from jobs.outcome import Output

BYTES = bytes(range(256)) * 3


def submit(client: httpx.Client) -> str:
    """Submit a job; returns its id."""
    job_id: str = client.post("/v1/jobs", json={"command": ["true"]}).json()["id"]
    return job_id


@pytest.mark.parametrize("content", [b"", b"hello\n", BYTES, "\u00e9\r\n\0".encode(), b"\xef\xbb\xbfx"])
def test_the_bytes_come_back_exactly(client: httpx.Client, worker: Any, content: bytes) -> None:
    """Text, nothing, NUL, carriage returns and what is not UTF-8: raw and in the job's JSON."""
    job_id = submit(client)
    worker.finish(job_id, stdout=Output.of(content), stderr=Output.of(content[::-1]))
    assert client.get(f"/v1/jobs/{job_id}/steps/0/stdout").content == content
    assert client.get(f"/v1/jobs/{job_id}/steps/0/stderr").content == content[::-1]
    kept = Output.model_validate_json(httpx.Response(200, json=step(client, job_id)["stdout"]).content)
    assert kept.data == content


def step(client: httpx.Client, job_id: str) -> dict[str, Any]:
    """The first step of a finished job."""
    found: dict[str, Any] = client.get(f"/v1/jobs/{job_id}").json()["steps"][0]
    return found


def test_what_was_dropped_is_said(client: httpx.Client, worker: Any) -> None:
    """The headers tell how much was written, and how much of it is missing where."""
    job_id = submit(client)
    worker.finish(job_id, stdout=Output.of(b"head", b"tail", total=1008))
    answer = client.get(f"/v1/jobs/{job_id}/steps/0/stdout")
    assert answer.content == b"headtail"
    assert answer.headers["stockade-bytes-written"] == "1008"
    assert answer.headers["stockade-bytes-omitted"] == "1000 after 4"
    assert "stockade-bytes-omitted" not in client.get(f"/v1/jobs/{job_id}/steps/0/stderr").headers


def test_no_browser_runs_an_output(client: httpx.Client, worker: Any) -> None:
    """An output that is HTML is a file to be saved, under a sandboxing policy."""
    job_id = submit(client)
    worker.finish(job_id, stdout=Output.of(b"<script>alert(1)</script>"))
    headers = client.get(f"/v1/jobs/{job_id}/steps/0/stdout").headers
    assert headers["content-type"] == "application/octet-stream"
    assert headers["content-disposition"].startswith("attachment")
    assert headers["x-content-type-options"] == "nosniff"
    assert "sandbox" in headers["content-security-policy"]


def test_an_output_is_there_once_the_job_has_finished(client: httpx.Client, worker: Any) -> None:
    """409 while the job is queued or runs."""
    job_id = submit(client)
    assert client.get(f"/v1/jobs/{job_id}/steps/0/stdout").status_code == 409
    worker.claim(job_id)
    answer = client.get(f"/v1/jobs/{job_id}/steps/0/stdout")
    assert answer.status_code == 409
    assert "running" in answer.json()["detail"]


@pytest.mark.parametrize("index", ["1", "-1", "x", "99999999999999999999", "0x0"])
def test_a_step_that_did_not_run_has_no_output(client: httpx.Client, worker: Any, index: str) -> None:
    """404 for every index but those of steps that ran."""
    job_id = submit(client)
    worker.finish(job_id)
    assert client.get(f"/v1/jobs/{job_id}/steps/{index}/stdout").status_code == 404
