"""Policies in force over HTTP: explained, narrowed by the scopes, read again, watched by drafts."""

import os
import queue
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from jobs import shadow
from jobs.job import Tenant
from jobs.keys import Scope, create_key
from jobs.settings import Settings
from jobs.workers import HostFacts, Workers
from policies.loader import load_policies
from tests.dispatch import worker_status

TRUE = {"command": ["true"]}
MUCH = {"steps": [{"argv": ["a"], "limits": {"memory": "3GiB", "pids": 4}}], "pool": "big"}


def eventually(condition: Callable[[], Any]) -> Any:
    """What `condition` returns once it is true."""
    deadline = time.monotonic() + 20
    while not (found := condition()):
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.02)
    return found


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "mine.yaml").write_text("name: mine\nextends: default\ndefaults: {pids: 8}\n")
    (tmp_path / "platform.yaml").write_text("ceilings: {memory: 1GiB}\npolicies: [mine, default]\n")
    return tmp_path


@pytest.fixture
def own(serving: Any, redis_url: str, directory: Path, key: str) -> Any:
    """An application with policies of its own, and a client of it."""
    served = serving(Settings(redis=redis_url, policies=directory))
    with served.client(key) as client:
        client.services = served.services
        yield client


def bound(redis_client: Redis, tenant: Tenant, bounds: str) -> None:
    """Give the tenant bounds."""
    redis_client.hset(f"stockade:tenant:{tenant.id}", "bounds", bounds)


def test_a_job_is_explained_and_not_stored(client: httpx.Client, redis_client: Redis) -> None:
    """Admitted or not, with every value and where it comes from; no job comes of it."""
    found = client.post("/v1/jobs:explain", json=TRUE).json()
    assert found["admitted"]
    assert found["policy_digest"] == load_policies()["default"].digest
    [step] = found["steps"]
    memory = next(each for each in step["limits"] if each["field"] == "memory")
    assert memory == {
        "field": "memory",
        "value": 256 << 20,
        "scope": "policy default",
        "rule": "set",
        "ceiling": 2 << 30,
        "ceiling_scope": "policy default",
        "ceiling_rule": "set",
    }
    assert redis_client.keys("stockade:job:*") == []


def test_the_explanation_of_a_refusal_has_what_the_refusal_has(client: httpx.Client) -> None:
    """The same violations that handing it in would give, whatever is wrong."""
    for body in (MUCH, {**TRUE, "policy": "nothing"}, {**TRUE, "image": "py", "priority": "high"}):
        answer = client.post("/v1/jobs", json=body)
        explained = client.post("/v1/jobs:explain", json=body).json()
        assert (answer.status_code, explained["admitted"]) == (422, False)
        assert explained["violations"] == answer.json()["errors"] != []


def test_a_key_that_may_read_or_submit_may_ask(
    client: httpx.Client, redis_client: Redis, tenant: Tenant
) -> None:
    """Explaining hands nothing in and reads no job: either scope will do, admin alone will not."""
    answers = {}
    for scope in Scope:
        key = create_key(redis_client, tenant, scopes=[scope])
        header = {"Authorization": f"Bearer {key}"}
        answers[scope] = client.post("/v1/jobs:explain", json=TRUE, headers=header).status_code
    assert answers == {Scope.SUBMIT: 200, Scope.READ: 200, Scope.ADMIN: 403}


def test_a_project_sees_and_gets_its_own_effective_policies(
    own: Any, redis_client: Redis, tenant: Tenant
) -> None:
    """Platform and tenant narrow what is listed, explained and admitted, under one digest; workers find it."""
    bound(redis_client, tenant, '{"ceilings":{"pids":4},"policies":["mine"]}')
    [listed] = own.get("/v1/policies").json()["policies"]
    assert (listed["policy"]["name"], listed["policy"]["ceilings"]["memory"]) == ("mine", 1 << 30)
    assert listed["policy"]["defaults"]["pids"] == 4
    assert own.get("/v1/policies/mine").json() == listed
    assert own.get("/v1/policies/default").status_code == 404
    job = own.post("/v1/jobs", json={**TRUE, "policy": "mine"}).json()
    explained = own.post("/v1/jobs:explain", json={**TRUE, "policy": "mine"}).json()
    assert job["admission"]["policy_digest"] == explained["policy_digest"] == listed["digest"]
    assert job["admission"]["steps"][0]["limits"]["pids"] == 4
    assert redis_client.exists(f"stockade:policy:{listed['digest']}")
    by = {each["field"]: each["scope"] for each in explained["steps"][0]["limits"]}
    assert by["pids"] == f"project {tenant.name}"
    [error] = own.post("/v1/jobs", json=TRUE).json()["errors"]
    assert (error["field"], error["allowed"]) == ("policy", ["mine"])


def test_scopes_that_leave_nothing_are_told(own: Any, redis_client: Redis, tenant: Tenant) -> None:
    """Where a tenant's bounds leave a policy no image, a job is refused with the scope that did it."""
    bound(redis_client, tenant, '{"images":["py:*"]}')
    [error] = own.post("/v1/jobs", json=TRUE).json()["errors"]
    assert error["field"] == "policy"
    assert f"project {tenant.name}: images" in error["message"]
    assert own.get("/v1/policies").json()["policies"] == []


