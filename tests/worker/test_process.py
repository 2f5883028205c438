"""A worker process that is killed, stopped, lied to or cut off from Redis loses and repeats nothing."""

import base64
import json
import pickle
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jobs import queue as queues
from jobs.job import JobState
from jobs.outcome import OutcomeKind
from jobs.settings import Settings
from jobs.store import Store, connect
from jobs.workers import Workers as LiveWorkers
from stockade import valkey
from tests.dispatch import deliver, message, open_window, published
from tests.worker.conftest import LEASE, Submit, Workers, finished, until
from tests.worker.fake_launcher import FakeLauncher


def running(store: Store, job_id: str) -> bool:
    """Whether the job is being run."""
    job = store.get(job_id)
    return job is not None and job.state is JobState.RUNNING


def test_published_job_is_run(workers: Workers, store: Store, submit: Submit) -> None:
    """From the queue to the result, through a real worker; a second delivery of it runs nothing."""
    workers.start()
    job = submit(command=["echo", "hi"])
    deliver(store.redis, job.id, 1)
    result = finished(store, job).result
    assert result is not None
    assert result.steps[0].stdout.text == "hi\n"
    until(lambda: not store.redis.hlen("stockade:celery:unacked"))
    [entry] = workers.events("attempt")
    assert (entry["job"], entry["attempt"], entry["tenant"], entry["outcome"]) == (
        job.id,
        1,
        "tenant_a",
        "exited",
    )


def test_job_that_was_accepted_without_workers_is_run(workers: Workers, store: Store, submit: Submit) -> None:
    """A job that comes while no worker lives waits, and is run by the first that does."""
    job = submit(command=["true"])
    assert published(store.redis) == []
    workers.start()
    assert finished(store, job).result is not None


def test_job_whose_message_vanished_is_run(workers: Workers, store: Store, submit: Submit) -> None:
    """A message that was taken from the queue by a worker that died before its claim is published again."""
    open_window(store.redis)
    job = submit(command=["true"])
    store.redis.delete("stockade:celery:default")
    store.redis.zadd("stockade:released:default", {job.id: (time.time() - 60) * 1000})
    workers.start()
    assert finished(store, job).result is not None


def test_killed_workers_job_is_run_by_another(
    workers: Workers, store: Store, submit: Submit, launcher: FakeLauncher
) -> None:
    """kill -9: the job goes to the next worker with the next attempt, within seconds, and ends once."""
    first = workers.start()
    job = submit(command=["sh", "-c", "sleep 1; echo done"])
    until(lambda: launcher.plans)
    first.kill()
    killed = time.monotonic()
    workers.start()
    ended = finished(store, job, seconds=LEASE + 15)
    assert time.monotonic() - killed < LEASE + 10
    assert ended.result is not None
    assert ended.result.steps[0].stdout.text == "done\n"
    assert ended.attempt == 2
    assert len(launcher.plans) == 2


def test_poison_job_is_given_up(workers: Workers, store: Store, submit: Submit) -> None:
    """A job under which three workers die ends as worker_lost."""
    job = submit(command=["sleep", "60"])
    for number in range(1, 4):
        worker = workers.start()
        until(lambda number=number: running(store, job.id) and store.get(job.id).attempt == number)  # type: ignore[misc,union-attr]
        worker.kill()
    workers.start()
    result = finished(store, job).result
    assert result is not None
    assert result.outcome.kind is OutcomeKind.WORKER_LOST


class Exploit:
    """What a pickled message would run."""

    def __init__(self, sentinel: Path) -> None:
        self._sentinel = sentinel

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self._sentinel,))


def test_forged_messages_run_nothing_and_harm_nothing(
    workers: Workers, store: Store, submit: Submit, directory: Path, launcher: FakeLauncher
) -> None:
    """Pickle, other tasks, broken JSON and junk are dropped; the worker goes on with the next job."""
    worker = workers.start()
    sentinel = directory / "sentinel"
    job = submit(command=["true"])
    finished(store, job)
    redis = store.redis
    deliver(redis, "job_unknown", 1)
    deliver(redis, job.id, 7)
    good: dict[str, Any] = message("job_probe", 1)
    body = base64.b64encode(pickle.dumps(Exploit(sentinel))).decode()
    shutdown = {"task": "celery.backend_cleanup"}
    for forged in [
        b"",
        b"junk",
        b"\xff\xfe",
        b"[" * 100_000,
        b"{}",
        b"null",
        json.dumps(good | {"body": body, "content-type": "application/x-python-serialize"}),
        json.dumps(good | {"body": body}),
        json.dumps(good | {"headers": good["headers"] | shutdown}),
        json.dumps(good | {"headers": good["headers"] | {"task": {}}}),
        json.dumps(good | {"headers": good["headers"] | {"task": "stockade.run_job\0"}}),
        json.dumps(good | {"properties": {}}),
    ]:
        redis.lpush("stockade:celery:default", forged)
    last = submit(command=["echo", "alive"])
    assert finished(store, last).result is not None
    assert worker.poll() is None
    assert not sentinel.exists()
    assert len(launcher.plans) == 2


