"""Each budget is kept to its number, on both levels, and a refusal costs nothing.

Time is played: what was used in the running hour or day is written where the store writes it, and a bucket of
submissions fills because the moment of its last use is set back.
"""

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from redis import Redis

from jobs.job import JobResult, JobState, Tenant
from jobs.outcome import Artifact
from jobs.store import BudgetExceededError, Store
from jobs.tenants import create_tenant, get_tenant, set_tenant
from tests.dispatch import DONE, make_project, open_window, published
from tests.jobs.played import SPEC, admission, fill
from tests.jobs.results import step_result

WINDOWS = {
    "cpu_seconds_per_hour": ("cpu_seconds", "h", 3600),
    "cpu_seconds_per_day": ("cpu_seconds", "d", 86400),
    "memory_gb_seconds_per_hour": ("memory_gb_seconds", "h", 3600),
    "memory_gb_seconds_per_day": ("memory_gb_seconds", "d", 86400),
}
levels = pytest.mark.parametrize("level", ["project", "organisation"])
windows = pytest.mark.parametrize("budget", WINDOWS)


@pytest.fixture
def store(redis: Redis) -> Store:
    """A store without workers."""
    return Store(redis, lease=3600)


@pytest.fixture
def project(redis: Redis) -> Tenant:
    """A project of an organisation that has another one too."""
    create_tenant(redis, "org")
    return create_tenant(redis, "org/p")


@pytest.fixture
def sibling(redis: Redis, project: Tenant) -> Tenant:
    """Another project of the same organisation."""
    return create_tenant(redis, "org/sibling")


def limited(redis: Redis, project: Tenant, level: str, **budgets: float) -> str:
    """Set budgets of a project or of its organisation; the id of whose they are."""
    tenant = get_tenant(redis, project.id if level == "project" else project.parent or "")
    assert tenant is not None
    set_tenant(redis, tenant, budgets=budgets)
    return tenant.id


def submit(store: Store, project: Tenant) -> str:
    """Hand a job in."""
    return store.create(SPEC, admission(), project.id).job.id


def refusal(store: Store, project: Tenant) -> BudgetExceededError:
    """How a job is refused; nothing at all has changed by it."""
    before = everything(store.redis)
    with pytest.raises(BudgetExceededError) as caught:
        submit(store, project)
    assert everything(store.redis) == before
    return caught.value


def everything(redis: Redis) -> dict[bytes, Any]:
    """All that Redis holds."""
    keys: Any = redis.keys("*")
    return {key: redis.dump(key) for key in keys}


def used(redis: Redis, tenant: str, budget: str, amount: float) -> float:
    """Write down what was used in the running window; seconds until it ends, at least some."""
    field, letter, length = WINDOWS[budget]
    seconds: Any = redis.time()[0]  # type: ignore[index]
    if length - seconds % length < 3:  # the window would end under the test
        time.sleep(3)
        seconds += 3
    redis.hset(f"stockade:usage:{tenant}:{letter}:{seconds // length}", field, amount)
    return float(length - seconds % length)


@levels
def test_queued_jobs(store: Store, redis: Redis, project: Tenant, sibling: Tenant, level: str) -> None:
    """As many may wait as are allowed; the next is refused until one is released or ends."""
    limit = limited(redis, project, level, queued_jobs=3)
    ids = [
        submit(store, each) for each in (project, project, sibling if level == "organisation" else project)
    ]
    error = refusal(store, project)
    assert (error.budget, error.tenant, error.limit, error.used) == ("queued_jobs", limit, 3, 3)
    assert error.retry_after == 1
    store.cancel(ids[0], project.id)
    submit(store, project)
    refusal(store, project)
    open_window(redis, 1)
    store.sweep(3600)
    submit(store, project)
    refusal(store, project)


@levels
def test_submits_per_minute(store: Store, redis: Redis, project: Tenant, level: str) -> None:
    """Exactly so many at once, then one for each part of a minute; who waits as long as was told is let in."""
    limit = limited(redis, project, level, submits_per_minute=6)
    for left in range(5, -1, -1):
        told = store.create(SPEC, admission(), project.id).submits
        assert told is not None
        assert (told.limit, told.left) == (6, left)
        assert told.reset == pytest.approx((6 - left) * 10, abs=1)
    error = refusal(store, project)
    assert (error.budget, error.tenant, error.limit) == ("submits_per_minute", limit, 6)
    assert 0 < error.retry_after <= 10
    redis.hincrby(f"stockade:load:{limit}", "tokens_at", -int(error.retry_after * 1000))
    submit(store, project)
    assert refusal(store, project).budget == "submits_per_minute"
    redis.hincrby(f"stockade:load:{limit}", "tokens_at", -3_600_000)
    for _ in range(6):
        submit(store, project)
    refusal(store, project)


