"""The list of jobs over HTTP: pages, filters, and nobody else's jobs."""

from typing import Any

import httpx
import pytest

TRUE = {"command": ["true"]}


def submit(client: httpx.Client, **labels: str) -> str:
    """Submit a job with these labels; returns its id."""
    job_id: str = client.post("/v1/jobs", json=TRUE | {"labels": labels}).json()["id"]
    return job_id


def listed(client: httpx.Client, query: str = "") -> list[str]:
    """The ids of all jobs, page by page."""
    found: list[str] = []
    cursor = ""
    while True:
        answer = client.get(f"/v1/jobs?limit=2&{query}{cursor}")
        assert answer.status_code == 200, answer.text
        found += [job["id"] for job in answer.json()["jobs"]]
        if answer.json()["next"] is None:
            return found
        cursor = f"&cursor={answer.json()['next']}"


def test_pages_are_complete_and_newest_first(client: httpx.Client) -> None:
    """Following `next` leads through all jobs, each once, in the order of their creation."""
    made = [submit(client) for _ in range(5)]
    assert sorted(listed(client)) == sorted(made)
    times = [job["created_at"] for job in client.get("/v1/jobs").json()["jobs"]]
    assert times == sorted(times, reverse=True)


def test_filters_narrow_the_list(client: httpx.Client, worker: Any) -> None:
    """By state, by labels (a value may have colons), by time; several at once."""
    plain, labelled, done = submit(client), submit(client, a="x:y", b="1"), submit(client, a="x:y")
    worker.finish(done)
    assert set(listed(client, "label=a:x:y")) == {labelled, done}
    assert listed(client, "label=a:x:y&label=b:1") == [labelled]
    assert listed(client, "label=b:") == []
    assert listed(client, "state=finished") == [done]
    assert set(listed(client, "state=queued")) == {plain, labelled}
    assert set(listed(client, "state=queued&state=finished")) == {plain, labelled, done}
    created = client.get(f"/v1/jobs/{plain}").json()["created_at"].replace("+", "%2B")
    assert plain in listed(client, f"created_after={created}")
    assert plain not in listed(client, f"created_before={created}")
    assert listed(client, "created_before=2020-01-01") == listed(client, "created_after=2999-01-01") == []


def test_another_projects_jobs_are_never_listed(client: httpx.Client, served: Any, other_key: str) -> None:
    """Not on any page, nor with its cursor."""
    mine = [submit(client) for _ in range(3)]
    cursor = client.get("/v1/jobs?limit=1").json()["next"]
    with served.client(other_key) as other:
        assert listed(other) == []
        assert other.get(f"/v1/jobs?cursor={cursor}").json() == {"jobs": [], "next": None}
        theirs = submit(other)
        assert listed(other) == [theirs]
    assert sorted(listed(client)) == sorted(mine)


def test_a_list_repeats_neither_spec_nor_result(client: httpx.Client, worker: Any) -> None:
    """What was asked and what was written stay with the job."""
    job_id = client.post("/v1/jobs", json={"command": {"argv": ["true"], "stdin": "s3cret"}}).json()["id"]
    worker.finish(job_id, files={"s3cret": b""})
    answer = client.get("/v1/jobs")
    [job] = answer.json()["jobs"]
    assert job["outcome"]["kind"] == "exited"
    assert "s3cret" not in answer.text


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("limit=0", "limit"),
        ("limit=101", "limit"),
        ("cursor=x", "cursor"),
        ("cursor=", "cursor"),
        ("state=done", "state[0]"),
        ("label=a", "label[0]"),
        ("label=:a", "label[0]"),
        ("&".join(["label=a:1"] * 17), "label"),
        ("created_after=yesterday", "created_after"),
        ("created_before=", "created_before"),
    ],
)
def test_a_query_that_cannot_be_is_422(client: httpx.Client, query: str, field: str) -> None:
    """It names the parameter at fault."""
    answer = client.get(f"/v1/jobs?{query}")
    assert answer.status_code == 422
    assert [error["field"] for error in answer.json()["errors"]] == [field]
