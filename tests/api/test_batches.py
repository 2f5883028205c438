"""Batches: each job stands alone, in order."""

import json
from typing import Any

import httpx
import pytest

from jobs import tenants
from jobs.job import Tenant
from jobs.measures import MEASURES
from jobs.metrics import metrics
from jobs.store import Store

TRUE = {"command": ["true"]}


def submit(client: httpx.Client, *jobs: Any, **headers: str) -> list[dict[str, Any]]:
    """The items of the answer to a batch of these jobs."""
    answer = client.post("/v1/jobs:batch", json={"jobs": jobs}, headers=headers)
    assert answer.status_code == 200, answer.text
    found: list[dict[str, Any]] = answer.json()["items"]
    return found


def test_each_job_is_answered_as_if_it_had_come_alone(client: httpx.Client, store: Store) -> None:
    """In order: the job, or the very problem that it would have got; one that is wrong keeps none from running."""
    wrong: list[Any] = [
        {},
        5,
        {"command": ["a", 1]},
        {"command": ["a"], "policy": "nothing"},
        {"privileged": 1},
    ]
    items = submit(client, TRUE, *wrong, TRUE | {"labels": {"a": "1"}})
    assert [item["status"] for item in items] == [201, *[422] * len(wrong), 201]
    for body, item in zip(wrong, items[1:-1], strict=True):
        alone = client.post("/v1/jobs", json=body).json()
        assert {name: value for name, value in item["problem"].items() if name != "component"} == alone
    assert items[-1]["job"]["labels"] == {"a": "1"}
    for item in (items[0], items[-1]):
        assert client.get(f"/v1/jobs/{item['job']['id']}").json() == item["job"]


def test_a_batch_again_makes_what_is_missing(client: httpx.Client) -> None:
    """With a key, job n has the key K/n: the first answer's jobs come again, and only the others are made."""
    first = submit(client, TRUE, {}, **{"Idempotency-Key": "k"})
    again = submit(client, TRUE, TRUE, {"command": ["false"]}, **{"Idempotency-Key": "k"})
    assert [item["status"] for item in first] == [201, 422]
    assert [item["status"] for item in again] == [200, 201, 201]
    assert again[0]["job"]["id"] == first[0]["job"]["id"]
    other = submit(client, {"command": ["false"]}, **{"Idempotency-Key": "k"})
    assert [item["status"] for item in other] == [422]
    assert other[0]["problem"]["type"] == "urn:stockade:problem:idempotency-mismatch"
    alone = client.post("/v1/jobs", json=TRUE, headers={"Idempotency-Key": "k/1"})
    assert (alone.status_code, alone.json()["id"]) == (200, again[1]["job"]["id"])


def test_a_budget_may_end_in_the_middle(client: httpx.Client, store: Store, tenant: Tenant) -> None:
    """What still fits is accepted, the rest is 429 each; the answer says what is left."""
    tenants.set_tenant(store.redis, tenant, budgets={"submits_per_minute": 2})
    answer = client.post("/v1/jobs:batch", json={"jobs": [TRUE] * 4})
    assert [item["status"] for item in answer.json()["items"]] == [201, 201, 429, 429]
    assert (answer.headers["ratelimit-limit"], answer.headers["ratelimit-remaining"]) == ("2", "0")
    assert answer.json()["items"][3]["problem"]["errors"][0]["field"] == "budgets.submits_per_minute"


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "jobs"),
        ({"jobs": []}, "jobs"),
        ({"jobs": [TRUE] * 101}, "jobs"),
        ({"jobs": TRUE}, "jobs"),
        ({"jobs": [TRUE], "wait": 1}, "wait"),
        ([TRUE], ""),
    ],
)
def test_what_is_no_batch_is_422(client: httpx.Client, body: Any, field: str) -> None:
    """1 to 100 jobs and nothing else; of what is none, nothing is stored."""
    answer = client.post("/v1/jobs:batch", json=body)
    assert answer.status_code == 422
    assert [error["field"] for error in answer.json()["errors"]] == [field]
    assert client.get("/v1/jobs").json()["jobs"] == []


def test_a_hundred_jobs_are_taken(client: httpx.Client) -> None:
    """The most there may be."""
    items = submit(client, *[TRUE] * 100)
    assert len({item["job"]["id"] for item in items}) == 100


@pytest.mark.parametrize(
    "body", ['{"jobs":[{"command":["a"],"command":["b"]}]}', '{"jobs":[{"a":NaN}]}', "[" * 9999]
)
def test_what_has_two_meanings_is_refused_as_a_whole(client: httpx.Client, body: str) -> None:
    """Duplicate keys, NaN and endless nesting anywhere in the body are 422 for the body."""
    answer = client.post("/v1/jobs:batch", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 422


def test_numbers_stay_what_they_are(client: httpx.Client) -> None:
    """What no number is in a single job is none in a batch either."""
    for literal in ("1e999", "1" * 400, "-1e999", "0.5e0"):
        job = f'{{"steps": [{{"argv": ["true"], "limits": {{"wall_time": {literal}}}}}]}}'
        headers = {"Content-Type": "application/json"}
        alone = client.post("/v1/jobs", content=job, headers=headers)
        batch = client.post("/v1/jobs:batch", content=f'{{"jobs": [{job}]}}', headers=headers)
        [item] = batch.json()["items"]
        assert item["status"] == alone.status_code
        if alone.status_code == 422:
            fields = [
                [error["field"] for error in each["errors"]] for each in (item["problem"], alone.json())
            ]
            assert fields[0] == fields[1] == ["steps[0].limits.wall_time"]


def test_each_job_counts_by_itself(client: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the metrics each is admitted, repeated or refused, as if it had come alone."""
    counted: list[str] = []
    count = metrics.count

    def counting(name: str, **labels: str) -> None:
        if name == "jobs_submitted_total":
            counted.append(labels["result"])
        count(name, **labels)

    assert "jobs_submitted_total" in MEASURES
    monkeypatch.setattr(metrics, "count", counting)
    submit(client, TRUE, {}, **{"Idempotency-Key": "k"})
    submit(client, TRUE, json.loads('{"command": ["a"], "policy": "x"}'), **{"Idempotency-Key": "k"})
    assert counted == ["admitted", "invalid-request", "repeated", "not-admitted"]
