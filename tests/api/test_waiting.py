"""Long polls: woken by the job's end, and nothing is missed."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
import redis

from api.waiting import FinishedJobs
from jobs import keys, tenants
from jobs.job import JobResult
from jobs.job_view import JobView, view
from jobs.outcome import Outcome, OutcomeKind
from jobs.settings import Settings
from jobs.spec import JobSpec
from jobs.store import Store, connect
from policies.admission import admit
from policies.loader import load_policies
from tests.dispatch import make_project, open_window

SPEC = JobSpec(command={"argv": ("true",)})  # type: ignore[arg-type]
PROMPT = 2.0  # seconds within which news must have come, on a busy machine; the recheck is after 60


def make_job(store: Store) -> JobView:
    """A stored job."""
    project = make_project(store.redis, "tenant_1")
    return view(store.create(SPEC, admit(SPEC, load_policies()["default"]), project).job)


@asynccontextmanager
async def subscription(address: str, recheck: float = 60.0) -> AsyncIterator[FinishedJobs]:
    """A running subscription."""
    finished = FinishedJobs(address, recheck=recheck)
    async with finished.listening():
        while not finished.subscribed:
            await asyncio.sleep(0.005)
        yield finished


async def stay() -> bool:
    """The caller is still there."""
    return False


def looking(store: Store, job: JobView) -> Callable[[], Awaitable[JobView | None]]:
    """Looks the job up."""

    async def look() -> JobView | None:
        found = await asyncio.to_thread(store.get, job.id)
        return view(found) if found else None

    return look


def test_the_end_of_a_job_wakes_everybody_who_waits_for_it(redis_url: str, store: Store, worker: Any) -> None:
    """Two waiters of a job get the finished job in a moment; a waiter of another job goes on waiting."""

    async def run() -> None:
        async with subscription(redis_url) as finished:
            job, other = make_job(store), make_job(store)
            mark = finished.mark()
            waits = [
                asyncio.create_task(finished.until_finished(each, 30, mark, looking(store, each), stay))
                for each in (job, job, other)
            ]
            await asyncio.sleep(0.05)
            await asyncio.to_thread(worker.finish, job.id)
            for wait in waits[:2]:
                ended = await asyncio.wait_for(wait, PROMPT)
                assert ended is not None and ended.finished
            assert not waits[2].done()
            waits[2].cancel()

    asyncio.run(run())


def test_an_end_between_the_look_and_the_wait_is_not_missed(
    redis_url: str, store: Store, worker: Any
) -> None:
    """The job finishes and is announced before anybody waits: the wait ends at once."""

    async def run() -> None:
        async with subscription(redis_url) as finished:
            mark = finished.mark()
            job = make_job(store)
            await asyncio.to_thread(worker.finish, job.id)
            while finished.mark() == mark:
                await asyncio.sleep(0.005)
            wait = finished.until_finished(job, 30, mark, looking(store, job), stay)
            ended = await asyncio.wait_for(wait, PROMPT)
            assert ended is not None and ended.finished

    asyncio.run(run())


def test_a_wait_ends_after_its_time(redis_url: str, store: Store) -> None:
    """A job that does not finish is given back as it is, on time, and nothing is left behind."""

    async def run() -> None:
        async with subscription(redis_url) as finished:
            job = make_job(store)
            begun = time.monotonic()
            got = await finished.until_finished(job, 0.3, finished.mark(), looking(store, job), stay)
            assert 0.29 < time.monotonic() - begun < PROMPT
            assert got is not None and not got.finished
            assert finished._waiters == {}

    asyncio.run(run())


def test_a_lost_announcement_costs_a_moment_only(redis_url: str, store: Store, worker: Any) -> None:
    """Without any announcement the store is looked into again after `recheck`."""

    async def run() -> None:
        async with subscription(redis_url, recheck=0.1) as finished:
            job = make_job(store)
            await asyncio.to_thread(worker.finish, job.id)
            await asyncio.sleep(0.1)
            wait = finished.until_finished(job, 30, finished.mark(), looking(store, job), stay)
            ended = await asyncio.wait_for(wait, PROMPT)
            assert ended is not None and ended.finished

    asyncio.run(run())


def test_a_deleted_job_ends_the_wait(redis_url: str, store: Store) -> None:
    """None says that the job is not there any more."""

    async def run() -> None:
        async with subscription(redis_url, recheck=0.05) as finished:
            job = make_job(store)
            store.redis.delete(f"stockade:job:{job.id}")
            assert await finished.until_finished(job, 30, finished.mark(), looking(store, job), stay) is None

    asyncio.run(run())


def test_nobody_waits_for_a_caller_who_left(redis_url: str, store: Store) -> None:
    """A caller that hung up is noticed at the next look."""

    async def left() -> bool:
        return True

    async def run() -> None:
        async with subscription(redis_url, recheck=0.05) as finished:
            job = make_job(store)
            wait = finished.until_finished(job, 30, finished.mark(), looking(store, job), left)
            await asyncio.wait_for(wait, PROMPT)

    asyncio.run(run())


def test_closing_lets_everybody_go(redis_url: str, store: Store) -> None:
    """When the service stops, waiters get the job as it is."""

    async def run() -> None:
        async with subscription(redis_url) as finished:
            job = make_job(store)
            wait = asyncio.create_task(
                finished.until_finished(job, 30, finished.mark(), looking(store, job), stay)
            )
            await asyncio.sleep(0.05)
            finished.close()
            assert await asyncio.wait_for(wait, PROMPT) is not None

    asyncio.run(run())


def test_the_subscription_ends_whatever_it_is_doing(redis_url: str) -> None:
    """Stopped at any moment of connecting and subscribing, it ends at once and leaves no task behind."""

    async def run() -> None:
        for step in range(40):
            finished = FinishedJobs(redis_url)
            async with finished.listening():
                await asyncio.sleep(step * 0.0001)
            assert len(asyncio.all_tasks()) == 1

    begun = time.monotonic()
    asyncio.run(run())
    assert time.monotonic() - begun < 20


def test_a_lost_subscription_comes_back_and_wakes_everybody(
    redis_url: str, store: Store, worker: Any
) -> None:
    """A job that finished while the subscription was cut is seen as soon as it is back."""

    async def run() -> None:
        async with subscription(redis_url) as finished:
            job = make_job(store)
            wait = asyncio.create_task(
                finished.until_finished(job, 30, finished.mark(), looking(store, job), stay)
            )
            await asyncio.sleep(0.05)
            with redis.Redis.from_url(redis_url) as client:
                client.client_kill_filter(_type="pubsub")
            await asyncio.to_thread(worker.finish, job.id)
            ended = await asyncio.wait_for(wait, PROMPT)
            assert ended is not None and ended.finished

    asyncio.run(run())


def test_those_who_wait_for_one_job_share_one_look(redis_url: str, store: Store, worker: Any) -> None:
    """Fifty are woken by one announcement: the job is loaded once. Who gives up takes nobody's look away."""
    looks = 0

    async def run() -> None:
        async with subscription(redis_url) as finished:
            job, mark = make_job(store), finished.mark()

            async def look() -> JobView | None:
                nonlocal looks
                looks += 1
                await asyncio.sleep(0.1)
                return await looking(store, job)()

            waits = [
                asyncio.create_task(finished.until_finished(job, 30, mark, look, stay)) for _ in range(50)
            ]
            await asyncio.sleep(0.05)
            await asyncio.to_thread(worker.finish, job.id)
            while not looks:
                await asyncio.sleep(0.005)
            waits.pop(0).cancel()
            ended = await asyncio.wait_for(asyncio.gather(*waits), PROMPT)
            assert all(each is not None and each.finished for each in ended)
            assert finished._looks == {}

    asyncio.run(run())
    assert looks == 1


