"""Jobs over HTTP: submit, look, wait, cancel; and everything that may be wrong with a request."""

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import Any

import httpx
import pytest
import redis

from jobs.settings import Settings
from jobs.store import Store
from tests.dispatch import open_window, published

TRUE = {"command": ["true"]}


def submit(client: httpx.Client, body: dict[str, Any] | None = None) -> dict[str, Any]:
    """Submit a job; returns its JSON."""
    answer = client.post("/v1/jobs", json=body or TRUE)
    assert answer.status_code == 201, answer.text
    job: dict[str, Any] = answer.json()
    return job


def errors(answer: httpx.Response) -> dict[str, Any]:
    """The errors of a 422 by field."""
    assert answer.status_code == 422, answer.text
    return {error["field"]: error for error in answer.json()["errors"]}


def test_an_accepted_job_is_stored_and_published(
    client: httpx.Client, store: Store, redis_client: redis.Redis
) -> None:
    """201 names the job's address; the store has it and the queue one message for it."""
    answer = client.post("/v1/jobs", json=TRUE)
    assert answer.status_code == 201
    job = answer.json()
    assert answer.headers["location"] == f"/v1/jobs/{job['id']}"
    assert job["state"] == "queued"
    assert job["outcome"] is None
    assert store.get(job["id"]) is not None
    assert redis_client.llen("stockade:celery:default") == 1
    assert client.get(answer.headers["location"]).json() == job


def test_the_limits_in_force_are_told(client: httpx.Client) -> None:
    """What was asked, and the policy's defaults for the rest, in plain numbers."""
    job = submit(client, {"command": {"argv": ["true"], "limits": {"memory": "64MiB", "wall_time": "500ms"}}})
    limits = job["admission"]["steps"][0]["limits"]
    assert limits["memory"] == 64 * 2**20
    assert limits["wall_time"] == 0.5
    assert limits["pids"] == client.get("/v1/policies/default").json()["policy"]["defaults"]["pids"]


def test_what_is_stored_is_the_policys_decision(client: httpx.Client, store: Store) -> None:
    """The stored limits are those that admission decided, of the policy with the digest that is published."""
    job = submit(client)
    stored = store.get(job["id"])
    assert stored is not None
    assert stored.admission.policy_digest == client.get("/v1/policies/default").json()["digest"]


def test_an_accepted_job_is_in_the_queue_or_the_backlog(client: httpx.Client, store: Store) -> None:
    """With its 201 a job has its place: in the Celery queue where workers have room, else in the backlog."""
    first = submit(client)
    assert published(store.redis) == [(first["id"], 1)]
    open_window(store.redis, slots=0)
    second = submit(client)
    assert published(store.redis) == [(first["id"], 1)]
    job = store.get(second["id"])
    assert job is not None
    assert store.position(job) == 0


def test_submit_and_wait_gives_the_finished_job(client: httpx.Client, worker: Any, store: Store) -> None:
    """One request is enough: 201 with outcome, usage and output, as soon as the job has finished."""

    def work() -> None:
        while not (queued := store.redis.zrange("stockade:released:default", 0, -1)):
            time.sleep(0.005)
        worker.finish(queued[0].decode())  # type: ignore[union-attr]

    thread = threading.Thread(target=work)
    thread.start()
    begun = time.monotonic()
    answer = client.post("/v1/jobs?wait=20", json=TRUE)
    thread.join()
    assert time.monotonic() - begun < 3
    assert answer.status_code == 201
    job = answer.json()
    assert job["state"] == "finished"
    assert job["outcome"]["kind"] == "exited"
    assert job["steps"][0]["usage"]["memory"] == 1


def test_get_and_wait_gives_the_finished_job(client: httpx.Client, worker: Any) -> None:
    """A long poll is answered when the job ends, not when its time is up."""
    job = submit(client)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(client.get, f"/v1/jobs/{job['id']}?wait=20")
        time.sleep(0.1)
        worker.finish(job["id"])
        assert waiting.result(timeout=3).json()["state"] == "finished"


