"""Lists of jobs: complete, in order and stable while jobs come and go; filters; nobody else's."""

import itertools
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis import Redis

from jobs import listing
from jobs.job import JobState
from jobs.job_list import JobList
from jobs.listing import Cursor, JobFilter, list_jobs
from jobs.store import Store
from tests.dispatch import DONE
from tests.jobs.conftest import TENANT, Submit

EVERY = JobFilter()
START = 1_760_000_000_000  # ms


def put(redis: Redis, project: str, job_id: str, created: int, state: str = "queued") -> None:
    """A job as the store writes it, as far as a list reads it, created at that time."""
    fields = {"tenant": project, "state": state, "attempt": 0, "created": created, "labels": "{}"}
    redis.hset(f"stockade:job:{job_id}", mapping={**fields, "policy": "default", "pool": "default"})
    redis.zadd(f"stockade:jobs:{project}", {job_id: created})


def remove(redis: Redis, project: str, job_id: str) -> None:
    """That job's end."""
    redis.delete(f"stockade:job:{job_id}")
    redis.zrem(f"stockade:jobs:{project}", job_id)


def ids(page: JobList) -> list[str]:
    """The jobs of a page."""
    return [job.id for job in page.jobs]


def pages(redis: Redis, wanted: JobFilter = EVERY, limit: int = 2, project: str = TENANT) -> list[list[str]]:
    """All pages."""
    found, cursor = [], None
    while True:
        page = list_jobs(redis, project, wanted, limit=limit, cursor=cursor)
        found.append(ids(page))
        if page.next is None:
            return found
        cursor = Cursor.parse(page.next)


def test_a_list_tells_what_there_is_to_tell(store: Store, redis: Redis, submit: Submit) -> None:
    """Newest first, each with its state, times, labels, policy, pool and outcome, as the job itself has them."""
    old = submit(command=["true"], labels={"a": "1"})
    attempt = store.claim(old.id, 1, "w")
    assert attempt is not None
    store.finish(attempt, DONE)
    remove(redis, TENANT, "none")
    redis.zadd(f"stockade:jobs:{TENANT}", {old.id: 1})
    new = submit()
    page = list_jobs(redis, TENANT, EVERY, limit=10)
    assert (ids(page), page.next) == ([new.id, old.id], None)
    first, second = page.jobs
    assert (first.state, first.outcome, first.started_at, first.labels) == (JobState.QUEUED, None, None, {})
    job = store.get(old.id)
    assert job is not None
    assert second.outcome == DONE.outcome
    assert (second.attempt, second.labels, second.policy, second.pool) == (
        1,
        {"a": "1"},
        "default",
        "default",
    )
    times = (second.created_at, second.started_at, second.finished_at)
    assert times == (job.created_at, job.started_at, job.finished_at)


def test_the_last_page_says_so(redis: Redis) -> None:
    """`next` is null when nothing is left, also where the last page is full."""
    for number in range(4):
        put(redis, TENANT, f"job_{number}", START + number)
    assert pages(redis, limit=2) == [["job_3", "job_2"], ["job_1", "job_0"]]
    assert pages(redis, limit=3) == [["job_3", "job_2", "job_1"], ["job_0"]]
    assert pages(redis, project="tenant_b") == [[]]


def test_filters_hold_together(redis: Redis, submit: Submit, store: Store) -> None:
    """A state, several labels and a time: only what meets all of them."""
    made = {
        name: submit(command=["true"], labels=labels).id
        for name, labels in {"a": {"x": "1"}, "b": {"x": "1", "y": "2"}, "c": {"y": "2"}}.items()
    }
    store.cancel(made["c"], TENANT)

    def found(**wanted: object) -> set[str]:
        listed = set(itertools.chain(*pages(redis, JobFilter(**wanted))))  # type: ignore[arg-type]
        return {name for name, job_id in made.items() if job_id in listed}

    assert found(labels=[("x", "1")]) == {"a", "b"}
    assert found(labels=[("x", "1"), ("y", "2")]) == {"b"}
    assert found(labels=[("x", "1"), ("x", "2")]) == set()
    assert found(states=frozenset([JobState.FINISHED])) == {"c"}
    assert found(states=frozenset([JobState.FINISHED, JobState.QUEUED])) == {"a", "b", "c"}
    assert found(states=frozenset([JobState.QUEUED]), labels=[("y", "2")]) == {"b"}
    now = datetime.now(UTC)
    assert found(since=now - timedelta(minutes=1), until=now + timedelta(minutes=1)) == {"a", "b", "c"}
    assert found(since=now + timedelta(minutes=1)) == found(until=now - timedelta(minutes=1)) == set()


