"""Artifacts: listed and downloaded as they were collected."""

from typing import Any
from urllib.parse import quote

import httpx
import pytest

from jobs.outcome import ArtifactError

NAMES = [
    "a",
    "dir/deep/report.txt",
    "with space",
    'quote"and;semicolon',
    "line\nbreak\r\nX-Injected: 1",
    "\u00fcml\u00e4ut \U0001f4a9",
    "%2e%2e",
    "a?b#c",
    "<script>.html",
]


def submit(client: httpx.Client) -> str:
    """Submit a job; returns its id."""
    job_id: str = client.post("/v1/jobs", json={"command": ["true"], "outputs": ["**"]}).json()["id"]
    return job_id


def test_artifacts_are_listed(client: httpx.Client, worker: Any) -> None:
    """What was collected, and what was not and why; the same as in the job."""
    job_id = submit(client)
    error = ArtifactError(path="link", error="not_regular_file", message="It is a symbolic link.")
    worker.finish(job_id, files={"a": b"1", "b/c": b"22"}, errors=(error,))
    listed = client.get(f"/v1/jobs/{job_id}/artifacts").json()
    assert [(a["path"], a["size"]) for a in listed["artifacts"]] == [("a", 1), ("b/c", 2)]
    assert listed["artifact_errors"] == [error.model_dump()]
    job = client.get(f"/v1/jobs/{job_id}").json()
    assert {name: job[name] for name in listed} == listed


@pytest.mark.parametrize("name", NAMES)
def test_any_name_is_downloaded_exactly(client: httpx.Client, worker: Any, name: str) -> None:
    """Spaces, quotes, line breaks, Unicode and percent signs in names: the right bytes, and a safe header."""
    content = bytes(range(256)) + name.encode()
    job_id = submit(client)
    worker.finish(job_id, files={name: content, "other": b"other"})
    answer = client.get(f"/v1/jobs/{job_id}/artifacts/{quote(name)}")
    assert answer.status_code == 200
    assert answer.content == content
    assert (
        answer.headers["content-disposition"]
        == f"attachment; filename*=UTF-8''{quote(name.rpartition('/')[2], safe='')}"
    )
    assert "x-injected" not in answer.headers


def test_no_browser_runs_an_artifact(client: httpx.Client, worker: Any) -> None:
    """An artifact that is HTML is a file to be saved, under a sandboxing policy, of no guessed type."""
    job_id = submit(client)
    worker.finish(job_id, files={"a.html": b"<script>alert(1)</script>"})
    headers = client.get(f"/v1/jobs/{job_id}/artifacts/a.html").headers
    assert headers["content-type"] == "application/octet-stream"
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["content-security-policy"] == "default-src 'none'; sandbox"


@pytest.mark.parametrize("path", ["nothing", "a/", "/a", "../a", "..%2fa", "%00", "", "A"])
def test_only_names_in_the_list_are_found(client: httpx.Client, worker: Any, path: str) -> None:
    """A path is compared with the list, never walked: all else is 404."""
    job_id = submit(client)
    worker.finish(job_id, files={"a": b"1"})
    assert client.get(f"/v1/jobs/{job_id}/artifacts/{path}").status_code == 404


def test_artifacts_are_there_once_the_job_has_finished(client: httpx.Client) -> None:
    """409 before."""
    job_id = submit(client)
    assert client.get(f"/v1/jobs/{job_id}/artifacts").status_code == 409
    assert client.get(f"/v1/jobs/{job_id}/artifacts/a").status_code == 409


def test_after_its_retention_nothing_is_left_to_read(client: httpx.Client, worker: Any, store: Any) -> None:
    """When the job has expired, its artifacts are 404 too."""
    job_id = submit(client)
    worker.finish(job_id, files={"a": b"1"})
    store.redis.delete(f"stockade:job:{job_id}")
    assert client.get(f"/v1/jobs/{job_id}/artifacts/a").status_code == 404
