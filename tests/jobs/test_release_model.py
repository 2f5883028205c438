"""The fair release does in Redis what its rules say: it is run beside a model of them in plain Python.

How long a job ran decides whose turn comes next, and that is a matter of clocks. The test plays it: before a job
ends, its start is set back by the seconds that it shall have run. The model takes what it really was, to the
millisecond, from the job's record. Likewise the time of those who are parked is made to have come before each sweep,
and a lease or the time in the queue to have run out where that is what happens.
"""

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from redis import Redis

from jobs.job import ATTEMPTS_MAX, Attempt, JobResult
from jobs.outcome import Outcome, OutcomeKind
from jobs.scripts import script
from jobs.settings import Settings
from jobs.spec import JobSpec
from jobs.store import BudgetExceededError, Renewal, Store, connect
from jobs.tenants import get_tenant, set_tenant
from jobs.workers import Workers, WorkerStatus
from policies.admission import admit
from policies.loader import load_policies
from policies.policy import Priority
from tests.dispatch import make_project, published
from tests.jobs.release_model import Model, Tenant
from tests.jobs.results import step_result

POOLS = ["default", "bigmem"]
ORGANISATIONS = {"org_a": ["a1", "a2"], "org_b": ["b1"]}
PROJECTS = [*(project for projects in ORGANISATIONS.values() for project in projects), "alone"]
"""`alone` is in no organisation."""
TENANTS = [*ORGANISATIONS, *(project for project in PROJECTS if project != "alone")]
SPEC = JobSpec.model_validate_json('{"command": ["true"]}')
ADMISSION = admit(SPEC, load_policies()["default"])

some = st.integers(0, 10_000)
caps = st.none() | st.integers(0, 3)
pools, projects, tenants = st.sampled_from(POOLS), st.sampled_from(PROJECTS), st.sampled_from(TENANTS)


def make_tenants(redis: Redis) -> dict[str, Tenant]:
    """The tenants, in the store and for the model; their ids are fixed, so that ties fall the same way each time."""
    make = script(redis, "tenant_create")
    for organisation, members in ORGANISATIONS.items():
        for number, member in enumerate(members):
            keys = ["stockade:tenant_names", f"stockade:tenant_projects:{organisation}"]
            keys += [f"stockade:tenant:{organisation}", f"stockade:tenant:{member}"]
            name = organisation if number == 0 else ""
            make(keys, [organisation, name, member, f"{organisation}/{member}", "stockade:tenant:"])
    make_project(redis, "alone")
    parents = {member: organisation for organisation, members in ORGANISATIONS.items() for member in members}
    return {name: Tenant(parents.get(name)) for name in [*ORGANISATIONS, *PROJECTS]}