def test_waits_are_bounded(
    client: httpx.Client, served: Any, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """429 when a project has its share, 503 when the process has all it takes; nothing is made of a refused POST."""
    places = served.services.finished.places
    monkeypatch.setattr(places, "most_each", 1)
    monkeypatch.setattr(places, "most", 1)
    body = {"command": ["true"]}
    job_id = client.post("/v1/jobs", json=body).json()["id"]
    key = keys.create_key(redis_client, tenants.create_tenant(redis_client, "waiting-elsewhere"))
    with served.client(key) as other, ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(client.get, f"/v1/jobs/{job_id}?wait=20")
        while not places.taken:
            time.sleep(0.01)
        mine = client.get(f"/v1/jobs/{job_id}?wait=20")
        more = client.post("/v1/jobs?wait=20", json=body)
        theirs = other.post("/v1/jobs?wait=20", json=body)
        assert client.get(f"/v1/jobs/{job_id}").status_code == 200
        assert [each["id"] for each in client.get("/v1/jobs").json()["jobs"]] == [job_id]
        client.post(f"/v1/jobs/{job_id}:cancel")
        assert waiting.result(timeout=20).json()["state"] == "finished"
        assert client.get(f"/v1/jobs/{job_id}?wait=20").status_code == 200
    for refused in (mine, more):
        assert (refused.status_code, refused.json()["type"]) == (429, "urn:stockade:problem:too-many-waits")
    assert (theirs.status_code, theirs.json()["component"]) == (503, "waits")
    assert mine.headers["retry-after"] == theirs.headers["retry-after"] == "1"
    assert places.taken == 0


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_long_poll_outlives_a_restart_of_redis(own_redis: Any, serving: Any, method: str) -> None:
    """Redis dies and comes back while a request waits: it gets the job's end all the same."""
    settings = Settings(redis=own_redis.url)
    with connect(settings) as client:
        store = Store(client)
        open_window(client)
        key = keys.create_key(client, tenants.create_tenant(client, "first"))
        served = serving(settings)
        with served.client(key) as caller, ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(begin, caller, method)
            while not (queued := client.zrange("stockade:released:default", 0, -1)):
                time.sleep(0.01)
            while not served.services.finished._waiters:  # a first look without Redis would be 503
                time.sleep(0.01)
            own_redis.stop()
            time.sleep(0.3)
            own_redis.start()
            job_id = queued[0].decode()
            attempt = store.claim(job_id, 1, "test-worker")
            assert attempt is not None, "the job outlived the restart"
            end(store, attempt)
            answer = waiting.result(timeout=20)
            assert answer.json()["state"] == "finished"


def begin(caller: httpx.Client, method: str) -> httpx.Response:
    """Submit a job and wait for its end, in one request or two."""
    if method == "POST":
        return caller.post("/v1/jobs?wait=20", json={"command": ["true"]})
    job = caller.post("/v1/jobs", json={"command": ["true"]}).json()
    return caller.get(f"/v1/jobs/{job['id']}?wait=20")


def end(store: Store, attempt: Any) -> None:
    """Finish an attempt without any step."""
    outcome = Outcome(kind=OutcomeKind.CANCELLED, message="It was cancelled.")
    assert store.finish(attempt, JobResult(outcome=outcome))