def test_waiting_ends_with_the_job_as_it_is(client: httpx.Client) -> None:
    """After `wait` seconds the answer comes all the same: 201 and 200 with the job's state."""
    assert client.post("/v1/jobs?wait=0.1", json=TRUE).json()["state"] == "queued"
    assert client.get(f"/v1/jobs/{submit(client)['id']}?wait=0.1").json()["state"] == "queued"


@pytest.mark.parametrize("wait", ["-1", "61", "nan", "inf", "soon", ""])
def test_a_wait_has_bounds(client: httpx.Client, wait: str) -> None:
    """0 to 60 seconds; anything else is 422 naming `wait`, and nothing is submitted."""
    assert "wait" in errors(client.post(f"/v1/jobs?wait={wait}", json=TRUE))


def test_a_queued_job_is_cancelled_at_once(client: httpx.Client) -> None:
    """The answer is the finished job with the outcome `cancelled`; asking again changes nothing."""
    job = submit(client)
    first = client.post(f"/v1/jobs/{job['id']}:cancel")
    assert first.status_code == 200
    assert first.json()["state"] == "finished"
    assert first.json()["outcome"]["kind"] == "cancelled"
    assert client.post(f"/v1/jobs/{job['id']}:cancel").json() == first.json()


def test_a_running_job_is_cancelled_soon(client: httpx.Client, worker: Any) -> None:
    """The job is `cancelling` until its worker has ended it."""
    job = submit(client)
    worker.claim(job["id"])
    assert client.post(f"/v1/jobs/{job['id']}:cancel").json()["state"] == "cancelling"


def test_a_job_tells_what_it_was_given(client: httpx.Client, store: Store, worker: Any) -> None:
    """Labels, pool, priority and deadline; its place while it waits; when it is deleted once it is finished."""
    open_window(store.redis, slots=0)
    body = TRUE | {"labels": {"a": "1"}, "priority": "low", "deadline": "2999-01-01T00:00:00Z"}
    low, normal = submit(client, body), submit(client)
    assert (low["labels"], low["pool"], low["priority"]) == ({"a": "1"}, "default", "low")
    assert (low["deadline"], low["expires_at"]) == ("2999-01-01T00:00:00Z", None)
    assert (normal["labels"], normal["deadline"], normal["priority"]) == ({}, None, "normal")
    assert (low["queue_position"], normal["queue_position"]) == (0, 0)
    assert client.get(f"/v1/jobs/{low['id']}").json()["queue_position"] == 1
    open_window(store.redis)
    worker.finish(low["id"])
    done = client.get(f"/v1/jobs/{low['id']}").json()
    stored = store.get(low["id"])
    assert stored is not None
    assert done["queue_position"] is None
    kept = datetime.fromisoformat(done["expires_at"]) - datetime.fromisoformat(done["finished_at"])
    assert kept.total_seconds() == stored.admission.retention
    assert submit(client)["queue_position"] is None


def test_a_finished_job_can_be_deleted(client: httpx.Client, worker: Any) -> None:
    """204 without a body; afterwards it does not exist in any way."""
    job = submit(client)
    worker.finish(job["id"], files={"a": b"1"})
    answer = client.delete(f"/v1/jobs/{job['id']}")
    assert (answer.status_code, answer.content) == (204, b"")
    for path in ("", "/steps/0/stdout", "/artifacts", "/artifacts/a", "/events"):
        assert client.get(f"/v1/jobs/{job['id']}{path}").status_code == 404
    assert client.delete(f"/v1/jobs/{job['id']}").status_code == 404
    assert client.get("/v1/jobs").json()["jobs"] == []


def test_a_job_that_has_not_finished_is_not_deleted(client: httpx.Client, worker: Any) -> None:
    """409 that says what to do first; waiting or running, the job goes on."""
    waiting, running = submit(client), submit(client)
    worker.claim(running["id"])
    for job in (waiting, running):
        answer = client.delete(f"/v1/jobs/{job['id']}")
        assert answer.status_code == 409
        assert answer.json()["type"] == "urn:stockade:problem:not-finished"
        assert "cancel it first" in answer.json()["detail"]
        assert client.get(f"/v1/jobs/{job['id']}").status_code == 200


