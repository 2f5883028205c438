"""The API on a Redis of its own, a tenant with a key, and a worker's part played by hand."""

import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis
import structlog
import uvicorn
from fastapi import FastAPI

from api.__main__ import Server
from api.app import create_app
from api.connection import Connection
from api.services import Services
from jobs import keys, tenants
from jobs.job import Attempt, JobResult, Tenant
from jobs.keys import Scope
from jobs.outcome import (
    Artifact,
    ArtifactError,
    IdRange,
    Isolation,
    Outcome,
    OutcomeKind,
    Output,
    Seccomp,
    StepResult,
    Usage,
)
from jobs.settings import Settings
from jobs.store import Store, connect
from stockade import valkey
from stockade.children import Child
from tests.dispatch import open_window


def step_result(stdout: Output, stderr: Output) -> StepResult:
    """A step that exited with 0 and wrote this."""
    seconds = dict.fromkeys(("cpu_time", "cpu_user", "cpu_system", "cpu_throttled", "wall_time"), 0.001)
    counts = dict.fromkeys(
        ("memory", "pids", "pids_refused", "disk", "disk_inodes", "io_read_bytes", "io_write_bytes"), 1
    )
    return StepResult(
        name="step-1",
        outcome=Outcome(kind=OutcomeKind.EXITED, exit_code=0, message="It exited with status 0."),
        usage=Usage(**seconds, **counts, stdout_bytes=stdout.bytes, stderr_bytes=stderr.bytes),
        stdout=stdout,
        stderr=stderr,
        isolation=Isolation(
            cgroup="v1",
            namespaces=("mnt", "pid"),
            user_namespace=IdRange(base=65536, size=65536),
            seccomp=Seccomp(profile="default", sha256="0" * 64),
            capabilities=("CHOWN",),
            no_new_privs=True,
            image="host",
            kernel="6.1.0",
        ),
    )


@dataclass
class Worker:
    """A worker's part of the story, played by a test: it claims and finishes, and runs nothing."""

    store: Store

    def claim(self, job_id: str) -> Attempt:
        """Begin the first attempt of a job."""
        self.store.sweep(lost_after=60)  # releases what was handed in before there was room
        attempt = self.store.claim(job_id, 1, "test-worker")
        assert attempt is not None
        return attempt

    def finish(self, job_id: str, **ended: Any) -> None:
        """Claim a job and end it well, with these outputs and files (see `end`)."""
        assert self.end(self.claim(job_id), **ended)

    def end(
        self,
        attempt: Attempt,
        *,
        stdout: Output | None = None,
        stderr: Output | None = None,
        files: dict[str, bytes] | None = None,
        errors: tuple[ArtifactError, ...] = (),
    ) -> bool:
        """End an attempt well, with these outputs and files; whether it still could."""
        step = step_result(stdout or Output.of(b""), stderr or Output.of(b""))
        artifacts = []
        for path, content in (files or {}).items():
            self.store.put_artifact(attempt, path, content)
            artifacts.append(
                Artifact(path=path, size=len(content), sha256=sha256(content).hexdigest(), mode="0644")
            )
        result = JobResult(
            outcome=step.outcome, steps=(step,), artifacts=tuple(artifacts), artifact_errors=errors
        )
        return self.store.finish(attempt, result)


@pytest.fixture(scope="session", autouse=True)
def _plain_log() -> None:
    """Structlog's default renders tracebacks with all local variables, which takes seconds each."""
    structlog.configure(
        processors=[structlog.processors.format_exc_info, structlog.processors.JSONRenderer()],
        cache_logger_on_first_use=False,
    )


@pytest.fixture
def settings(redis_url: str) -> Settings:
    """Settings of an installation on an empty Redis."""
    return Settings(redis=redis_url)


@pytest.fixture
def redis_client(settings: Settings) -> Iterator[redis.Redis]:
    """A connection to that Redis."""
    with connect(settings) as client:
        yield client


