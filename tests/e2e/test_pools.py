"""Pools: a job runs where its policy, or it itself, says that it may."""

from datetime import UTC, datetime, timedelta

import pytest

from tests.e2e.service import Service

pytestmark = [pytest.mark.kernel, pytest.mark.e2e]


def test_a_job_of_a_pool_runs_on_a_worker_that_serves_it(service: Service) -> None:
    """The worker of these tests serves two pools; jobs of both run, each through a Celery queue of its own."""
    job = service.run({"command": ["true"], "policy": "pooled", "pool": "bigmem"})
    assert job["admission"]["pool"] == "bigmem"
    assert job["outcome"]["kind"] == "exited"
    assert service.run({"command": ["true"], "policy": "pooled"})["admission"]["pool"] == "default"


def test_a_job_of_a_pool_that_nobody_serves_waits_no_longer_than_it_may(service: Service) -> None:
    """It stays queued, counts as such, and ends by itself."""
    body = {"command": ["true"], "policy": "pooled", "pool": "nobody", "max_queue_time": "1s"}
    job = service.submit(body)
    assert service.state(job["id"]) == "queued"
    ended = service.finished(job["id"])
    assert ended["outcome"]["kind"] == "queue_time_exceeded"
    assert ended["steps"] == []


def test_a_deadline_ends_a_job_wherever_it_is(service: Service) -> None:
    """A running job is stopped at its deadline, and says so."""
    deadline = (datetime.now(UTC) + timedelta(seconds=2)).isoformat()
    job = service.run({"command": ["sleep", "60"], "deadline": deadline, "policy": "pooled"})
    assert job["outcome"]["kind"] == "deadline_exceeded"
    assert job["steps"][0]["outcome"]["kind"] == "deadline_exceeded"
    assert job["steps"][0]["usage"]["wall_time"] < 20