def test_the_job_of_another_tenant_does_not_exist(
    client: httpx.Client, served: Any, other_key: str, worker: Any
) -> None:
    """Look, wait, cancel, delete, output and artifacts answer exactly as for a job that never was."""
    job = submit(client)
    worker.finish(job["id"], files={"a": b"secret"})
    paths = ["", "?wait=1", "/steps/0/stdout", "/steps/0/stderr", "/artifacts", "/artifacts/a"]
    with served.client(other_key) as other:
        for job_id in (job["id"], "job_000000000000000000000000"):
            answers = [other.get(f"/v1/jobs/{job_id}{path}") for path in paths]
            answers.append(other.post(f"/v1/jobs/{job_id}:cancel"))
            answers.append(other.delete(f"/v1/jobs/{job_id}"))
            assert {answer.status_code for answer in answers} == {404}
            assert len({answer.content for answer in answers}) == 1
    assert client.get(f"/v1/jobs/{job['id']}").json()["state"] == "finished"


@pytest.mark.parametrize(
    "job_id", ["x", "..", "a:b", "%00", "*", "a" * 1000, "%F0%9F%92%A9", "job_1%0A", "-"]
)
def test_what_is_no_job_id_is_404(client: httpx.Client, job_id: str) -> None:
    """Whatever stands in the place of an id, the answer is that there is no such job."""
    assert client.get(f"/v1/jobs/{job_id}").status_code == 404
    assert client.post(f"/v1/jobs/{job_id}:cancel").status_code == 404
    assert client.delete(f"/v1/jobs/{job_id}").status_code == 404


STEP = {"argv": ["true"]}
WRONG: list[tuple[str, Any, list[str]]] = [
    ("nothing asked", {}, [""]),
    ("not an object", [], [""]),
    ("both forms", {"command": ["true"], "steps": [STEP]}, [""]),
    ("no steps", {"steps": []}, ["steps"]),
    ("unknown field", {"command": ["true"], "privileged": True}, ["privileged"]),
    ("unknown field of a step", {"steps": [STEP | {"network": "host"}]}, ["steps[0].network"]),
    ("unknown limit", {"steps": [STEP | {"limits": {"gpu": 1}}]}, ["steps[0].limits.gpu"]),
    ("empty argv", {"steps": [{"argv": []}]}, ["steps[0].argv"]),
    ("no argv", {"steps": [{}]}, ["steps[0].argv"]),
    ("NUL in argv", {"steps": [{"argv": ["a", "b\0"]}]}, ["steps[0].argv[1]"]),
    ("number in a short command", {"command": ["a", 1]}, ["command[1]"]),
    ("empty short command", {"command": []}, ["command"]),
    ("number in argv", {"steps": [{"argv": ["a", 1]}]}, ["steps[0].argv[1]"]),
    ("NUL in env", {"steps": [STEP | {"env": {"A": "\0"}}]}, ["steps[0].env.A"]),
    ("text as limit", {"steps": [STEP | {"limits": {"memory": "1e9"}}]}, ["steps[0].limits.memory"]),
    ("true as limit", {"steps": [STEP | {"limits": {"pids": True}}]}, ["steps[0].limits.pids"]),
    ("negative limit", {"steps": [STEP | {"limits": {"memory": -1}}]}, ["steps[0].limits.memory"]),
    ("zero time", {"steps": [STEP | {"limits": {"wall_time": 0}}]}, ["steps[0].limits.wall_time"]),
    ("absolute file", {"command": ["a"], "files": [{"path": "/a", "text": ""}]}, ["files[0].path"]),
    ("file above", {"command": ["a"], "files": [{"path": "../a", "text": ""}]}, ["files[0].path"]),
    ("NUL in a file's name", {"command": ["a"], "files": [{"path": "a\0", "text": ""}]}, ["files[0].path"]),
    ("not base64", {"command": ["a"], "files": [{"path": "a", "base64": "?"}]}, ["files[0].base64"]),
    ("output above", {"command": ["a"], "outputs": ["../*"]}, ["outputs[0]"]),
    ("wrong image type", {"command": ["a"], "image": 5}, ["image"]),
    ("unknown image", {"command": ["a"], "image": "debian"}, ["image"]),
    ("unknown policy", {"command": ["a"], "policy": "root"}, ["policy"]),
    (
        "three over their ceilings",
        {"steps": [STEP, STEP | {"limits": {"memory": "1TiB", "pids": 100000, "cpu_time": "24h"}}]},
        ["steps[1].limits.cpu_time", "steps[1].limits.memory", "steps[1].limits.pids"],
    ),
    (
        "three wrong at once",
        {"steps": [{"argv": [1]}], "x": 1, "image": 1},
        ["image", "steps[0].argv[0]", "x"],
    ),
]