def test_a_floor_that_no_live_worker_has_is_refused_at_once(
    own: Any, directory: Path, redis_client: Redis
) -> None:
    """A job waits for a worker that may come, but not for one that cannot run it."""
    (directory / "modern.yaml").write_text("name: modern\nextends: default\nisolation: {cgroup: v2}\n")
    (directory / "platform.yaml").write_text("policies: ['*']\n")
    own.services.policies.source.refresh()
    body = {**TRUE, "policy": "modern"}
    assert own.post("/v1/jobs", json=body).status_code == 201
    old = worker_status("w1").model_copy(update={"host": HostFacts(cgroup="v1", kernel="6.1")})
    Workers(redis_client).heartbeat(old)
    own.services.hosts.forget()
    [error] = own.post("/v1/jobs", json=body).json()["errors"]
    assert (error["field"], error["got"], error["allowed"]) == ("isolation.cgroup", "v1", "v2")


def test_a_changed_document_is_in_force_without_a_restart(
    own: Any, directory: Path, redis_client: Redis
) -> None:
    """Within moments jobs are admitted under the new one; larger bodies are taken when it allows more files."""
    before = own.get("/v1/policies/mine").json()["digest"]
    (directory / "new").write_text("name: mine\nextends: default\ndefaults: {pids: 9}\nfiles_bytes: 40MiB\n")
    os.replace(directory / "new", directory / "mine.yaml")
    eventually(lambda: own.get("/v1/policies/mine").json()["digest"] != before)
    job = own.post("/v1/jobs", json={**TRUE, "policy": "mine"}).json()
    assert job["admission"]["steps"][0]["limits"]["pids"] == 9
    eventually(lambda: own.services.bodies._max_body > 40 << 20)
    eventually(lambda: redis_client.xlen("stockade:audit:platform") == 1)
    [(_, entry)] = redis_client.xrange("stockade:audit:platform")
    assert entry[b"action"] == b"policy.reloaded"
    assert own.get("/v1/policies/mine").json()["digest"] != before


def test_a_broken_document_is_told_by_readyz_and_nothing_stops(
    own: Any, directory: Path, redis_client: Redis
) -> None:
    """The old policies stay in force, the service stays ready, and says without names that something is wrong."""
    Workers(redis_client).heartbeat(worker_status("w1"))
    assert own.get("/readyz").json()["policies"]["ready"]
    (directory / "mine.yaml").write_text("name: mine\nextends: default\nuser: x\n")
    own.services.policies.source.refresh()
    answer = own.get("/readyz")
    assert answer.status_code == 200
    assert not answer.json()["policies"]["ready"]
    assert "broken" in answer.json()["policies"]["message"]
    assert "mine" not in answer.json()["policies"]["message"]
    assert own.post("/v1/jobs", json={**TRUE, "policy": "mine"}).status_code == 201


def test_a_draft_is_evaluated_beside_and_enforces_nothing(
    own: Any, directory: Path, redis_client: Redis, tenant: Tenant
) -> None:
    """Every submission under the policy counts, also a refused one; jobs are admitted as if there were no draft."""
    (directory / "drafts").mkdir()
    (directory / "drafts" / "mine.yaml").write_text(
        "name: mine\nextends: mine\npools: [small]\nsteps_max: 1\n"
    )
    own.services.policies.source.refresh()
    two = {"policy": "mine", "steps": [{"argv": ["a"]}] * 2}
    job = own.post("/v1/jobs", json=two)
    assert job.status_code == 201
    assert own.post("/v1/jobs", json={**TRUE, "policy": "mine", "pool": "small"}).status_code == 422
    assert own.post("/v1/jobs", json=TRUE).status_code == 201

    def counted() -> shadow.Report | None:
        found = shadow.report(redis_client, "mine")
        return found if found is not None and found.evaluated == 2 else None

    found = eventually(counted)
    assert (found.refused, found.newly_refused, found.newly_admitted) == (1, 1, 1)
    assert found.rules == {"steps": 1}
    [refusal] = found.refusals
    assert (refusal.job, refusal.tenant) == (job.json()["id"], tenant.id)


def test_a_draft_never_fails_a_submission(own: Any, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever goes wrong with the draft's evaluation, and however far it is behind, jobs are accepted."""
    (directory / "drafts").mkdir()
    (directory / "drafts" / "mine.yaml").write_text("name: mine\nextends: mine\nsteps_max: 1\n")
    own.services.policies.source.refresh()

    def fail(*_: object) -> None:
        raise RedisConnectionError("gone")

    monkeypatch.setattr(shadow, "record", fail)
    for _ in range(3):
        assert own.post("/v1/jobs", json={**TRUE, "policy": "mine"}).status_code == 201
    monkeypatch.setattr(own.services.shadow, "_waiting", queue.Queue(1))
    for _ in range(3):
        assert own.post("/v1/jobs", json={**TRUE, "policy": "mine"}).status_code == 201