@pytest.fixture
def store(redis_client: redis.Redis) -> Store:
    """The store in that Redis, and room for all its jobs in the queue."""
    open_window(redis_client)
    return Store(redis_client)


@pytest.fixture
def worker(store: Store) -> Worker:
    """Ends jobs, so that they need no sandbox."""
    return Worker(store)


@pytest.fixture
def tenant(redis_client: redis.Redis) -> Tenant:
    """A project."""
    return tenants.create_tenant(redis_client, "first")


@pytest.fixture
def key(redis_client: redis.Redis, tenant: Tenant) -> str:
    """An API key of the tenant, good for everything."""
    return keys.create_key(redis_client, tenant, scopes=Scope)


@pytest.fixture
def other_key(redis_client: redis.Redis) -> str:
    """An API key of another tenant."""
    return keys.create_key(redis_client, tenants.create_tenant(redis_client, "second"))


@dataclass
class Served:
    """An application that is served over TCP by a thread of this process."""

    app: FastAPI
    server: Server
    thread: threading.Thread
    url: str

    @property
    def services(self) -> Services:
        """What its routes work with."""
        services = self.app.state.services
        assert isinstance(services, Services)
        return services

    def client(self, key: str | None = None) -> httpx.Client:
        """A client that sends this key, or none."""
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        return httpx.Client(base_url=self.url, headers=headers, trust_env=False, timeout=30)

    def stop(self) -> None:
        """Stop it as SIGTERM does; may be repeated."""
        self.server.should_exit = True
        self.thread.join()


def serve(settings: Settings) -> Served:
    """Serve the application with these settings; returns when it takes connections."""
    app = create_app(settings)
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(
        app, loop="uvloop", http=Connection, ws="none", lifespan="on", log_config=None, access_log=False
    )
    server = Server(config, app)
    thread = threading.Thread(target=lambda: server.run(sockets=[listener]))
    thread.start()
    while not server.started and thread.is_alive():
        time.sleep(0.005)
    return Served(app, server, thread, f"http://127.0.0.1:{listener.getsockname()[1]}")


@pytest.fixture(scope="session")
def _served() -> Iterator[dict[str, Served]]:
    served: dict[str, Served] = {}
    yield served
    for each in served.values():
        each.stop()


@pytest.fixture
def served(settings: Settings, _served: dict[str, Served]) -> Served:
    """The running application; one for all tests, since it keeps nothing but what is in Redis."""
    if settings.redis not in _served:
        _served[settings.redis] = serve(settings)
    return _served[settings.redis]


@pytest.fixture
def stranger(served: Served) -> Iterator[httpx.Client]:
    """A client of the application that sends no key."""
    with served.client() as client:
        yield client


@pytest.fixture
def client(served: Served, key: str) -> Iterator[httpx.Client]:
    """A client of the application that sends the tenant's key."""
    with served.client(key) as client:
        yield client


@pytest.fixture
def serving() -> Iterator[Callable[[Settings], Served]]:
    """Serves a further application, for this test alone."""
    running: list[Served] = []

    def start(settings: Settings) -> Served:
        running.append(serve(settings))
        return running[-1]

    yield start
    for each in running:
        each.stop()


@dataclass
class OwnRedis:
    """A Redis that a test may stop and start again; what it held before is gone then."""

    directory: Path
    server: Child

    @property
    def url(self) -> str:
        """Its address."""
        return valkey.url(self.directory)

    def start(self) -> None:
        """Start it and wait until it answers."""
        self.server.start()
        self.server.wait_until(lambda: valkey.answers(self.directory), timeout=30, pause=time.sleep)

    def stop(self) -> None:
        """Kill it."""
        self.server.stop(grace=0)


@pytest.fixture
def own_redis() -> Iterator[OwnRedis]:
    """A running Redis for this test alone."""
    directory = Path(tempfile.mkdtemp(prefix="stockade-test-api-"))
    server = Child("valkey", valkey.command(directory, durable=True), log=directory / "log")
    own = OwnRedis(directory, server)
    own.start()
    yield own
    own.stop()
    shutil.rmtree(directory)
