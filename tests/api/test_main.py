"""`python -m api` as a process."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import redis

from jobs.settings import Settings


@contextmanager
def process(settings: Settings, **changes: str) -> Iterator[tuple[subprocess.Popen[str], httpx.Client]]:
    """The service as a process on a free port, and a client of it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        listen = f"127.0.0.1:{probe.getsockname()[1]}"
    variables = settings.environment() | {"STOCKADE_LISTEN": listen} | changes
    started = subprocess.Popen(
        [sys.executable, "-m", "api"], env=os.environ | variables, stderr=subprocess.PIPE, text=True
    )
    with httpx.Client(base_url=f"http://{listen}", trust_env=False, timeout=30) as client:
        try:
            yield started, client
        finally:
            started.kill()
            started.communicate()


def wait_until_up(client: httpx.Client) -> None:
    """Return when it answers."""
    deadline = time.monotonic() + 30
    while True:
        try:
            client.get("/healthz")
            return
        except httpx.TransportError:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_sigterm_answers_long_polls_and_ends(settings: Settings, key: str) -> None:
    """A request that waits is answered with the job as it is, and the process ends within a moment."""
    with process(settings) as (started, client):
        wait_until_up(client)
        answers: list[httpx.Response] = []
        headers = {"Authorization": f"Bearer {key}"}

        def wait() -> None:
            answers.append(client.post("/v1/jobs?wait=60", json={"command": ["true"]}, headers=headers))

        thread = threading.Thread(target=wait)
        thread.start()
        time.sleep(0.5)
        begun = time.monotonic()
        started.send_signal(signal.SIGTERM)
        _, log = started.communicate(timeout=10)
        thread.join()
        assert time.monotonic() - begun < 4
        assert answers[0].status_code == 201
        assert answers[0].json()["state"] == "queued"
        assert key not in log
        assert key.split("_", 2)[2] not in log


def test_sigterm_ends_streams_of_events(settings: Settings, key: str) -> None:
    """A stream that is open ends, without an error, and the process does not wait for the job."""
    with process(settings) as (started, client):
        wait_until_up(client)
        headers = {"Authorization": f"Bearer {key}"}
        job = client.post("/v1/jobs", json={"command": ["true"]}, headers=headers).json()
        with client.stream("GET", f"/v1/jobs/{job['id']}/events", headers=headers) as answer:
            lines = answer.iter_lines()
            while not next(lines).startswith("data:"):
                pass
            begun = time.monotonic()
            started.send_signal(signal.SIGTERM)
            assert "".join(lines) == ""
        _, log = started.communicate(timeout=10)
        assert time.monotonic() - begun < 4
        assert "Traceback" not in log


def test_wrong_settings_end_it_with_a_sentence(settings: Settings) -> None:
    """Exit status 2, and the log names the setting."""
    with process(settings, STOCKADE_LISTEN="nowhere") as (started, _):
        _, log = started.communicate(timeout=30)
        assert started.returncode == 2
        assert "STOCKADE_LISTEN" in log
        assert "Traceback" not in log


def test_a_password_of_redis_is_not_logged(settings: Settings) -> None:
    """Not when it starts, and not when Redis cannot be reached."""
    address = "redis://user:hunter2@127.0.0.1:1/0"
    with process(settings, STOCKADE_REDIS=address) as (started, client):
        wait_until_up(client)
        assert client.get("/readyz").status_code == 503
        started.send_signal(signal.SIGTERM)
        _, log = started.communicate(timeout=10)
        assert "127.0.0.1:1" in log
        assert "hunter2" not in log


def test_metrics_have_a_listener_of_their_own(settings: Settings) -> None:
    """The process serves /metrics where STOCKADE_METRICS says, and not where tenants are served."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        listen = f"127.0.0.1:{probe.getsockname()[1]}"
    with process(settings, STOCKADE_METRICS=listen) as (started, client):
        wait_until_up(client)
        scrape = httpx.get(f"http://{listen}/metrics", trust_env=False, timeout=30)
        assert "stockade_redis_up 1.0" in scrape.text
        assert client.get("/metrics").status_code == 404
        started.send_signal(signal.SIGTERM)
        _, log = started.communicate(timeout=10)
        assert started.returncode in (0, -signal.SIGTERM)
        assert "Traceback" not in log


def test_a_redis_that_drops_jobs_is_refused(settings: Settings, redis_client: redis.Redis) -> None:
    """Exit status 2, and the log has the remedy."""
    redis_client.config_set("maxmemory-policy", "allkeys-lru")
    try:
        with process(settings) as (started, _):
            _, log = started.communicate(timeout=30)
    finally:
        redis_client.config_set("maxmemory-policy", "noeviction")
    assert started.returncode == 2
    assert "config set maxmemory-policy noeviction" in log
    assert "Traceback" not in log
