"""Jobs in imported images through the whole service."""

from pathlib import Path

import pytest

from tests.e2e.service import Service
from tests.images import archive, bring_in, entry, oci, root
from tests.stack import until
from worker.images import collect, reference
from worker.images.store import Store

pytestmark = [pytest.mark.kernel, pytest.mark.e2e, pytest.mark.once]


def listed(service: Service) -> dict[str, str]:
    """The digests of the images that jobs may name."""
    images = service.client.get("/v1/images").raise_for_status().json()["images"]
    return {each["name"]: each["digest"] for each in images}


def test_a_job_runs_in_an_image_that_came_while_the_service_ran(service: Service, tmp_path: Path) -> None:
    """By name; the result tells the digest. Under a policy that does not name it, it is refused."""
    store, name = Store(service.up.state / "images"), reference.parse("tools:1")
    record = bring_in(store, oci(tmp_path / "image", root(), archive(entry("hello", data=b"hello"))))
    store.tag(name, record.digest)
    try:
        until(lambda: "tools:1" in listed(service), "the image is offered")
        job = service.run({"image": "tools:1", "policy": "images", "command": ["cat", "/hello"]})
        [step] = job["steps"]
        assert (step["stdout"]["text"], step["isolation"]["image"]) == ("hello", record.digest)
        assert job["admission"]["image_digest"] == listed(service)["tools:1"] == record.digest
        refused = service.client.post("/v1/jobs", json={"image": "tools:1", "command": ["true"]})
        assert refused.status_code == 422, refused.text
        assert "image" in refused.text
        asked = {"image": "tools:2", "policy": "images", "command": ["true"]}
        [error] = service.client.post("/v1/jobs", json=asked).json()["errors"]
        assert error["allowed"] == ["tools:1"]
    finally:
        collect.remove(store, name)