@pytest.mark.parametrize(("body", "fields"), [case[1:] for case in WRONG], ids=[case[0] for case in WRONG])
def test_what_is_wrong_is_422_with_every_field(
    client: httpx.Client, redis_client: redis.Redis, body: Any, fields: list[str]
) -> None:
    """Each field at fault is named as it was written, with got, allowed and a sentence; nothing is stored."""
    found = errors(client.post("/v1/jobs", json=body))
    assert set(fields) <= set(found)
    for error in found.values():
        assert set(error) == {"field", "got", "allowed", "message"}
        assert error["message"]
    assert redis_client.zcard("stockade:due") == 0


def test_two_files_that_cannot_both_be_are_refused(client: httpx.Client) -> None:
    """A path that stands twice, and a file where another needs a directory."""
    for paths in (["a", "a"], ["a/b", "a"]):
        files = [{"path": path, "text": ""} for path in paths]
        assert client.post("/v1/jobs", json={"command": ["a"], "files": files}).status_code == 422


@pytest.mark.parametrize("literal", ["NaN", "Infinity", "-Infinity", "1e999", "-1e999", "1" * 400])
def test_numbers_that_are_none_are_refused(client: httpx.Client, literal: str) -> None:
    """NaN and infinities in any spelling are 422 naming the limit."""
    body = f'{{"steps": [{{"argv": ["true"], "limits": {{"wall_time": {literal}}}}}]}}'
    answer = client.post("/v1/jobs", content=body, headers={"Content-Type": "application/json"})
    assert "steps[0].limits.wall_time" in errors(answer)


@pytest.mark.parametrize("where", ["value", "key"])
def test_text_that_is_no_unicode_is_refused(client: httpx.Client, where: str) -> None:
    """A lone surrogate is 422 with a body that every client can read."""
    pair = '"image": "\\ud800"' if where == "value" else '"\\ud800": 1'
    answer = client.post(
        "/v1/jobs", content=f'{{"command": ["a"], {pair}}}', headers={"Content-Type": "application/json"}
    )
    assert answer.status_code == 422
    json.loads(answer.content.decode())


def test_a_million_files_are_refused_quickly(client: httpx.Client) -> None:
    """A list that is far too long costs a moment, not the service; and the answer is short."""
    for count in (1_000_000, 40_000):
        begun = time.monotonic()
        answer = client.post("/v1/jobs", json={"command": ["a"], "files": [{}] * count})
        assert answer.status_code == 422
        assert len(answer.content) < 100_000
        assert time.monotonic() - begun < 10


def test_secrets_and_long_values_are_not_echoed_whole(client: httpx.Client) -> None:
    """A wrong value is shown back cut to a few hundred characters."""
    answer = client.post("/v1/jobs", json={"command": ["a"], "image": "x" * 100_000})
    assert len(answer.content) < 2000


def test_without_redis_nothing_is_accepted(own_redis: Any, serving: Any) -> None:
    """503 that names Redis, on every route that needs it; once it is back, so is the service."""
    served = serving(Settings(redis=own_redis.url))
    own_redis.stop()
    with served.client("sk_0011223344556677_" + "a" * 43) as client:
        for answer in (client.post("/v1/jobs", json=TRUE), client.get("/v1/jobs/job_1")):
            assert answer.status_code == 503
            assert answer.headers["content-type"] == "application/problem+json"
            assert answer.json()["component"] == "redis"
            assert answer.headers["retry-after"]
        own_redis.start()
        assert client.get("/v1/jobs/job_1").status_code == 401
