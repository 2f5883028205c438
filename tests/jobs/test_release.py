"""Tenants get what their weights say, and none can make another wait: see `jobs/lua/lib/release.lua`.

That the scripts follow their rules is shown in test_release_model.py; here it is what these rules are good for.
"""

import itertools
import random
from collections import Counter
from typing import Any

import pytest
from redis import Redis

from jobs.job import Job, Tenant
from jobs.outcome import OutcomeKind
from jobs.store import Idempotency, Store
from jobs.tenants import create_tenant, get_tenant, remove_tenant, set_tenant
from tests.dispatch import DONE, make_project, open_window, published
from tests.jobs.played import SPEC, PlayedWorkers, admission, fill


@pytest.fixture
def store(redis: Redis) -> Store:
    """A store without workers, and a project "p"."""
    make_project(redis, "p")
    return Store(redis, lease=3600)


def project(redis: Redis, name: str, weight: float = 1, parent_weight: float | None = None) -> Tenant:
    """A project of this weight, made with its organisation where that is needed."""
    made = create_tenant(redis, name)
    assert made.parent is not None
    if parent_weight is not None:
        organisation = get_tenant(redis, made.parent)
        assert organisation is not None
        set_tenant(redis, organisation, weight=parent_weight)
    return set_tenant(redis, made, weight=weight)


def shares(workers: PlayedWorkers, jobs: int) -> dict[str, float]:
    """The part of all slot-seconds that each project had when so many jobs have ended."""
    had: Counter[str] = Counter()
    for job, seconds in itertools.islice(workers.work(), jobs):
        had[job.tenant] += seconds  # type: ignore[assignment]
    return {tenant: seconds / had.total() for tenant, seconds in had.items()}