@pytest.mark.parametrize(
    ("since", "until", "expected"), [(1, None, [3, 2, 1]), (None, 2, [1, 0]), (1, 3, [2, 1])]
)
def test_times_bound_exactly(redis: Redis, since: int | None, until: int | None, expected: list[int]) -> None:
    """`created_after` includes its moment, `created_before` does not; to the millisecond, on every page."""
    for number in range(4):
        put(redis, TENANT, f"job_{number}", START + number)

    def moment(number: int | None) -> datetime | None:
        return None if number is None else datetime.fromtimestamp((START + number) / 1000, UTC)

    wanted = JobFilter(since=moment(since), until=moment(until))
    listed = list(itertools.chain(*pages(redis, wanted, limit=1)))
    assert listed == [f"job_{number}" for number in expected]


def test_a_rare_filter_looks_at_no_more_than_it_may(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page ends after so many jobs, found or not, and the next goes on there."""
    monkeypatch.setattr(listing, "EXAMINED_MAX", 3)
    for number in range(10):
        put(redis, TENANT, f"job_{number}", START + number, state="finished" if number == 2 else "queued")
    wanted = JobFilter(states=frozenset([JobState.FINISHED]))
    assert pages(redis, wanted) == [[], [], ["job_2"], []]


def test_what_only_waits_to_be_swept_is_not_listed(redis: Redis, submit: Submit, store: Store) -> None:
    """Neither a job whose retention is over, nor one whose record is gone."""
    over, gone = submit().id, submit().id
    store.cancel(over, TENANT)
    redis.hset(f"stockade:job:{over}", "expires", 1)
    redis.delete(f"stockade:job:{gone}")
    assert pages(redis) == [[]]


@pytest.mark.parametrize(
    "text", ["", "1", "-", "x-job_1", "1-", "1-job 1", "1" * 16 + "-job_1", "1-job_1\n", "\u0661-a"]
)
def test_what_is_no_cursor_is_refused(text: str) -> None:
    """A cursor is what a page gave out."""
    with pytest.raises(ValueError, match="cursor"):
        Cursor.parse(text)


_names = itertools.count()


@given(
    born=st.lists(st.integers(0, 3), max_size=12),
    happenings=st.lists(
        st.one_of(
            st.tuples(st.just("come"), st.integers(0, 5)), st.tuples(st.just("go"), st.integers(0, 11))
        ),
        max_size=20,
    ),
    limit=st.integers(1, 4),
    rate=st.integers(0, 3),
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_stays_is_listed_exactly_once(
    redis: Redis, born: list[int], happenings: list[tuple[str, int]], limit: int, rate: int
) -> None:
    """However jobs come and go between the pages, many within one millisecond: none that stays is missed or twice."""
    project = f"tenant_{next(_names)}"
    created = {f"{project}_{number:02}": START + offset for number, offset in enumerate(born)}
    for job_id, at in created.items():
        put(redis, project, job_id, at)
    stays, todo = set(created), list(happenings)
    listed: list[str] = []
    cursor = None
    while True:
        page = list_jobs(redis, project, EVERY, limit=limit, cursor=cursor)
        assert len(page.jobs) <= limit
        listed += ids(page)
        if page.next is None:
            break
        cursor = Cursor.parse(page.next)
        for what, number in [todo.pop() for _ in range(min(rate, len(todo)))]:
            if what == "come":
                name = f"{project}_n{len(created)}"
                created[name] = START + number
                put(redis, project, name, created[name])
            elif number < len(created):
                gone = sorted(created)[number]
                stays.discard(gone)
                remove(redis, project, gone)
    assert len(listed) == len(set(listed))
    assert stays <= set(listed)
    assert listed == sorted(listed, key=lambda job_id: (created[job_id], job_id), reverse=True)
