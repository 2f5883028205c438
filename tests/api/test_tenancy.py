"""What another tenant has cannot be told from what does not exist: not by words, not by size, not by time."""

import json
import re
import statistics
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import redis

from jobs import keys, tenants
from jobs.keys import Scope
from tests.api.conftest import Served, Worker

VARIES = {"x-request-id", "date"}
"""Header fields that differ between any two answers."""
ABSENT = {
    "job_id": "job_00112233445566778899aabb",
    "key_id": "0011223344556677",
    "webhook_id": "wh_00112233445566778899aabb",
    "delivery_id": "msg_00112233445566778899aabb",
}
"""Identifiers of nothing, in the form of those that there are."""
BODIES = {("PATCH", "/v1/webhooks/{webhook_id}"): {"state": "disabled"}}
ROUNDS = 40


@pytest.fixture
def other(served: Served, redis_client: redis.Redis) -> Iterator[httpx.Client]:
    """A client of another project, whose key may do everything."""
    key = keys.create_key(redis_client, tenants.create_tenant(redis_client, "second"), scopes=Scope)
    with served.client(key) as client:
        yield client


@pytest.fixture
def owned(client: httpx.Client, worker: Worker) -> dict[str, str]:
    """Identifiers of what the first tenant has: a finished job with a file, a key, a webhook, a delivery."""
    job_id = client.post("/v1/jobs", json={"command": ["true"]}).json()["id"]
    worker.finish(job_id, files={"a": b"secret"})
    webhook_id = client.post("/v1/webhooks", json={"url": "https://hooks.example.com"}).json()["webhook"][
        "id"
    ]
    return {
        "job_id": job_id,
        "key_id": client.post("/v1/keys", json={"name": "a"}).json()["id"],
        "webhook_id": webhook_id,
        "delivery_id": client.post(f"/v1/webhooks/{webhook_id}:test").json()["id"],
    }


def about_things(client: httpx.Client) -> list[tuple[str, str]]:
    """Method and path of every operation on something that belongs to a tenant."""
    paths = client.get("/openapi.json").json()["paths"]
    return [(method.upper(), path) for path, methods in paths.items() for method in methods if "_id}" in path]


def ask(client: httpx.Client, method: str, template: str, ids: dict[str, str]) -> httpx.Response:
    """Do this to what has these ids."""
    return client.request(
        method, template.format(**ids, step=0, path="a"), json=BODIES.get((method, template))
    )


def everything(answer: httpx.Response) -> tuple[int, bytes, list[tuple[str, str]]]:
    """All that an answer tells, byte by byte and in its order."""
    fields = [(name, value) for name, value in answer.headers.multi_items() if name not in VARIES]
    return answer.status_code, answer.content, fields


def test_what_another_has_answers_exactly_as_what_is_not_there(
    client: httpx.Client, other: httpx.Client, owned: dict[str, str]
) -> None:
    """Of every operation: the same status, the same body, the same header fields; and nothing has happened."""
    asked = about_things(client)
    assert len(asked) >= 15
    for method, template in asked:
        theirs, nobodys = (ask(other, method, template, ids) for ids in (owned, ABSENT))
        assert theirs.status_code == 404, f"{method} {template}"
        assert everything(theirs) == everything(nobodys), f"{method} {template}"
    for template in ("/v1/jobs/{job_id}/artifacts/{path}", "/v1/keys/{key_id}", "/v1/webhooks/{webhook_id}"):
        assert ask(client, "GET", template, owned).status_code == 200, template


def test_lists_are_of_ones_own(client: httpx.Client, other: httpx.Client, owned: dict[str, str]) -> None:
    """No list, report or log of another project names any of it."""
    paths = [
        path for path, methods in client.get("/openapi.json").json()["paths"].items() if "get" in methods
    ]
    lists = [path for path in paths if path.startswith("/v1") and "{" not in path]
    assert {"/v1/jobs", "/v1/keys", "/v1/webhooks", "/v1/audit", "/v1/usage", "/v1/quota"} <= set(lists)
    named = 0
    for path in lists:
        mine, theirs = client.get(path).raise_for_status().text, other.get(path).raise_for_status().text
        named += any(each in mine for each in owned.values())
        assert not any(each in theirs for each in owned.values()), path
    assert named >= 4  # jobs, keys, webhooks, audit: the owner sees them


