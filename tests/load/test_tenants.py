"""Two hundred tenants at once, on the real kernel: each gets what is its own, exactly, and nothing is left over."""

import math
import os
import re
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from redis import Redis

from bench.figures import number, percentile, table
from jobs import keys, tenants
from jobs.events import STREAM
from jobs.settings import Settings
from jobs.store import connect
from stockade.valkey_users import User, Users
from tests import census
from tests.load.traffic import Project, Traffic
from tests.stack import PATIENCE, Up, free_port, left_of

pytestmark = [pytest.mark.kernel, pytest.mark.e2e, pytest.mark.slow]

SECONDS = float(os.environ.get("STOCKADE_LOAD_SECONDS", "12"))
"""For how long the tenants send."""
JOBS = int(SECONDS * 60)
"""How many jobs they hand in at most."""
SLOTS = 4
ORGANISATIONS, EACH = 20, 10
SUBMITS = 4
"""A budget: jobs that some may hand in within a minute."""
GROWTH = 256 << 20
"""Bytes that a process may grow by; it is a leak that is looked for, not a figure."""
SOURCE = Path(__file__).resolve().parents[2] / "worker"


@pytest.fixture(scope="module")
def metrics_port() -> int:
    """Where this service's metrics are."""
    return free_port()


@pytest.fixture(scope="module")
def up(metrics_port: int) -> Iterator[Up]:
    """A running service for this module."""
    home = Path(f"/tmp/stockade-test-load-{os.getpid()}")
    home.mkdir(mode=0o755)
    up = Up(home / "state")
    try:
        up.start("--slots", str(SLOTS), "--metrics", f"127.0.0.1:{metrics_port}")
        yield up
        assert up.stop() == 0
        assert left_of(up.state) == []
    finally:
        if up.started and up.process.poll() is None:
            up.process.kill()
            up.process.wait()
        shutil.rmtree(home)


@pytest.fixture(scope="module")
def store(up: Up) -> Iterator[Redis]:
    """Its Redis, as the operator has it."""
    with connect(Settings(redis=Users.load(up.state).url(User.ADMIN))) as redis:
        yield redis


def make_projects(redis: Redis) -> list[Project]:
    """Projects with keys, ten to an organisation; some have budgets, and so has the first organisation."""
    made = []
    for organisation in range(ORGANISATIONS):
        for name in (f"load{organisation}", *(f"load{organisation}/p{n}" for n in range(1, EACH))):
            tenant = tenants.create_tenant(redis, name)
            made.append(Project(tenant, keys.create_key(redis, tenant)))
    first = tenants.find_tenant(redis, "load0")
    assert first is not None
    tenants.set_tenant(redis, first, budgets={"submits_per_minute": SUBMITS})
    for organisation in range(1, ORGANISATIONS):
        several = made[organisation * EACH :]
        tenants.set_tenant(redis, several[1].tenant, budgets={"submits_per_minute": SUBMITS})
        tenants.set_tenant(redis, several[2].tenant, budgets={"concurrent_jobs": 1})
        tenants.set_tenant(redis, several[3].tenant, budgets={"queued_jobs": 0})
    return made


def warm_up(up: Up) -> None:
    """Have every slot used once, so that what the service makes at the first use is there."""
    with up.client() as client:
        sent = [client.post("/v1/jobs", json={"command": ["sleep", "0.5"]}) for _ in range(3 * SLOTS)]
        for answer in sent:
            up.finished(answer.raise_for_status().json()["id"])


def wait_for_all(redis: Redis, jobs: int) -> list[dict[bytes, bytes]]:
    """Every event there was, once so many jobs have finished; waits as long as any does now and then."""
    seen, since = -1, time.monotonic()
    while time.monotonic() - since < PATIENCE:
        entries: Any = redis.xrange(STREAM)
        finished = sum(entry[b"state"] == b"finished" for _, entry in entries)
        if finished >= jobs:
            return [entry for _, entry in entries]
        if finished > seen:
            seen, since = finished, time.monotonic()
        time.sleep(0.25)
    raise AssertionError(f"{finished} of {jobs} jobs have finished, and no more do")


def resident(up: Up) -> dict[str, int]:
    """Bytes of memory of each process of the service."""
    found = {}
    for name, pid in up.pids().items():
        (kilobytes,) = re.findall(r"^VmRSS:\s+(\d+) kB", census.read(f"/proc/{pid}/status"), re.MULTILINE)
        found[name] = int(kilobytes) << 10
    return found


def most_at_once(events: list[dict[bytes, bytes]], tenant: str) -> int:
    """How many jobs of a tenant were running at one time, at the most."""
    running, most = set(), 0
    for event in events:
        if event[b"tenant"].decode() == tenant:
            (running.add if event[b"state"] == b"running" else running.discard)(event[b"job"])
            most = max(most, len(running))
    return most


