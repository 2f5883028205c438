"""Handing in over HTTP: idempotency keys, budgets, and what the caller is told about both."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
import redis
from redis.exceptions import RedisError

from api import submission
from jobs import audit, keys, tenants
from jobs.job import Tenant
from jobs.keys import Scope
from jobs.settings import Settings
from jobs.spec import JobSpec
from jobs.store import Idempotency, Store, connect
from policies.admission import admit
from policies.loader import load_policies
from tests.dispatch import make_project

TRUE = {"command": ["true"]}
KEY = {"Idempotency-Key": "hand-in 17"}


def problem(answer: httpx.Response, status: int) -> dict[str, Any]:
    """A problem that must have this status."""
    assert answer.status_code == status, answer.text
    found: dict[str, Any] = answer.json()
    return found


def test_the_same_key_and_body_is_the_same_job(client: httpx.Client, worker: Any) -> None:
    """201, then 200 with the job as it is, its address, and a header that says so; nothing is made twice."""
    first = client.post("/v1/jobs", json=TRUE, headers=KEY)
    assert first.status_code == 201
    assert "idempotent-replayed" not in first.headers
    again = client.post("/v1/jobs", json=TRUE, headers=KEY)
    assert (again.status_code, again.headers["idempotent-replayed"]) == (200, "true")
    assert (again.json(), again.headers["location"]) == (first.json(), first.headers["location"])
    worker.finish(first.json()["id"])
    assert client.post("/v1/jobs?wait=5", json=TRUE, headers=KEY).json()["state"] == "finished"
    assert len(client.get("/v1/jobs").json()["jobs"]) == 1


def test_the_same_body_may_be_written_otherwise(client: httpx.Client) -> None:
    """Bodies are compared as documents: the order of keys, spaces and escapes do not matter."""
    bodies = ('{"command":["tru\\u0065"],"image":"host"}', '{ "image": "host",\n "command": ["true"] }')
    headers = KEY | {"Content-Type": "application/json"}
    answers = [client.post("/v1/jobs", content=body, headers=headers) for body in bodies]
    assert [answer.status_code for answer in answers] == [201, 200]


def test_another_body_is_refused(client: httpx.Client) -> None:
    """422 of its own kind that names the header; the key goes on meaning the first job."""
    client.post("/v1/jobs", json=TRUE, headers=KEY)
    found = problem(client.post("/v1/jobs", json={"command": ["false"]}, headers=KEY), 422)
    assert found["type"] == "urn:stockade:problem:idempotency-mismatch"
    assert [error["field"] for error in found["errors"]] == ["Idempotency-Key"]
    assert client.post("/v1/jobs", json=TRUE, headers=KEY).status_code == 200


def test_what_was_refused_does_not_use_up_the_key(client: httpx.Client) -> None:
    """After a 422 the corrected body may come with the same key."""
    assert client.post("/v1/jobs", json={"command": []}, headers=KEY).status_code == 422
    assert (
        client.post("/v1/jobs", json={"command": ["a"], "policy": "nothing"}, headers=KEY).status_code == 422
    )
    assert client.post("/v1/jobs", json=TRUE, headers=KEY).status_code == 201


def test_a_repetition_asks_no_policy(client: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """The job is there: a policy that has changed meanwhile does not hide it."""
    client.post("/v1/jobs", json=TRUE, headers=KEY)
    monkeypatch.setattr(submission, "admitted", lambda *_: pytest.fail("the policy was asked"))
    assert client.post("/v1/jobs", json=TRUE, headers=KEY).status_code == 200


def test_another_project_has_keys_of_its_own(client: httpx.Client, served: Any, other_key: str) -> None:
    """The same key of another project makes another job, and tells nothing of the first."""
    first = client.post("/v1/jobs", json=TRUE, headers=KEY)
    with served.client(other_key) as other:
        answer = other.post("/v1/jobs", json={"command": ["false"]}, headers=KEY)
    assert answer.status_code == 201
    assert answer.json()["id"] != first.json()["id"]


def test_twenty_at_once_are_one_job(client: httpx.Client) -> None:
    """Of twenty requests with one key, one gets 201 and nineteen get 200, all of them the same job."""
    barrier = threading.Barrier(20)

    def call(_: int) -> httpx.Response:
        barrier.wait(30)
        return client.post("/v1/jobs", json=TRUE, headers=KEY)

    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(call, range(20)))
    assert sorted(answer.status_code for answer in answers) == [*[200] * 19, 201]
    assert len({answer.json()["id"] for answer in answers}) == 1


@pytest.mark.parametrize("text", ["", "x" * 256, "a\tb", "\u00fc"])
def test_a_key_has_bounds(client: httpx.Client, text: str) -> None:
    """1 to 255 printable ASCII characters; anything else is 422 that names the header, and makes no job."""
    headers = {"Idempotency-Key": text.encode("latin-1")}
    found = problem(client.post("/v1/jobs", json=TRUE, headers=headers), 422)  # type: ignore[arg-type]
    assert [error["field"] for error in found["errors"]] == ["Idempotency-Key"]
    assert client.get("/v1/jobs").json()["jobs"] == []
    longest = {"Idempotency-Key": "~" * 255}
    assert client.post("/v1/jobs", json=TRUE, headers=longest).status_code == 201


def test_every_key_is_one_job_across_a_crash(own_redis: Any) -> None:
    """Redis is killed while jobs are handed in: whoever tries again gets the job that is there, or the first one."""
    spec = JobSpec.model_validate(TRUE)
    admission = admit(spec, load_policies()["default"])

    def hand_in(store: Store, key: str) -> str:
        idempotency = Idempotency(key, b"{}")
        return store.create(spec, admission, "tenant_a", idempotency=idempotency).job.id

    told: dict[str, str] = {}
    tried: set[str] = set()

    def go_on(worker: int) -> None:
        with connect(Settings(redis=own_redis.url)) as client:
            try:
                for number in range(100_000):
                    tried.add(key := f"{worker}/{number}")
                    told[key] = hand_in(Store(client), key)
            except RedisError:
                pass

    with connect(Settings(redis=own_redis.url)) as client:
        make_project(client, "tenant_a")
        threads = [threading.Thread(target=go_on, args=(worker,)) for worker in range(3)]
        for thread in threads:
            thread.start()
        while len(told) < 200:
            threads[0].join(0.005)
        own_redis.stop()
        for thread in threads:
            thread.join()
        own_redis.start()
        stored = {key.decode().removeprefix("stockade:job:") for key in client.scan_iter("stockade:job:*")}
        records = [client.hget(key, "job").decode() for key in client.scan_iter("stockade:idempotency:*")]  # type: ignore[union-attr]
        assert sorted(records) == sorted(stored)
        assert set(told.values()) <= stored
        again = {key: hand_in(Store(client), key) for key in tried}
        assert told.items() <= again.items()
        assert client.zcard("stockade:jobs:tenant_a") == len(set(again.values())) == len(tried)


@pytest.fixture
def limit(redis_client: redis.Redis, tenant: Tenant) -> Callable[..., None]:
    """Sets budgets of the project, or of its organisation."""

    def set_budgets(organisation: bool = False, **budgets: float) -> None:
        found = tenants.get_tenant(redis_client, str(tenant.parent)) if organisation else tenant
        assert found is not None
        tenants.set_tenant(redis_client, found, budgets=budgets)

    return set_budgets


RATE = ("ratelimit-limit", "ratelimit-remaining", "ratelimit-reset")


def test_a_submit_rate_is_told_with_every_answer(client: httpx.Client, limit: Callable[..., None]) -> None:
    """Limit, what is left and seconds until all is back: with 201, 200 and 429 alike, whichever budget it is."""
    assert not any(name in client.post("/v1/jobs", json=TRUE).headers for name in RATE)
    limit(submits_per_minute=2)
    first = client.post("/v1/jobs", json=TRUE, headers=KEY)
    again = client.post("/v1/jobs", json=TRUE, headers=KEY)
    client.post("/v1/jobs", json=TRUE)
    over = client.post("/v1/jobs", json=TRUE)
    assert [answer.status_code for answer in (first, again, over)] == [201, 200, 429]
    left = [[answer.headers[name] for name in RATE[:2]] for answer in (first, again, over)]
    assert left == [["2", "1"], ["2", "1"], ["2", "0"]]
    assert 25 <= int(first.headers["ratelimit-reset"]) <= 30
    assert 50 <= int(over.headers["ratelimit-reset"]) <= 60
    assert 1 <= int(over.headers["retry-after"]) <= 30
    limit(submits_per_minute=100, queued_jobs=0)
    assert client.post("/v1/jobs", json=TRUE).headers["ratelimit-limit"] == "100"


@pytest.mark.parametrize(
    ("organisation", "owner"), [(False, "project first/default"), (True, "organisation first")]
)
def test_a_budget_that_is_used_up_is_429(
    client: httpx.Client,
    limit: Callable[..., None],
    redis_client: redis.Redis,
    tenant: Tenant,
    organisation: bool,
    owner: str,
) -> None:
    """It names the budget, whose it is, the limit and the use, and when to come back; the audit log has it."""
    limit(organisation, queued_jobs=0)
    answer = client.post("/v1/jobs", json=TRUE)
    found = problem(answer, 429)
    assert found["type"] == "urn:stockade:problem:over-budget"
    assert "queued_jobs" in found["detail"]
    assert owner in found["detail"]
    [error] = found["errors"]
    assert (error["field"], error["got"], error["allowed"]) == ("budgets.queued_jobs", 0, 0)
    assert int(answer.headers["retry-after"]) >= 1
    entry = audit.page(redis_client, tenant.id, limit=1).entries[0]
    assert (entry.action, entry.about["rules"]) == ("job.refused", ["budgets.queued_jobs"])
    assert client.get("/v1/jobs").json()["jobs"] == []


@pytest.mark.parametrize(("of_organisation", "of_project", "told"), [(2, 50, "2"), (50, 3, "3")])
def test_of_two_submit_rates_the_tighter_is_told(
    client: httpx.Client, limit: Callable[..., None], of_organisation: int, of_project: int, told: str
) -> None:
    """That of which less is left, be it the project's or the organisation's."""
    limit(organisation=True, submits_per_minute=of_organisation)
    limit(submits_per_minute=of_project)
    assert client.post("/v1/jobs", json=TRUE).headers["ratelimit-limit"] == told


def test_who_handed_in_and_deleted_is_in_the_audit_log(
    client: httpx.Client, redis_client: redis.Redis, tenant: Tenant, worker: Any, key: str
) -> None:
    """The key's id, not `service`."""
    job_id = client.post("/v1/jobs", json=TRUE).json()["id"]
    worker.finish(job_id)
    assert client.delete(f"/v1/jobs/{job_id}").status_code == 204
    entries = audit.page(redis_client, tenant.id, limit=2).entries
    assert [entry.action for entry in entries] == ["job.deleted", "job.admitted"]
    assert {entry.actor for entry in entries} == {audit.key_actor(keys.key_id_of(key))}