def test_remote_control_is_off(workers: Workers, store: Store, submit: Submit, settings: Settings) -> None:
    """A broadcast that tells Celery workers to shut down or to change their pool reaches nobody."""
    worker = workers.start()
    app = queues.celery_app(settings)
    for command in ("shutdown", "pool_shrink", "cancel_consumer"):
        app.control.broadcast(command, arguments={"n": 4, "queue": "default"})
    assert app.control.ping(timeout=0.5) == []
    job = submit(command=["true"])
    assert finished(store, job).result is not None
    assert worker.poll() is None


def test_stopping_worker_lets_short_jobs_end_and_gives_long_ones_back(
    workers: Workers, store: Store, submit: Submit, launcher: FakeLauncher
) -> None:
    """SIGTERM: no new job is taken, one that ends in time ends, one that does not is queued again at once."""
    worker = workers.start()
    short, long = submit(command=["sleep", "0.6"]), submit(command=["sleep", "60"])
    until(lambda: len(launcher.plans) == 2)
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(10) == 0
    ended, waiting = store.get(short.id), store.get(long.id)
    assert ended is not None
    assert waiting is not None
    assert ended.result is not None
    assert ended.result.outcome.succeeded
    assert (waiting.state, waiting.attempt) == (JobState.QUEUED, 1)
    assert LiveWorkers(store.redis).live() == []
    workers.start()
    until(lambda: running(store, long.id), seconds=5)


def test_launchers_death_is_survived(
    workers: Workers, store: Store, submit: Submit, launcher: FakeLauncher
) -> None:
    """A job whose launcher dies under it is run again by the launcher that comes after."""
    workers.start()
    job = submit(command=["sh", "-c", "sleep 1; echo done"])
    until(lambda: launcher.plans)
    launcher.close()
    with FakeLauncher(launcher.path):
        ended = finished(store, job)
    assert ended.result is not None
    assert ended.result.outcome.succeeded
    assert ended.attempt == 2


@pytest.fixture
def restartable(directory: Path, settings: Settings) -> Iterator["Server"]:
    """A Redis server of this test's own, which keeps what it has over a restart."""
    server = Server(directory)
    yield server
    server.kill()


class Server:
    """A durable Valkey server that can be killed and started again."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory / "valkey"
        self.directory.mkdir()
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        """Start it and wait until it answers."""
        command = [*valkey.command(self.directory, durable=True), "--appendfsync", "always"]
        with (self.directory / "log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        until(lambda: valkey.answers(self.directory))

    def kill(self) -> None:
        """Let it die as in a power cut."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()


@pytest.fixture
def redis_url(request: pytest.FixtureRequest) -> str:
    """The session's server; a test that asks for `restartable` gets the address of that one."""
    if "restartable" not in request.fixturenames:
        return str(request.getfixturevalue("shared_redis_url"))
    return valkey.url(request.getfixturevalue("directory") / "valkey")


@pytest.fixture
def shared_redis_url(_valkey_directory: Path) -> str:
    """The session's server, emptied."""
    url = valkey.url(_valkey_directory)
    with connect(Settings(redis=url)) as client:
        client.flushall()
    return url


@pytest.mark.parametrize("away", [0.5, 3.5], ids=["shorter than a lease", "longer than a lease"])
def test_result_survives_a_restart_of_redis(
    restartable: Server,
    workers: Workers,
    store: Store,
    submit: Submit,
    launcher: FakeLauncher,
    away: float,
) -> None:
    """Redis dies while a job runs and comes back after its end: the result is stored, nothing runs twice,
    and the worker takes the next job."""
    workers.start()
    job = submit(command=["sh", "-c", "sleep 0.4; echo done"])
    until(lambda: launcher.plans)
    restartable.kill()
    time.sleep(away)
    restartable.start()
    ended = finished(store, job)
    assert ended.result is not None
    assert ended.result.steps[0].stdout.text == "done\n"
    assert ended.attempt == 1
    for _ in range(6):
        follower = submit(command=["true"])
        assert finished(store, follower).result is not None
    assert len(launcher.plans) == 7


def test_worker_waits_for_redis_at_its_start(
    restartable: Server, workers: Workers, store: Store, submit: Submit
) -> None:
    """A worker that is started before Redis works as soon as Redis is there."""
    restartable.kill()
    workers.launch()
    time.sleep(2)
    restartable.start()
    until(LiveWorkers(store.redis).live)
    job = submit(command=["true"])
    assert finished(store, job).result is not None
