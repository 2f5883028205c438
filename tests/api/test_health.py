"""Health: alive and ready are two questions."""

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx

from api.services import REDIS_TIMEOUT
from jobs.settings import Settings
from jobs.store import Store
from jobs.workers import Workers
from tests.dispatch import worker_status


def test_alive_needs_no_key(stranger: httpx.Client) -> None:
    """/healthz is for load balancers."""
    assert stranger.get("/healthz").json() == {"status": "ok"}


def test_ready_needs_a_worker_and_its_launcher(stranger: httpx.Client, store: Store) -> None:
    """503 until a worker is heard of that reaches its launcher; each part is told apart."""

    def parts() -> tuple[int, dict[str, bool]]:
        answer = stranger.get("/readyz")
        body = answer.json()
        assert body["ready"] == (answer.status_code == 200)
        return answer.status_code, {name: body[name]["ready"] for name in ("redis", "worker", "launcher")}

    assert parts() == (503, {"redis": True, "worker": False, "launcher": False})
    workers = Workers(store.redis)
    workers.heartbeat(worker_status("w1", "no such socket"))
    assert parts() == (503, {"redis": True, "worker": True, "launcher": False})
    workers.heartbeat(worker_status("w2"))
    assert parts() == (200, {"redis": True, "worker": True, "launcher": True})
    workers.farewell("w2")
    assert parts()[0] == 503


def test_a_redis_that_drops_jobs_is_not_ready(stranger: httpx.Client, store: Store) -> None:
    """Its maxmemory-policy is looked at each time: it can be changed while it runs."""
    Workers(store.redis).heartbeat(worker_status("w1"))
    store.redis.config_set("maxmemory-policy", "allkeys-lru")
    try:
        answer = stranger.get("/readyz")
    finally:
        store.redis.config_set("maxmemory-policy", "noeviction")
    assert answer.status_code == 503
    assert "allkeys-lru" in answer.json()["redis"]["message"]
    assert stranger.get("/readyz").status_code == 200


def test_without_redis_it_lives_but_is_not_ready(own_redis: Any, serving: Any) -> None:
    """/readyz says that it is Redis, without its address; /healthz goes on saying yes."""
    with serving(Settings(redis=own_redis.url)).client() as client:
        own_redis.stop()
        answer = client.get("/readyz")
        assert answer.status_code == 503
        assert answer.json()["redis"]["ready"] is False
        assert str(own_redis.directory) not in answer.text
        assert client.get("/healthz").status_code == 200


def test_it_starts_without_redis(own_redis: Any, serving: Any, store: Store) -> None:
    """The API comes up before Redis does, and is ready when everything else is."""
    own_redis.stop()
    with serving(Settings(redis=own_redis.url)).client() as client:
        assert client.get("/readyz").status_code == 503
        own_redis.start()
        assert client.get("/readyz").json()["redis"]["ready"] is True


def test_a_silent_redis_is_no_reason_to_be_silent(own_redis: Any, serving: Any) -> None:
    """A Redis that takes connections and answers nothing is 503 within seconds, on every route."""
    served = serving(Settings(redis=own_redis.url))
    with served.client("sk_0011223344556677_" + "a" * 43) as client, ThreadPoolExecutor(2) as pool:
        assert client.get("/v1/jobs/job_1").status_code == 401
        os.kill(own_redis.server.pid, signal.SIGSTOP)
        try:
            begun = time.monotonic()
            answers = list(pool.map(client.get, ["/readyz", "/v1/jobs/job_1"]))
            took = time.monotonic() - begun
        finally:
            os.kill(own_redis.server.pid, signal.SIGCONT)
        assert [answer.status_code for answer in answers] == [503, 503]
        assert answers[1].json()["component"] == "redis"
        assert took < 4 * REDIS_TIMEOUT
        assert client.get("/v1/jobs/job_1").status_code == 401