@pytest.mark.parametrize("start", [0, 1e10])
def test_shares_follow_weights(store: Store, redis: Redis, start: float) -> None:
    """Of 2,000 jobs, organisations of the weights 1, 2, 3, 10 get their parts, to 5 %; also after some centuries."""
    weights = {project(redis, f"org{weight}", parent_weight=weight).id: weight for weight in (1, 2, 3, 10)}
    redis.hset("stockade:pass:default", "", start)
    for tenant, weight in weights.items():
        fill(redis, tenant, 2000 * weight // 16 + 30)
    got = shares(PlayedWorkers(store, 8, lambda _: 10), 2000)
    for tenant, weight in weights.items():
        assert got[tenant] == pytest.approx(weight / 16, rel=0.05)


def test_shares_follow_weights_on_two_levels(store: Store, redis: Redis) -> None:
    """An organisation's share is that of its weight, however many projects it has, and they share it by theirs.

    Jobs of the projects are of different lengths, some at random; what is shared is time, not jobs.
    """
    lengths = {"a/default": 4.0, "a/x": 2.0, "b/default": 8.0, "b/x": 3.0, "b/y": 1.0}
    weights = {"a/default": 1.0, "a/x": 3.0, "b/default": 1.0, "b/x": 1.0, "b/y": 2.0}
    expected = {"a/default": 1 / 12, "a/x": 1 / 4, "b/default": 1 / 6, "b/x": 1 / 6, "b/y": 1 / 3}
    ids = {}
    for name in lengths:
        level = name.removesuffix("/default")
        made = project(redis, level, weights[name], None if "/" in level else {"a": 1, "b": 2}[level])
        ids[made.id] = name
        fill(redis, made.id, 1500)
    dice = random.Random(7)

    def seconds(job: Job) -> float:
        return lengths[ids[job.tenant]] * (dice.choice([0.2, 1.8]) if ids[job.tenant] == "b/x" else 1)

    got = shares(PlayedWorkers(store, 8, seconds), 2000)
    assert {ids[tenant]: part for tenant, part in got.items()} == pytest.approx(expected, rel=0.05)


def waits(store: Store, arrivals: list[tuple[float, str]], lengths: dict[str, float]) -> list[float]:
    """How long each of these jobs waits for its start, on workers with 8 slots."""
    workers = PlayedWorkers(store, 8, lambda job: lengths.get(job.tenant, 1.0))
    for _ in workers.work(arrivals):
        if len(workers.waited) == len(arrivals):
            break
    return list(workers.waited.values())


@pytest.mark.slow
def test_small_tenants_hardly_notice_a_flood(store: Store, redis: Redis) -> None:
    """One tenant has 100,000 jobs waiting, nine hand in one now and then: they wait one job's length longer at most.

    The same jobs arrive at the same moments of a played clock on a system that is else idle, and beside the flood,
    whose jobs take 10 seconds each. What is compared is the wait of each from being handed in to its start.
    """
    dice = random.Random(3)
    small = [project(redis, f"small{number}").id for number in range(9)]
    moments = sorted(dice.uniform(20, 900) for _ in range(90))
    arrivals = [(moment, small[number % 9]) for number, moment in enumerate(moments)]
    idle = waits(store, arrivals, {})
    flood = project(redis, "flood").id
    redis.delete("stockade:slots")
    fill(redis, flood, 100_000)
    assert len(published(redis)) == 0
    busy = waits(store, arrivals, {flood: 10.0})
    assert redis.llen("stockade:celery:default") <= 2
    assert redis.zcard(f"stockade:backlog:default:{flood}") > 99_000
    longer = [there - here for here, there in zip(idle, busy, strict=True)]
    assert len(longer) == 90
    assert max(longer) <= 10.0
    assert sum(longer) / len(longer) < 5.0


def test_a_newcomer_does_not_pay_for_a_wrong_guess(store: Store, redis: Redis) -> None:
    """Jobs of a tenant took ten minutes until now, and take a second: who comes meanwhile is next all the same."""
    big, small = project(redis, "big").id, project(redis, "small").id
    redis.hset(f"stockade:load:{big}", "typical", 600)
    fill(redis, big, 200)
    arrivals = [(moment, small) for moment in (0.5, 5.5, 9.5, 14.5)]
    assert max(waits(store, arrivals, {big: 1.0})) <= 1.0


def test_time_had_while_nobody_waited_is_not_held_against_anyone(store: Store, redis: Redis) -> None:
    """A tenant that had the machine to itself all day, with jobs much longer than usual, shares with a newcomer."""
    old, new = project(redis, "old").id, project(redis, "new").id
    fill(redis, old, 8)
    assert len(list(PlayedWorkers(store, 8, lambda _: 3600).work())) == 8
    redis.delete("stockade:slots")
    fill(redis, new, 100)
    for _ in range(100):
        store.create(SPEC, admission(), old)
    for tenant in (old, new):
        redis.hset(f"stockade:load:{tenant}", "typical", 10)
    got = shares(PlayedWorkers(store, 8, lambda _: 10), 100)
    assert got[old] == pytest.approx(0.5, abs=0.05)


def test_long_jobs_are_charged_while_they_run(store: Store, redis: Redis) -> None:
    """Whose jobs took moments until now and run for hours cannot take each slot that others free in the meantime."""
    sly, honest = project(redis, "sly").id, project(redis, "honest").id
    redis.hset(f"stockade:load:{sly}", "typical", 0.05)
    redis.hset(f"stockade:load:{honest}", "typical", 10)
    open_window(redis, 4)
    fill(redis, sly, 100)
    attempts = [store.claim(job_id, number, "w") for job_id, number in published(redis)]
    fill(redis, honest, 100)
    for attempt in attempts:
        assert attempt is not None
        redis.hincrby(f"stockade:job:{attempt.job.id}", "started", -60_000)
    store.renew([attempt for attempt in attempts if attempt])
    redis.delete("stockade:celery:default")
    open_window(redis, 24)
    store.sweep(3600)
    released = [job_id for job_id, _ in published(redis)]
    assert len(released) == 25
    assert all(honest in job_id for job_id in released)


def test_idling_earns_nothing(store: Store, redis: Redis) -> None:
    """Who comes back after a long time gets its share from then on, and not what it left unused."""
    busy, idler = project(redis, "busy").id, project(redis, "idler").id
    fill(redis, idler, 1)
    fill(redis, busy, 500)
    workers = PlayedWorkers(store, 4, lambda _: 10)
    shares(workers, 200)
    for number in range(200):
        store.create(SPEC, admission(), idler, idempotency=Idempotency(str(number), b""))
    assert shares(workers, 200)[busy] == pytest.approx(0.5, abs=0.05)


def test_what_was_left_unused_is_not_had_when_an_old_job_ends(store: Store, redis: Redis) -> None:
    """Whose job held a slot while others had theirs starts beside them, and stays there when that job ends."""
    busy, idler = project(redis, "busy"), project(redis, "idler")
    fill(redis, idler.id, 1)
    open_window(redis, 1)
    store.sweep(3600)
    held = store.claim(*published(redis)[0], "w")
    assert held is not None
    redis.delete("stockade:celery:default")
    fill(redis, busy.id, 500)
    workers = PlayedWorkers(store, 4, lambda _: 10)
    shares(workers, 100)
    for number in range(300):
        store.create(SPEC, admission(), idler.id, idempotency=Idempotency(str(number), b""))
    store.cancel(held.job.id, idler.id)
    assert store.finish(held, DONE)
    assert shares(workers, 200)[busy.id] == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("weight", [0.01, 1000])
def test_a_new_weight_counts_from_now_on(store: Store, redis: Redis, weight: float) -> None:
    """What a tenant had under an extreme weight makes it neither wait nor rule for long under a usual one."""
    changed, other = project(redis, "changed", weight), project(redis, "other")
    fill(redis, changed.id, 400)
    fill(redis, other.id, 400)
    workers = PlayedWorkers(store, 4, lambda _: 10)
    shares(workers, 100)
    set_tenant(redis, changed, weight=1)
    assert shares(workers, 200)[changed.id] == pytest.approx(0.5, abs=0.05)


def test_first_in_first_out_within_a_class(store: Store, redis: Redis) -> None:
    """Of one project the higher priority goes first, and of equals the earlier."""
    handed_in = []
    for number in range(30):
        priority = list(type(admission().priority))[number % 3]
        job = store.create(SPEC, admission(priority=priority), "p").job
        handed_in.append((priority.rank, number, job.id))
    open_window(redis, 100)
    store.sweep(3600)
    assert [job_id for job_id, _ in published(redis)] == [job_id for _, _, job_id in sorted(handed_in)]


def test_capped_tenants_do_not_hide_who_may(store: Store, redis: Redis) -> None:
    """However many tenants that may have nothing now stand first, the one behind them is served within some sweeps."""
    for number in range(600):
        made = project(redis, f"capped{number}")
        set_tenant(redis, made, budgets={"concurrent_jobs": 0})
        fill(redis, made.id, 1)
    redis.hset("stockade:pass:default", "", 5)
    job = store.create(SPEC, admission(), project(redis, "zz").id).job
    open_window(redis, 4)
    for _ in range(10):
        redis.zrange("stockade:parked", 0, -1)
        for each in redis.zrange("stockade:parked", 0, -1):
            redis.zadd("stockade:parked", {each: 0})
        store.sweep(3600)
    assert published(redis) == [(job.id, 1)]


def test_what_is_late_takes_no_place(store: Store, redis: Redis) -> None:
    """However many jobs that may not start any more stand first, they end, and the one behind them is released."""
    dead, alive = project(redis, "dead").id, project(redis, "alive").id
    fill(redis, dead, 300)
    job = store.create(SPEC, admission(), alive).job
    redis.hset(f"stockade:load:{dead}", "typical", 0.05)
    for number in range(300):
        redis.hset(f"stockade:job:job_{dead}_{number}", "starts_by", 1)
    redis.delete("stockade:due")
    open_window(redis, 4)
    store.sweep(3600)
    store.sweep(3600)
    assert published(redis) == [(job.id, 1)]
    assert redis.hget(f"stockade:load:{dead}", "queued") == b"0"
    assert redis.hget(f"stockade:load:{dead}", "running") in (None, b"0")
    ended = store.get(f"job_{dead}_0")
    assert ended is not None
    assert ended.result is not None
    assert ended.result.outcome.kind is OutcomeKind.QUEUE_TIME_EXCEEDED
    events: Any = redis.xrange("stockade:events")
    assert sum(fields[b"state"] == b"finished" for _, fields in events) == 300


def test_turns_that_come_to_nothing_are_turns(store: Store, redis: Redis) -> None:
    """A tenant whose jobs all come too late does not keep the turn from one that has had a lot."""
    dead, alive = project(redis, "dead"), project(redis, "alive")
    fill(redis, dead.id, 300)
    for number in range(300):
        redis.hset(f"stockade:job:job_{dead.id}_{number}", "starts_by", 1)
    redis.delete("stockade:due")
    for path in ("default", f"default:{alive.parent}"):
        redis.hset(f"stockade:pass:{path}", alive.id if ":" in path else alive.parent or "", 1)
    job = store.create(SPEC, admission(), alive.id).job
    open_window(redis, 1)
    store.sweep(3600)
    assert published(redis) == [(job.id, 1)]
    assert redis.zcard(f"stockade:backlog:default:{dead.id}") > 250


def test_a_job_that_is_claimed_too_late_makes_room(store: Store, redis: Redis) -> None:
    """It ends there and then, its message gone, and the next takes its place."""
    open_window(redis, 1)
    late, following = (store.create(SPEC, admission(), "p").job for _ in range(2))
    redis.hset(f"stockade:job:{late.id}", "ends_by", 1)
    assert store.claim(late.id, 1, "w") is None
    ended = store.get(late.id)
    assert ended is not None
    assert ended.result is not None
    assert ended.result.outcome.kind is OutcomeKind.DEADLINE_EXCEEDED
    assert published(redis) == [(following.id, 1)]
    assert redis.hget("stockade:load:p", "running") == b"1"


def test_room_in_another_pool_is_used_at_once(store: Store, redis: Redis) -> None:
    """A project at its cap waits in two pools: the end of its job in one releases that in the other."""
    made = project(redis, "p")
    set_tenant(redis, made, budgets={"concurrent_jobs": 1})
    open_window(redis, 4, ("default", "bigmem"))
    first = store.create(SPEC, admission(), made.id).job
    second = store.create(SPEC, admission(pool="bigmem"), made.id).job
    assert published(redis, "bigmem") == []
    attempt = store.claim(first.id, 1, "w")
    assert attempt is not None
    assert store.finish(attempt, DONE)
    assert published(redis, "bigmem") == [(second.id, 1)]


def test_cancelled_jobs_leave_the_queue(store: Store, redis: Redis) -> None:
    """Who submits and cancels in a loop leaves no messages for which others would have to wait."""
    open_window(redis, 4)
    for _ in range(50):
        job = store.create(SPEC, admission(), "p").job
        store.cancel(job.id, "p")
    assert published(redis) == []


def test_a_removed_tenant_leaves_nothing_in_the_orders(store: Store, redis: Redis) -> None:
    """Passes, charges and places of a removed organisation are gone, and nothing of its artifacts is counted."""
    made = project(redis, "gone")
    fill(redis, made.id, 3)
    for _ in PlayedWorkers(store, 2, lambda _: 1).work():
        pass
    organisation = get_tenant(redis, made.parent or "")
    assert organisation is not None
    redis.hset(f"stockade:job:job_{made.id}_0", "artifact_bytes", 10)
    remove_tenant(redis, organisation, force=True)
    assert store.delete(f"job_{made.id}_0", made.id)
    for key in redis.keys("stockade:pass:*") + redis.keys("stockade:ahead:*") + redis.keys("stockade:load:*"):
        assert made.id.encode() not in key
        assert organisation.id.encode() not in key
        fields = redis.hkeys(key)
        assert made.id.encode() not in fields
        assert organisation.id.encode() not in fields


def test_a_project_takes_its_artifacts_out_of_the_organisations_sum(store: Store, redis: Redis) -> None:
    """What a removed project kept does not count for its organisation for ever."""
    create_tenant(redis, "org")
    made = create_tenant(redis, "org/p")
    for level in (made.id, made.parent):
        redis.hset(f"stockade:load:{level}", "artifact_bytes", 10)
    remove_tenant(redis, made)
    assert redis.hget(f"stockade:load:{made.parent}", "artifact_bytes") == b"0"


def test_a_key_that_is_used_again_is_remembered_again(store: Store, redis: Redis) -> None:
    """After a job's retention its idempotency key makes a new job, and the sweep of the old forgets only that."""
    open_window(redis, 4)
    key = Idempotency("k", b"body")
    first = store.create(SPEC, admission(), "p", idempotency=key).job
    store.cancel(first.id, "p")
    redis.hset(f"stockade:job:{first.id}", "expires", 1)
    redis.delete(*redis.keys("stockade:idempotency:*"))  # it expires at the same moment
    redis.zadd("stockade:expiry", {first.id: 1})
    second = store.create(SPEC, admission(), "p", idempotency=key)
    assert not second.again
    store.sweep(3600)
    assert store.get(first.id) is None
    assert store.create(SPEC, admission(), "p", idempotency=key).job.id == second.job.id