def allowed_submits(projects: list[Project]) -> int:
    """The most that projects with one budget of `SUBMITS` can have handed in: a bucket that fills evenly."""
    begun, ended = min(each.first for each in projects), max(each.last for each in projects)
    return SUBMITS + math.ceil((ended - begun) * SUBMITS / 60)


def over_budget(port: int) -> int:
    """How often budgets refused a job, as the service has counted."""
    text = httpx.get(f"http://127.0.0.1:{port}/metrics", trust_env=False).text
    found = re.findall(
        r'^stockade_jobs_submitted_total\{.*result="over-budget".*\} ([0-9.e+]+)$', text, re.MULTILINE
    )
    return int(sum(map(float, found)))


def report(traffic: Traffic, before: dict[str, int], after: dict[str, int], jobs: int, seconds: float) -> str:
    """What was measured, as tables."""
    times = [
        (what, str(len(took)), *(number(percentile(took, part) * 1e3) for part in (50, 99)))
        for what, took in sorted(traffic.took.items())
    ]
    memory = [(name, *(number(each[name] / 1e6) for each in (before, after))) for name in sorted(before)]
    title = f"{ORGANISATIONS * EACH} tenants, {jobs} jobs, {number(jobs / seconds)} a second"
    return "\n".join(
        (
            table(title, ("", "requests", "p50 ms", "p99 ms"), times),
            table("resident memory", ("", "MB before", "MB after"), memory),
        )
    )


def test_two_hundred_tenants_at_once(up: Up, store: Redis, metrics_port: int) -> None:
    """Each job that was accepted ends once, nobody sees another's, budgets hold to the number, nothing is left."""
    projects = make_projects(store)
    warm_up(up)
    store.delete(STREAM)
    before = resident(up)
    with census.unchanged(up.pids()["launcher"], up.state / "launcher", SOURCE):
        begun = time.monotonic()
        traffic = Traffic(f"http://{up.listen}", projects, SECONDS, JOBS)
        traffic.run()
        accepted = [job_id for project in projects for job_id in project.accepted]
        events = wait_for_all(store, len(accepted))
        seconds = time.monotonic() - begun
    print("\n" + report(traffic, before, after := resident(up), len(accepted), seconds))

    ends = Counter(event[b"job"].decode() for event in events if event[b"state"] == b"finished")
    assert ends == dict.fromkeys(accepted, 1)
    assert {event[b"outcome"] for event in events if event[b"state"] == b"finished"} == {b"exited"}
    check_each_sees_its_own(up, projects)
    check_budgets(projects, events)
    assert over_budget(metrics_port) == sum(project.refused for project in projects)
    check_loads(store, projects)
    assert all(after[name] - before[name] < GROWTH for name in before)


def check_each_sees_its_own(up: Up, projects: list[Project]) -> None:
    """Every project reads the jobs that it handed in, and gets 404 for those of its neighbour."""
    with httpx.Client(base_url=f"http://{up.listen}", trust_env=False, timeout=60) as client:
        for project, neighbour in zip(projects, projects[1:] + projects[:1], strict=True):
            for job_id in project.accepted[-2:]:
                mine = client.get(f"/v1/jobs/{job_id}", headers=project.headers)
                assert (mine.status_code, mine.json()["state"]) == (200, "finished")
                assert client.get(f"/v1/jobs/{job_id}", headers=neighbour.headers).status_code == 404
            listed = client.get("/v1/jobs?limit=100", headers=project.headers).json()["jobs"]
            assert {job["id"] for job in listed} == set(project.accepted)
            usage = client.get("/v1/usage", headers=project.headers).json()
            assert sum(row["jobs"] for row in usage["rows"]) == len(project.accepted)


def check_budgets(projects: list[Project], events: list[dict[bytes, bytes]]) -> None:
    """Those with a budget were refused when it was used up and not before; the others never."""
    first = projects[:EACH]
    assert SUBMITS <= sum(len(project.accepted) for project in first) <= allowed_submits(first)
    for organisation in range(1, ORGANISATIONS):
        free, rated, single, unqueued, *others = projects[organisation * EACH :][:EACH]
        tried = len(rated.accepted) + rated.refused
        assert min(tried, SUBMITS) <= len(rated.accepted) <= allowed_submits([rated])
        assert most_at_once(events, single.tenant.id) <= 1
        assert unqueued.accepted == [] and unqueued.refused > 0
        assert sum(each.refused for each in (free, single, *others)) == 0


def check_loads(redis: Redis, projects: list[Project]) -> None:
    """No tenant, project or organisation, is thought to have a job that waits or runs."""
    found: Any = {
        name.decode(): redis.hmget(name, "queued", "running") for name in redis.scan_iter("stockade:load:*")
    }
    assert {f"stockade:load:{project.tenant.id}" for project in projects if project.accepted} <= set(found)
    assert {value for load in found.values() for value in load} <= {None, b"0"}