def test_a_removed_project_gets_no_job(
    client: httpx.Client, redis_client: redis.Redis, tenant: Tenant
) -> None:
    """401, although the key is believed for some seconds more."""
    assert client.get("/v1/jobs").status_code == 200
    tenants.remove_tenant(redis_client, tenant, force=True)
    found = problem(client.post("/v1/jobs", json=TRUE), 401)
    assert found["type"] == "urn:stockade:problem:unauthenticated"
    assert client.get("/v1/jobs").json()["jobs"] == []


def test_a_key_that_may_not_read_is_told_no_output(
    served: Any, redis_client: redis.Redis, tenant: Tenant, client: httpx.Client, worker: Any
) -> None:
    """Cancelling or handing in again tells how a job went, and neither what it wrote nor what it left."""
    job_id = client.post("/v1/jobs", json=TRUE, headers=KEY).json()["id"]
    worker.finish(job_id, files={"a": b"1"})
    with served.client(keys.create_key(redis_client, tenant, scopes=[Scope.SUBMIT])) as submitter:
        answers = [
            submitter.post(f"/v1/jobs/{job_id}:cancel").json(),
            submitter.post("/v1/jobs", json=TRUE, headers=KEY).json(),
        ]
    whole = client.post(f"/v1/jobs/{job_id}:cancel").json()
    assert len(whole["steps"]) == len(whole["artifacts"]) == 1
    for answer in answers:
        assert answer == whole | {"steps": [], "artifacts": [], "artifact_errors": []}