class Release(RuleBasedStateMachine):
    """Jobs come, run and end, tenants change; after each step Redis and the model agree about everything."""

    redis: Redis

    def __init__(self) -> None:
        super().__init__()
        self.redis.flushall()
        self.store = Store(self.redis, lease=3600)
        self.reaper = Store(self.redis, lease=0.001)
        self.model = Model(make_tenants(self.redis), POOLS)
        self.attempts: dict[str, Attempt] = {}
        self.redis.sadd("stockade:pools", *POOLS)

    @initialize(slots=st.tuples(*2 * [st.integers(1, 9)]), concurrent=st.tuples(*len(TENANTS) * [caps]))
    def begin(self, slots: tuple[int, ...], concurrent: tuple[int | None, ...]) -> None:
        """Some workers live, and some tenants may have only so many jobs at a time."""
        for tenant, most in zip(TENANTS, concurrent, strict=True):
            self.limit(tenant, most, None, None)
        for pool, number in zip(POOLS, slots, strict=True):
            self.have_slots(pool, number)

    def sweep(self) -> None:
        """A sweep for which everybody's time to be looked at has come."""
        for each in self.redis.zrange("stockade:parked", 0, -1):
            self.redis.zadd("stockade:parked", {each: 0})
        self.reaper.sweep(lost_after=3600)

    def swept(self) -> None:
        """The same in the model, behind what ended in it."""
        self.model.reviews()
        for pool in self.known_pools():
            self.model.release(pool)

    def known_pools(self) -> list[str]:
        """The pools in the order in which scripts go through them."""
        self.model.pools = [pool.decode() for pool in self.redis.smembers("stockade:pools")]
        return self.model.pools

    def field(self, job_id: str, name: str) -> int:
        """A number of a job's record."""
        value: Any = self.redis.hget(f"stockade:job:{job_id}", name)
        return int(value)

    def ran(self, job_id: str) -> float:
        """Seconds that a finished job ran in its last attempt, as the record has it."""
        return (self.field(job_id, "finished") - self.field(job_id, "started")) / 1000

    @rule(pool=pools, slots=st.integers(0, 9))
    def have_slots(self, pool: str, slots: int) -> None:
        """Workers come, grow, shrink and go; the next sweep sees it."""
        self.model.slots[pool] = slots
        for name in POOLS:
            status = WorkerStatus(
                name=name, slots=self.model.slots[name], running=0, pools=(name,), launcher=None
            )
            Workers(self.redis).heartbeat(status)
        self.sweep()
        self.swept()

    @rule(project=projects, pool=pools, priority=st.sampled_from(Priority), jobs=st.integers(1, 6))
    def submit(self, project: str, pool: str, priority: Priority, jobs: int) -> None:
        """Jobs are handed in; over a budget they are refused, and nothing has happened."""
        admission = ADMISSION.model_copy(update={"pool": pool, "priority": priority})
        for _ in range(jobs):
            refused = self.model.refused(project)
            try:
                job = self.store.create(SPEC, admission, project).job
            except BudgetExceededError as error:
                assert (error.budget, error.tenant) == refused
            else:
                assert refused is None
                self.model.create(job.id, project, pool, priority.rank)

    @rule(pool=pools)
    def take(self, pool: str) -> None:
        """A worker fetches the next message and claims the job, if that is still to be run."""
        raw: Any = self.redis.rpop(f"stockade:celery:{pool}")
        assert (raw is None) == (not self.model.queue[pool])
        if raw is None:
            return
        job_id, number = json.loads(json.loads(raw)["body"])[0]
        attempt = self.store.claim(job_id, number, "w")
        expected = self.model.claim(pool)
        assert (attempt and (attempt.job.id, attempt.number)) == expected
        if attempt is not None:
            self.attempts[job_id] = attempt

    @rule(which=some)
    def jump(self, which: int) -> None:
        """What waits for its turn cannot be claimed, whoever writes a message for it."""
        if waiting := [job_id for job_id, entry in self.model.jobs.items() if entry.state == "queued"]:
            assert self.store.claim(waiting[which % len(waiting)], 1, "w") is None

    def holder(self, which: int) -> str:
        return sorted(self.attempts, key=lambda job_id: self.model.jobs[job_id].place)[
            which % len(self.attempts)
        ]

    @precondition(lambda self: self.attempts)
    @rule(which=some, seconds=st.sampled_from([0, 1, 7, 40, 600]), cpu=st.sampled_from([0, 1, 3]))
    def finish(self, which: int, seconds: int, cpu: int) -> None:
        """A job ends after so many seconds."""
        job_id = self.holder(which)
        attempt = self.attempts.pop(job_id)
        self.redis.hincrby(f"stockade:job:{job_id}", "started", -seconds * 1000)
        outcome = Outcome(kind=OutcomeKind.EXITED, exit_code=0, message="It exited with status 0.")
        assert self.store.finish(attempt, JobResult(outcome=outcome, steps=(step_result(cpu_time=cpu),)))
        self.known_pools()
        self.model.finish(job_id, self.ran(job_id), cpu)

    @precondition(lambda self: self.attempts)
    @rule(which=some, seconds=st.sampled_from([0, 5, 100]))
    def renew(self, which: int, seconds: int) -> None:
        """A worker says that it is still at it, after so many seconds more."""
        job_id = self.holder(which)
        self.redis.hincrby(f"stockade:job:{job_id}", "started", -seconds * 1000)
        cancelling = self.model.jobs[job_id].state == "cancelling"
        answer = self.store.renew([self.attempts[job_id]])
        assert answer == [Renewal.CANCELLING if cancelling else Renewal.RENEWED]
        charged: Any = self.redis.hget(f"stockade:job:{job_id}", "charged")
        self.model.renew(job_id, float(charged))

    @precondition(lambda self: self.attempts)
    @rule(which=some, stopped=st.booleans())
    def fail(self, which: int, stopped: bool) -> None:
        """We fail, or the worker is stopped: the job is tried again, or ends."""
        job_id = self.holder(which)
        attempt, entry = self.attempts.pop(job_id), self.model.jobs[job_id]
        again = entry.state == "running" and (stopped or attempt.number < ATTEMPTS_MAX)
        if stopped:
            failure = self.store.give_back(attempt)
        else:
            failure = self.store.fail_attempt(attempt, OutcomeKind.SANDBOX_ERROR, "It failed.")
        assert failure == (True, attempt.number + 1 if again else None)
        self._failed(job_id, again)

    def _failed(self, job_id: str, again: bool) -> None:
        self.known_pools()
        if again:
            self.model.retry(job_id)
        else:
            self.model.finish(job_id, self.ran(job_id))

    @precondition(lambda self: self.attempts)
    @rule(which=some)
    def vanish(self, which: int) -> None:
        """A worker is gone, and its lease runs out."""
        job_id = self.holder(which)
        attempt, entry = self.attempts.pop(job_id), self.model.jobs[job_id]
        pool = entry.pool
        self.redis.zadd(f"stockade:leases:{pool}", {job_id: 1})
        again = entry.state == "running" and attempt.number < ATTEMPTS_MAX
        self.sweep()
        self.model.reviews()
        for each in self.known_pools():
            if each == pool:
                self._failed(job_id, again)
            self.model.release(each)
        assert not self.store.finish(attempt, JobResult(outcome=attempt_outcome()))

    @precondition(lambda self: self.model.jobs)
    @rule(which=some)
    def cancel(self, which: int) -> None:
        """A job is cancelled, wherever it is."""
        job_id = list(self.model.jobs)[which % len(self.model.jobs)]
        entry = self.model.jobs[job_id]
        assert self.store.cancel(job_id, entry.project) is not None
        self.known_pools()
        if entry.state in ("queued", "released"):
            self.model.finish(job_id, None)
        elif entry.state == "running":
            entry.state = "cancelling"

    @rule(which=some)
    def come_too_late(self, which: int) -> None:
        """A job has waited for its first start longer than it may."""
        waiting = [
            job_id
            for job_id, entry in self.model.jobs.items()
            if entry.state in ("queued", "released") and entry.attempt == 0
        ]
        if not waiting:
            return
        job_id = waiting[which % len(waiting)]
        self.redis.hset(f"stockade:job:{job_id}", "starts_by", 1)
        self.redis.zadd("stockade:due", {job_id: 1})
        self.sweep()
        self.known_pools()
        self.model.finish(job_id, None)
        self.swept()

    @rule(which=some)
    def delete(self, which: int) -> None:
        """A finished job is deleted, and no other."""
        if not self.model.jobs:
            return
        job_id = list(self.model.jobs)[which % len(self.model.jobs)]
        finished = self.model.jobs[job_id].state == "finished"
        assert self.store.delete(job_id, self.model.jobs[job_id].project) is finished
        if finished:
            del self.model.jobs[job_id]

    @rule(tenant=tenants, weight=st.sampled_from([0.25, 1, 2, 8]))
    def weigh(self, tenant: str, weight: float) -> None:
        """A tenant gets another weight."""
        found = get_tenant(self.redis, tenant)
        assert found is not None
        set_tenant(self.redis, found, weight=weight)
        self.known_pools()
        self.model.reweigh(tenant, weight)

    @rule(
        tenant=tenants,
        concurrent=caps,
        queued=st.none() | st.integers(1, 5),
        cpu=st.none() | st.integers(0, 8),
    )
    def limit(self, tenant: str, concurrent: int | None, queued: int | None, cpu: int | None) -> None:
        """A tenant's budgets change; the next sweep sees it."""
        found, has = get_tenant(self.redis, tenant), self.model.tenants[tenant]
        assert found is not None
        budgets = {"concurrent_jobs": concurrent, "queued_jobs": queued, "cpu_seconds_per_day": cpu}
        set_tenant(self.redis, found, budgets=budgets)
        has.concurrent_jobs, has.queued_jobs, has.cpu_seconds_per_day = concurrent, queued, cpu
        self.sweep()
        self.known_pools()
        self.swept()

    @invariant()
    def same_queues(self) -> None:
        """The same jobs are released, in the same order; those in the backlogs wait in the same order."""
        for pool in POOLS:
            assert published(self.redis, pool) == self.model.queue[pool]
            assert self.names(f"stockade:released:{pool}") == set(self.model.in_flight(pool, "released"))
            running = self.model.in_flight(pool, "running", "cancelling")
            assert self.names(f"stockade:leases:{pool}") == set(running)
            for project in PROJECTS:
                waiting: Any = self.redis.zrange(f"stockade:backlog:{pool}:{project}", 0, -1)
                assert [job_id.decode() for job_id in waiting] == self.model.backlog(pool, project)

    @invariant()
    def same_turns(self) -> None:
        """The same tenants stand in the orders and are parked, at the same passes."""
        assert self.names("stockade:parked") == {"|".join(each) for each in self.model.parked}
        for pool in POOLS:
            for path in [(pool,), *((pool, group) for group in [*ORGANISATIONS, "alone"])]:
                turns, key = self.model.turns[path], ":".join(path)
                order = {
                    name.decode(): score
                    for name, score in self.redis.zrange(f"stockade:order:{key}", 0, -1, withscores=True)
                }
                passes = self.numbers(f"stockade:pass:{key}")
                start = passes.pop("", 0.0)
                ahead = self.numbers(f"stockade:ahead:{key}")
                assert order == pytest.approx(turns.order)
                assert passes == pytest.approx(turns.passes)
                assert ahead == pytest.approx(turns.ahead)
                assert start == pytest.approx(turns.start, abs=1e-9)
                turns.order, turns.passes, turns.ahead, turns.start = order, passes, ahead, start

    @invariant()
    def same_counters(self) -> None:
        """What each tenant has that waits and runs, and what its jobs usually take."""
        for tenant in [*TENANTS, "alone"]:
            load = self.numbers(f"stockade:load:{tenant}")
            assert load.get("queued", 0) == self.model.count(tenant, "queued")
            running = self.model.count(tenant, "released", "running", "cancelling")
            assert load.get("running", 0) == running
            assert load.get("typical") == pytest.approx(self.model.typical.get(tenant))

    @invariant()
    def nobody_waits_in_vain(self) -> None:
        """Where there is room, all who wait are at one of their limits."""
        for pool in POOLS:
            for project in PROJECTS:
                if self.model.room(pool) > 0 and self.model.backlog(pool, project):
                    assert any(self.model.barred(level) for level in self.model.chain(project))

    def names(self, key: str) -> set[str]:
        """The members of a sorted set."""
        return {name.decode() for name in self.redis.zrange(key, 0, -1)}

    def numbers(self, key: str) -> dict[str, float]:
        """A hash of numbers."""
        found: Any = self.redis.hgetall(key)
        return {name.decode(): float(value) for name, value in found.items()}

    def teardown(self) -> None:
        """Each job that ended was announced once."""
        events: Any = self.redis.xrange("stockade:events")
        finished = [fields[b"job"].decode() for _, fields in events if fields[b"state"] == b"finished"]
        assert len(finished) == len(set(finished))
        ended = {job_id for job_id, entry in self.model.jobs.items() if entry.state == "finished"}
        assert ended <= set(finished)


def attempt_outcome() -> Outcome:
    return Outcome(kind=OutcomeKind.EXITED, exit_code=0, message="It exited with status 0.")


def test_release_does_what_its_rules_say(redis_url: str) -> None:
    """Whatever happens in whatever order: no job is lost or in two places, and turns are taken by the rules."""
    with connect(Settings(redis=redis_url)) as client:
        machine = type("Machine", (Release,), {"redis": client})
        run_state_machine_as_test(
            machine,
            settings=settings(
                max_examples=30,
                stateful_step_count=50,
                deadline=None,
                suppress_health_check=list(HealthCheck),
                database=None,
            ),
        )
