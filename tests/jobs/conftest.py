"""Fixtures of the tests of jobs: a store on an empty server, and a job that it accepts."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from redis import Redis

from jobs.job import Job
from jobs.settings import Settings
from jobs.spec import JobSpec
from jobs.store import Store, connect
from policies.admission import admit
from policies.loader import load_policies
from tests.dispatch import make_project, open_window

TENANT = "tenant_a"

Submit = Callable[..., Job]


@pytest.fixture
def redis(redis_url: str) -> Iterator[Redis]:
    """A client of an empty server."""
    with connect(Settings(redis=redis_url)) as client:
        yield client


@pytest.fixture
def store(redis: Redis) -> Store:
    """A store whose leases last a second, and room for all its jobs in the queue."""
    open_window(redis)
    return Store(redis, lease=1.0)


@pytest.fixture
def submit(store: Store) -> Submit:
    """Puts a job into the store, as the API does."""

    def put(tenant: str = TENANT, **body: Any) -> Job:
        spec = JobSpec.model_validate_json(json.dumps(body or {"command": ["true"]}))
        project = make_project(store.redis, tenant)
        return store.create(spec, admit(spec, load_policies()[spec.policy]), project).job

    return put
