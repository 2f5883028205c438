"""Images by HTTP: what there is comes from the workers' heartbeats, what may be used from the policies."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from redis import Redis

from api.hosts import Hosts
from jobs import tenants
from jobs.job import Tenant
from jobs.settings import Settings
from jobs.workers import HostFacts, Workers
from tests.dispatch import worker_status

A, B, C = (f"sha256:{letter * 64}" for letter in "abc")
HAS = {"host": "host", "acme/grader:1": A, "other/secret:1": B, "shared:latest": C}
TEAMS = 'name: teams\nextends: default\nimages: ["acme/*", "other/*", shared, host]\n'


@pytest.fixture
def served(settings: Settings, tmp_path: Path, serving: Callable[[Settings], Any]) -> Any:
    """An application with a policy under which several tenants have images."""
    (tmp_path / "teams.yaml").write_text(TEAMS)
    return serving(settings.model_copy(update={"policies": tmp_path}))


@pytest.fixture
def acme(served: Any, redis_client: Redis, tenant: Tenant) -> None:
    """The first tenant may use its own images and the shared ones; a worker has all."""
    tenants.set_tenant(redis_client, tenant, bounds='{"images": ["acme/*", "shared", "host"]}')
    beat(served, redis_client, "w1", HAS)


def beat(served: Any, redis: Redis, name: str, images: dict[str, str], **changes: Any) -> None:
    """A worker's heartbeat, heard at once."""
    host = HostFacts(cgroup="v2", kernel="6.1", images=images)
    Workers(redis).heartbeat(worker_status(name).model_copy(update={"host": host, **changes}))
    served.services.hosts.forget()


def job(client: httpx.Client, image: str, policy: str = "teams") -> Any:
    """The answer to a job in an image."""
    return client.post("/v1/jobs", json={"image": image, "policy": policy, "command": ["true"]}).json()


@pytest.mark.usefixtures("acme")
def test_admission_resolves_to_a_digest(client: httpx.Client, served: Any, redis_client: Redis) -> None:
    """214: the job keeps the digest of its admission, when the tag has moved; a later job has the new one."""
    first = job(client, "acme/grader:1")
    assert (first["admission"]["image"], first["admission"]["image_digest"]) == ("acme/grader:1", A)
    beat(served, redis_client, "w1", HAS | {"acme/grader:1": C})
    assert client.get(f"/v1/jobs/{first['id']}").json()["admission"] == first["admission"]
    assert job(client, "acme/grader:1")["admission"]["image_digest"] == C
    assert job(client, f"acme/grader:1@{A}")["errors"][0]["field"] == "image"
    assert job(client, "host")["admission"]["image_digest"] is None


@pytest.mark.usefixtures("acme")
def test_another_tenant_s_image_is_refused_though_it_is_there(client: httpx.Client) -> None:
    """155: neither by name nor by digest; the refusal is that of an image that does not exist."""
    [refused] = job(client, "other/secret:1")["errors"]
    [nothing] = job(client, "other/nothing:1")["errors"]
    assert refused.pop("got") != nothing.pop("got")
    assert refused == nothing
    assert B not in str(refused)
    for image in (B, f"other/secret@{B}", f"acme/grader@{B}", f"acme/grader:1@{B}", f"shared@{B}"):
        answer = job(client, image)
        assert (answer["type"].rpartition(":")[2], answer["errors"][0]["field"]) == ("not-admitted", "image")


@pytest.mark.usefixtures("acme")
def test_the_list_has_what_the_caller_may_use(
    client: httpx.Client, served: Any, other_key: str, redis_client: Redis
) -> None:
    """Each tenant sees its own and what is shared, with the policies and pools; not what only some workers have."""
    mine = {each["name"]: each for each in client.get("/v1/images").json()["images"]}
    assert {name: each["digest"] for name, each in mine.items()} == {
        "acme/grader:1": A,
        "host": None,
        "shared": C,
    }
    assert mine["shared"]["uses"] == [{"policy": "teams", "pools": ["default"]}]
    assert {use["policy"] for use in mine["host"]["uses"]} == {"default", "judge", "strict", "teams"}
    for image in mine:
        assert job(client, image)["state"] == "queued", image
    with served.client(other_key) as other:
        names = [each["name"] for each in other.get("/v1/images").json()["images"]]
        assert names == ["acme/grader:1", "host", "other/secret:1", "shared"]
    beat(served, redis_client, "w2", {"host": "host", "shared:latest": C})
    assert [each["name"] for each in client.get("/v1/images").json()["images"]] == ["host", "shared"]


@pytest.mark.usefixtures("acme")
def test_an_image_that_is_not_there_is_refused_with_what_there_is(
    client: httpx.Client, served: Any, redis_client: Redis
) -> None:
    """Explain says the same; a worker without a launcher has no say."""
    body = {"image": "acme/grader:2", "policy": "teams", "command": ["true"]}
    answer = client.post("/v1/jobs", json=body)
    [error] = answer.json()["errors"]
    assert (answer.status_code, error["allowed"]) == (422, ["acme/grader:1", "shared", "host"])
    assert client.post("/v1/jobs:explain", json=body).json()["violations"] == [error]
    beat(served, redis_client, "w2", {}, launcher="It is away.")
    beat(served, redis_client, "w3", {}, pools=("other",))
    assert job(client, "acme/grader:1")["state"] == "queued"
    beat(served, redis_client, "w4", {"acme/grader:1": B})
    assert "not every worker" in job(client, "acme/grader:1")["errors"][0]["message"]


def test_without_a_worker_no_image_is_known(client: httpx.Client) -> None:
    """It is said so; `host` needs none."""
    assert "no worker" in job(client, "acme/grader:1")["errors"][0]["message"]
    assert job(client, "host")["state"] == "queued"


def test_workers_are_believed_for_a_moment() -> None:
    """Redis is not asked for each job."""
    asked = []

    def live() -> list[Any]:
        asked.append(1)
        host = HostFacts(images={"app:1": A})
        return [worker_status("w").model_copy(update={"host": host})]

    hosts = Hosts(live)
    assert [hosts.images("default").digest_of("app:1") for _ in range(3)] == [A] * 3
    assert hosts.images("default") is hosts.images("default")
    assert hosts.of("other") == []
    assert len(asked) == 1
