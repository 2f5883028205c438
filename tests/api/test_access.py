"""The request log: one line each, without anything that a caller wrote."""

import asyncio
import time
from typing import Any

import httpx
import pytest
from starlette.types import Message, Receive, Scope, Send
from structlog.testing import capture_logs

from api.access import AccessLog
from jobs.job import Tenant


def requests(logs: list[Any], count: int = 1) -> list[Any]:
    """The lines about requests, once there are so many: a line is written after its answer has been sent."""
    deadline = time.monotonic() + 5
    while True:
        lines = [line for line in logs if line["event"] == "request"]
        if len(lines) >= count or time.monotonic() > deadline:
            return lines
        time.sleep(0.005)


def test_a_request_is_one_line(client: httpx.Client, tenant: Tenant, key: str) -> None:
    """Method, pattern of the address, status, tenant, id of the key, time, and the id that the caller got too."""
    with capture_logs() as logs:
        answer = client.get("/v1/jobs/job_1?wait=0")
        (line,) = requests(logs)
    assert line["method"] == "GET"
    assert line["route"] == "/v1/jobs/{job_id}"
    assert line["status"] == 404
    assert line["tenant"] == tenant.id
    assert line["key"] == key.split("_")[1]
    assert line["milliseconds"] > 0
    assert line["request"] == answer.headers["x-request-id"]


def test_nothing_that_a_caller_wrote_is_logged(client: httpx.Client, key: str) -> None:
    """Keys, addresses, queries, headers and bodies do not appear, good or bad, known address or not."""
    secret = key.split("_", 2)[2]
    with capture_logs() as logs:
        client.get(f"/v1/jobs/{key}")
        client.get(f"/{key}?key={key}")
        client.get("/v1/policies", headers={"Authorization": f"Bearer {key}x", "User-Agent": key})
        client.get("/v1/jobs/a%0d%0aforged%20line")
        client.post("/v1/jobs", json={"command": ["env"], "policy": key})
        client.post("/v1/jobs", json={"command": {"argv": ["env"], "env": {"TOKEN": key}}})
        assert len(requests(logs, 6)) == 6
    assert secret not in repr(logs)
    assert "forged" not in repr(logs)


def run(app: Any) -> list[Message]:
    """What a caller gets from an application behind the log."""
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        sent.append(message)

    asyncio.run(AccessLog(app)({"type": "http", "method": "GET", "path": "/"}, receive, send))
    return sent


def test_what_nobody_expected_is_a_problem_and_a_traceback() -> None:
    """The caller reads 500 and an id; the reason is in the log under that id, not in the answer."""

    async def broken(scope: Scope, receive: Receive, send: Send) -> None:
        raise ValueError("secret reason")

    with capture_logs() as logs:
        start, body = run(broken)
    assert start["status"] == 500
    assert b"secret" not in body["body"]
    failure = next(line for line in logs if line["event"] == "request_failed")
    assert failure["request"].encode() in body["body"]
    assert failure["exc_info"]
    assert requests(logs)[0]["status"] == 500


def test_half_an_answer_is_broken_off() -> None:
    """When the status is out already, only ending the connection can tell the caller that we failed."""

    async def broken(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise ValueError

    with pytest.raises(ValueError), capture_logs() as logs:
        run(broken)
    assert requests(logs)[0]["status"] == 200


def test_every_answer_is_safe_to_look_at(client: httpx.Client) -> None:
    """No browser guesses a type, and nothing is kept in caches."""
    for path in ("/healthz", "/v1/policies", "/nowhere", "/docs"):
        headers = client.get(path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cache-control"] == "no-store"