@pytest.mark.parametrize("per_minute", [1, 7, 60, 999, 10**9])
def test_retry_after_is_long_enough(store: Store, redis: Redis, project: Tenant, per_minute: int) -> None:
    """Whatever the number, a submission after exactly the time that was told is accepted."""
    limited(redis, project, "project", submits_per_minute=per_minute)
    load = f"stockade:load:{project.id}"
    for left in (0.0, 0.1, 1 / 3, 0.7, 0.9999):
        seconds, micros = redis.time()  # type: ignore[misc]
        soon = (
            seconds * 1000 + micros // 1000 + 60_000
        )  # a moment to come: the bucket does not fill meanwhile
        redis.hset(load, mapping={"tokens": repr(left), "tokens_at": soon})
        wait = refusal(store, project).retry_after
        seconds, micros = redis.time()  # type: ignore[misc]
        redis.hset(load, "tokens_at", seconds * 1000 + micros // 1000 - round(wait * 1000))
        submit(store, project)


@levels
@windows
def test_what_was_used_in_a_window(
    store: Store, redis: Redis, project: Tenant, level: str, budget: str
) -> None:
    """Below the number a job is let in; at the number it is refused until the hour, or the day, ends."""
    limit = limited(redis, project, level, **{budget: 10})
    used(redis, limit, budget, 9.999)
    submit(store, project)
    rest = used(redis, limit, budget, 10)
    error = refusal(store, project)
    assert (error.budget, error.tenant, error.limit, error.used) == (budget, limit, 10, 10)
    assert 0 < error.retry_after <= rest + 1
    assert error.retry_after == pytest.approx(rest, abs=30)


@levels
@windows
def test_a_window_that_is_over_counts_no_more(
    store: Store, redis: Redis, project: Tenant, level: str, budget: str
) -> None:
    """What was used in the hour, or the day, before is not held against anyone."""
    limit = limited(redis, project, level, **{budget: 10})
    field, letter, length = WINDOWS[budget]
    used(redis, limit, budget, 0)
    now: Any = redis.time()[0]  # type: ignore[index]
    redis.hset(f"stockade:usage:{limit}:{letter}:{now // length - 1}", field, 1000)
    submit(store, project)


@levels
def test_used_up_time_holds_back_what_waits(store: Store, redis: Redis, project: Tenant, level: str) -> None:
    """A job that uses the hour up lets none of those behind it start, and other tenants go on; then they go on too."""
    limit = limited(redis, project, level, cpu_seconds_per_hour=5)
    used(redis, limit, "cpu_seconds_per_hour", 0)
    open_window(redis, 1)
    first, second = submit(store, project), submit(store, project)
    attempt = store.claim(first, 1, "w")
    assert attempt is not None
    store.finish(attempt, JobResult(outcome=DONE.outcome, steps=(step_result(cpu_time=5),)))
    other = store.create(SPEC, admission(), make_project(redis, "other")).job.id
    assert [job_id for job_id, _ in published(redis)][1:] == [other]
    parked: Any = redis.zrange("stockade:parked", 0, -1, withscores=True)
    assert [name.decode() for name, _ in parked] == [f"default|{limit}"]
    now: Any = redis.time()[0]  # type: ignore[index]
    assert parked[0][1] <= (now + 61) * 1000
    used(redis, limit, "cpu_seconds_per_hour", 0)
    redis.zadd("stockade:parked", {parked[0][0]: 0})
    open_window(redis, 2)
    store.sweep(3600)
    assert [job_id for job_id, _ in published(redis)][1:] == [other, second]


@levels
def test_artifact_bytes(store: Store, redis: Redis, project: Tenant, sibling: Tenant, level: str) -> None:
    """What is kept counts until it is deleted."""
    limit = limited(redis, project, level, artifact_bytes=100)
    whose = sibling if level == "organisation" else project
    open_window(redis, 4)
    job_id = submit(store, whose)
    attempt = store.claim(job_id, 1, "w")
    assert attempt is not None
    assert store.artifact_room(project.id) == 100
    artifact = Artifact(path="a", size=100, sha256="0" * 64, mode="0644")
    store.finish(attempt, JobResult(outcome=DONE.outcome, artifacts=(artifact,)))
    assert store.artifact_room(project.id) == 0
    error = refusal(store, project)
    assert (error.budget, error.tenant, error.limit, error.used) == ("artifact_bytes", limit, 100, 100)
    assert store.delete(job_id, whose.id)
    submit(store, project)
    assert redis.hget(f"stockade:load:{limit}", "artifact_bytes") == b"0"


def test_both_levels_count_what_one_job_used(store: Store, redis: Redis, project: Tenant) -> None:
    """CPU time, memory and wall time of a job are charged to its project and to its organisation, once."""
    open_window(redis, 4)
    attempt = store.claim(submit(store, project), 1, "w")
    assert attempt is not None
    result = JobResult(outcome=DONE.outcome, steps=(step_result(cpu_time=2, wall_time=3),))
    assert store.finish(attempt, result)
    assert store.finish(attempt, result)  # its answer was lost
    memory = attempt.job.admission.steps[0].limits.memory / 1e9
    for level in (project.id, project.parent):
        for letter in "hd":
            (key,) = redis.keys(f"stockade:usage:{level}:{letter}:*")
            found: Any = redis.hgetall(key)
            assert (found[b"jobs"], found[b"outcome:exited"]) == (b"1", b"1")
            amounts = [float(found[name]) for name in (b"cpu_seconds", b"wall_seconds", b"memory_gb_seconds")]
            assert amounts == pytest.approx([2, 3, 3 * memory])


def in_threads(number: int, act: Callable[[], None]) -> None:
    """Do something in so many threads at once; what one of them raises is raised."""
    errors: list[BaseException] = []
    together = threading.Barrier(number)

    def run() -> None:
        try:
            together.wait()
            act()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run) for _ in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