def test_what_another_has_takes_as_long_as_what_is_not_there(
    other: httpx.Client, owned: dict[str, str]
) -> None:
    """By turns, over many requests: the middle values do not tell the two apart (no more is said on a busy machine)."""
    took: dict[str, list[float]] = {owned["job_id"]: [], ABSENT["job_id"]: []}
    for _ in range(ROUNDS):
        for job_id, seconds in took.items():
            begun = time.perf_counter()
            other.get(f"/v1/jobs/{job_id}")
            seconds.append(time.perf_counter() - begun)
    fast, slow = sorted(statistics.median(seconds) for seconds in took.values())
    assert slow < 2 * fast + 0.002


def test_no_header_field_gets_into_a_link(client: httpx.Client) -> None:
    """`Location` is relative, and whatever `Host` and the fields of proxies say, no answer repeats it."""
    spoofed = {
        "Host": "evil.example",
        "X-Forwarded-Host": "evil.example",
        "X-Forwarded-Proto": "evil",
        "X-Forwarded-Prefix": "/evil",
        "X-Original-URL": "/evil",
        "Forwarded": "host=evil.example;proto=evil",
    }
    made = client.post("/v1/jobs", json={"command": ["true"]}, headers=spoofed)
    assert made.headers["location"] == f"/v1/jobs/{made.json()['id']}"
    answers = [made]
    for path in (
        "/docs",
        "/openapi.json",
        "/v1/jobs",
        "/v1/jobs/",
        "/nowhere",
        "/docs/",
        "/docs/assets",
        "//evil.example",
    ):
        answers.append(client.get(path, headers=spoofed))
    for answer in answers:
        assert "evil" not in answer.text, answer.url
        assert "evil" not in str(answer.headers), answer.url


@pytest.mark.parametrize(
    "labels",
    [
        {"a": 'x\n{"event": "request", "status": 200}'},
        {"a": "x\r\nX-Injected: 1"},
        {"a": "\x1b[2J\x1b[31mred"},
        {"a": "<script>alert(1)</script>"},
        {"a": "=1+2"},
        {"a": "\u202eabc"},
        {"a\nb": "x"},
        {"<b>": "x"},
    ],
)
def test_labels_have_no_place_for_injections(client: httpx.Client, labels: dict[str, str]) -> None:
    """Line ends, control sequences, markup and formulas are refused, and said with their field."""
    answer = client.post("/v1/jobs", json={"command": ["true"], "labels": labels})
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["field"].startswith("labels")


@pytest.mark.parametrize("text", ["a\nb", "a\x1b[31m", "<script>", "\u202e"])
def test_names_of_keys_and_webhooks_are_inert(client: httpx.Client, text: str) -> None:
    """A name that could end a line or steer a terminal is refused; markup comes back as JSON alone."""
    assert client.post("/v1/keys", json={"name": text}).status_code == 422
    hook = client.post("/v1/webhooks", json={"url": "https://hooks.example.com", "description": text})
    if hook.status_code == 201:
        assert not re.search(r"[\x00-\x1f\x7f]", text)
        assert hook.headers["content-type"] == "application/json"
        assert hook.headers["x-content-type-options"] == "nosniff"
        assert json.loads(hook.text)["webhook"]["description"] == text


def test_what_describes_the_service_is_public_and_nothing_else_is(stranger: httpx.Client) -> None:
    """Without a key: health and the reference. Metrics, consoles and debugging are not at this address at all."""
    for path in ("/healthz", "/docs", "/openapi.json"):
        assert stranger.get(path).status_code == 200
    for path in (
        "/metrics",
        "/debug",
        "/admin",
        "/flower",
        "/redoc",
        "/console",
        "/.env",
        "/docs/assets/../../app.py",
    ):
        assert stranger.get(path).status_code == 404, path
    answers: dict[str, Any] = {
        path: stranger.get(re.sub(r"\{\w+\}", "0", path))
        for path, methods in stranger.get("/openapi.json").json()["paths"].items()
        if path.startswith("/v1") and "get" in methods
    }
    assert {answer.status_code for answer in answers.values()} == {401}
