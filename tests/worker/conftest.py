"""Fixtures of the worker's tests: a store, a fake launcher, a worker here or in a process of its own."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from jobs.job import Attempt, Job
from jobs.policy_source import PolicySource
from jobs.policy_versions import PolicyVersions
from jobs.settings import Settings
from jobs.spec import JobSpec
from jobs.store import Store, connect
from jobs.workers import Workers as WorkersOf
from policies.admission import admit
from policies.loader import load_policies
from policies.policy import Policy
from tests.dispatch import make_project, open_window
from tests.worker.fake_launcher import FakeLauncher
from worker.admission import Policies
from worker.attempt import Workshop

ROOT = Path(__file__).parents[2]
LEASE = 2.0

Submit = Callable[..., Job]
Claim = Callable[..., Attempt]


@pytest.fixture
def directory() -> Iterator[Path]:
    """A directory with a short name: a socket's path has 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="stockade-test-") as path:
        yield Path(path)


@pytest.fixture
def launcher(directory: Path) -> Iterator[FakeLauncher]:
    """A launcher without isolation."""
    with FakeLauncher(directory / "launcher.sock") as fake:
        yield fake


@pytest.fixture
def settings(redis_url: str, directory: Path) -> Settings:
    """The settings of an installation with short leases."""
    return Settings(
        redis=redis_url, launcher=directory / "launcher.sock", state=directory, slots=4, lease=LEASE, drain=1
    )


@pytest.fixture
def redis(settings: Settings) -> Iterator[Redis]:
    """A client of an empty server."""
    with connect(settings) as client:
        yield client


@pytest.fixture
def store(redis: Redis) -> Store:
    """The store of that installation."""
    return Store(redis, lease=LEASE)


@pytest.fixture
def workshop(store: Store, settings: Settings) -> Workshop:
    """What attempts are made with."""
    policies = Policies(PolicySource(None), PolicyVersions(store.redis))
    return Workshop(store, policies, settings.launcher)


@pytest.fixture
def submit(store: Store) -> Submit:
    """Puts a job into the store; it is released when there is room."""

    def put(policy: Policy | None = None, /, **body: Any) -> Job:
        spec = JobSpec.model_validate_json(json.dumps(body))
        project = make_project(store.redis, "tenant_a")
        return store.create(spec, admit(spec, policy or load_policies()[spec.policy]), project).job

    return put


@pytest.fixture
def claim(store: Store, submit: Submit) -> Claim:
    """Puts a job into the store and claims its first attempt."""
    open_window(store.redis)

    def put(policy: Policy | None = None, /, **body: Any) -> Attempt:
        attempt = store.claim(submit(policy, **body).id, 1, "w1")
        assert attempt is not None
        return attempt

    return put


class Workers:
    """Worker processes, as the service runs them."""

    def __init__(self, settings: Settings, store: Store) -> None:
        self._store = store
        self._log = settings.state / "worker.log"
        self._environment = {**os.environ, **settings.environment(), "PYTHONPATH": str(ROOT)}
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(self) -> subprocess.Popen[bytes]:
        """Start one and wait until it has said that it lives."""
        before = {worker.name for worker in WorkersOf(self._store.redis).live()}
        process = self.launch()
        deadline = time.monotonic() + 30
        while not {worker.name for worker in WorkersOf(self._store.redis).live()} - before:
            assert process.poll() is None, self.log()
            assert time.monotonic() < deadline, self.log()
            time.sleep(0.05)
        return process

    def launch(self) -> subprocess.Popen[bytes]:
        """Start one."""
        command = [sys.executable, "-m", "worker"]
        with self._log.open("ab") as log:
            process = subprocess.Popen(command, env=self._environment, cwd="/", stderr=log, stdout=log)
        self.processes.append(process)
        return process

    def log(self) -> str:
        """What all of them have logged."""
        return self._log.read_text()

    def events(self, name: str) -> list[dict[str, Any]]:
        """Their log entries of this name."""
        lines = [line for line in self.log().splitlines() if line.startswith("{")]
        return [entry for entry in map(json.loads, lines) if entry["event"] == name]

    def stop(self) -> None:
        """End all of them."""
        for process in self.processes:
            process.send_signal(signal.SIGKILL)
            process.wait()


@pytest.fixture
def workers(settings: Settings, store: Store, launcher: FakeLauncher) -> Iterator[Workers]:
    """Worker processes over the fake launcher."""
    pool = Workers(settings, store)
    yield pool
    pool.stop()


def until(condition: Callable[[], Any], seconds: float = 20.0) -> Any:
    """What `condition` returns once it is true."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.02)
    return value


def finished(store: Store, job: Job, seconds: float = 20.0) -> Job:
    """The job, once it is finished."""

    def look() -> Job | None:
        found = store.get(job.id)
        return found if found is not None and found.finished else None

    ended: Job = until(look, seconds)
    return ended