@pytest.mark.parametrize(("budget", "most"), [("queued_jobs", 37), ("submits_per_minute", 37)])
def test_twenty_threads_are_let_in_to_the_number(
    store: Store, redis: Redis, project: Tenant, budget: str, most: int
) -> None:
    """Of 200 submissions from 20 threads exactly as many are accepted as the budget says."""
    limited(redis, project, "organisation", **{budget: most})
    accepted, refused = [], []

    def act() -> None:
        for _ in range(10):
            try:
                accepted.append(submit(store, project))
            except BudgetExceededError as error:
                refused.append(error.budget)

    begun = time.monotonic()
    in_threads(20, act)
    refilled = (time.monotonic() - begun) * most / 60 + 1 if budget == "submits_per_minute" else 0
    assert most <= len(accepted) <= most + refilled
    assert set(refused) == {budget}
    assert len(accepted) + len(refused) == 200


@levels
def test_twenty_threads_never_run_more_than_the_cap(
    store: Store, redis: Redis, project: Tenant, sibling: Tenant, level: str
) -> None:
    """While 20 workers take and end jobs as fast as they can, no more than the cap are out at any moment."""
    limit = limited(redis, project, level, concurrent_jobs=3)
    open_window(redis, 100)
    fill(redis, project.id, 100)
    if level == "organisation":
        fill(redis, sibling.id, 100)
    out, most, ended, lock = set(), [0], [], threading.Lock()

    def act() -> None:
        while published(redis) or redis.hget(f"stockade:load:{limit}", "running") != b"0":
            for job_id, number in published(redis)[:1]:
                redis.rpop("stockade:celery:default")
                attempt = store.claim(job_id, number, "w")
                if attempt is None:
                    continue
                with lock:
                    out.add(job_id)
                    most[0] = max(most[0], len(out))
                assert int(redis.hget(f"stockade:load:{limit}", "running") or 0) <= 3  # type: ignore[arg-type]
                with lock:
                    out.remove(job_id)
                assert store.finish(attempt, DONE)
                ended.append(job_id)
            store.sweep(0)  # a message that another thread took from under this one's eyes is published again

    in_threads(20, act)
    assert most[0] <= 3
    assert len(ended) == len(set(ended)) == (200 if level == "organisation" else 100)


def test_no_concurrent_jobs_at_all(store: Store, redis: Redis, project: Tenant) -> None:
    """A cap of 0 keeps jobs waiting; they go once it is lifted."""
    limited(redis, project, "project", concurrent_jobs=0)
    open_window(redis, 4)
    job_id = submit(store, project)
    assert published(redis) == []
    found = store.get(job_id)
    assert found is not None
    assert found.state is JobState.QUEUED
    limited(redis, project, "project", concurrent_jobs=1)
    redis.zadd("stockade:parked", {f"default|{project.id}": 0})
    store.sweep(3600)
    assert published(redis) == [(job_id, 1)]
