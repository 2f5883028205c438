"""The rules of the fair release (`jobs/lua/lib/release.lua`) once more, in plain Python and without Redis.

Slow, simple, one thing at a time: what the store's scripts do in one step each is here a method of `Model` each.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

FLOOR, FIRST = 0.05, 1.0
"""Seconds that a job is charged at least, and ahead while nothing is known of its project."""


@dataclass
class Tenant:
    """A project or an organisation."""

    parent: str | None
    weight: float = 1.0
    concurrent_jobs: int | None = None
    queued_jobs: int | None = None
    cpu_seconds_per_day: float | None = None


@dataclass
class Entry:
    """A job."""

    project: str
    pool: str
    place: tuple[int, int]
    """Its priority class and the number of its arrival."""
    state: str = "queued"
    attempt: int = 0
    charged: float = 0.0


@dataclass
class Turns:
    """Who takes turns with whom: the organisations of a pool, or the projects of one of them."""

    order: dict[str, float] = field(default_factory=dict)
    passes: dict[str, float] = field(default_factory=dict)
    ahead: dict[str, float] = field(default_factory=dict)
    start: float = 0.0

    def first(self) -> str | None:
        """Whose turn it is; of equals the first by name, as in a sorted set."""
        return min(self.order, key=lambda name: (self.order[name], name), default=None)

    def settled(self, name: str) -> float:
        """What a tenant has really had."""
        return self.passes.get(name, 0.0) - self.ahead.get(name, 0.0)

    def move(self, name: str, had: float, ahead: float) -> None:
        """Charge a tenant."""
        self.passes[name] = self.passes.get(name, 0.0) + had + ahead
        if name in self.order:
            self.order[name] = self.passes[name]
        self.ahead[name] = self.ahead.get(name, 0.0) + ahead
        if self.ahead[name] < 1e-6:
            del self.ahead[name]


class Model:
    """Jobs and tenants of one installation."""

    def __init__(self, tenants: dict[str, Tenant], pools: list[str]) -> None:
        self.tenants, self.pools = tenants, pools
        self.slots: Counter[str] = Counter()
        self.jobs: dict[str, Entry] = {}
        self.queue: dict[str, list[tuple[str, int]]] = {pool: [] for pool in pools}
        """Messages, the next first."""
        self.turns: dict[tuple[str, ...], Turns] = defaultdict(Turns)
        self.parked: set[tuple[str, str]] = set()
        self.typical: dict[str, float] = {}
        self.cpu: Counter[str] = Counter()
        self._arrivals = 0

    def chain(self, project: str) -> list[str]:
        """A project and its organisation."""
        parent = self.tenants[project].parent
        return [project, parent] if parent else [project]

    def backlog(self, pool: str, project: str) -> list[str]:
        """A project's jobs that wait, the next first."""
        waiting = [
            (entry.place, job_id)
            for job_id, entry in self.jobs.items()
            if entry.state == "queued" and (entry.pool, entry.project) == (pool, project)
        ]
        return [job_id for _, job_id in sorted(waiting)]

    def count(self, tenant: str, *states: str) -> int:
        """Jobs of a tenant in these states."""
        return sum(
            entry.state in states and tenant in self.chain(entry.project) for entry in self.jobs.values()
        )

    def in_flight(self, pool: str, *states: str) -> list[str]:
        """A pool's jobs that are released, or run."""
        return [
            job_id
            for job_id, entry in self.jobs.items()
            if entry.pool == pool and entry.state in (states or ("released", "running", "cancelling"))
        ]

    def room(self, pool: str) -> int:
        """How many jobs more may be released."""
        return self.slots[pool] + self.slots[pool] // 4 - len(self.in_flight(pool))

    def barred(self, tenant: str) -> bool:
        """Whether a tenant may have no job more for now."""
        has = self.tenants[tenant]
        running = self.count(tenant, "released", "running", "cancelling")
        full = has.concurrent_jobs is not None and running >= has.concurrent_jobs
        return full or self.spent(tenant)

    def spent(self, tenant: str) -> bool:
        """Whether its CPU time of the day is used up."""
        most = self.tenants[tenant].cpu_seconds_per_day
        return most is not None and self.cpu[tenant] >= most

    def refused(self, project: str) -> tuple[str, str] | None:
        """Budget and tenant that keep a project from handing in a job."""
        for level in self.chain(project):
            most = self.tenants[level].queued_jobs
            if most is not None and self.count(level, "queued") >= most:
                return "queued_jobs", level
            if self.spent(level):
                return "cpu_seconds_per_day", level
        return None

    def create(self, job_id: str, project: str, pool: str, rank: int) -> None:
        """A job is accepted."""
        self._arrivals += 1
        self.jobs[job_id] = Entry(project, pool, (rank, self._arrivals))
        for level in self.chain(project):
            self._review(pool, level)
        self._activate(pool, project)
        self.release(pool)

    def claim(self, pool: str) -> tuple[str, int] | None:
        """A worker takes the next message; what it claims by it, if anything."""
        job_id, attempt = self.queue[pool].pop(0)
        entry = self.jobs.get(job_id)
        if entry is None or entry.state != "released" or entry.attempt + 1 != attempt:
            return None
        entry.state, entry.attempt = "running", attempt
        return job_id, attempt

    def finish(self, job_id: str, seconds: float | None, cpu: float = 0.0) -> None:
        """A job ends: `seconds` that it ran, None when it had not started."""
        entry = self.jobs[job_id]
        before, entry.state = entry.state, "finished"
        if before == "queued":
            if not self.backlog(entry.pool, entry.project):
                self._inner(entry.pool, entry.project).order.pop(entry.project, None)
        else:
            message = job_id, entry.attempt + 1
            if before == "released" and message in self.queue[entry.pool]:
                self.queue[entry.pool].remove(message)
            self._settle(entry, seconds)
        for level in self.chain(entry.project):
            self.cpu[level] += cpu
        back = [
            pool for pool in self.pools for level in self.chain(entry.project) if self._review(pool, level)
        ]
        for pool in back:
            if pool != entry.pool:
                self.release(pool)
        self.release(entry.pool)

    def renew(self, job_id: str, seconds: float) -> None:
        """A job has run for so long."""
        entry = self.jobs[job_id]
        if seconds > entry.charged:
            for turns, name in self._places(entry.pool, entry.project):
                turns.move(name, 0.0, (seconds - entry.charged) / self.tenants[name].weight)
            entry.charged = seconds

    def retry(self, job_id: str) -> None:
        """An attempt failed for a reason of ours, and there is another."""
        entry = self.jobs[job_id]
        entry.state = "released"
        self.queue[entry.pool].append((job_id, entry.attempt + 1))

    def reviews(self) -> None:
        """The time of all who are parked has come."""
        for pool, tenant in sorted(self.parked, key="|".join):
            self._review(pool, tenant)

    def reweigh(self, tenant: str, weight: float) -> None:
        """A tenant gets another weight."""
        has = self.tenants[tenant]
        scale, has.weight = has.weight / weight, weight
        for pool in self.pools:
            turns = self._inner(pool, tenant) if has.parent else self.turns[pool,]
            if tenant in turns.passes:
                turns.passes[tenant] = turns.start + (turns.passes[tenant] - turns.start) * scale
                if tenant in turns.order:
                    turns.order[tenant] = turns.passes[tenant]
                if tenant in turns.ahead:
                    turns.ahead[tenant] *= scale

    def release(self, pool: str) -> None:
        """Release what there is room for."""
        while self.room(pool) > 0:
            project = self._next(pool)
            if project is None:
                return
            job_id = self.backlog(pool, project)[0]
            entry = self.jobs[job_id]
            entry.charged = self.typical.get(project, FIRST)
            for turns, name in self._places(pool, project):
                turns.start = turns.settled(name)
                turns.move(name, 0.0, entry.charged / self.tenants[name].weight)
            entry.state = "released"
            self.queue[pool].append((job_id, 1))
            if not self.backlog(pool, project):
                del self._inner(pool, project).order[project]

    def _inner(self, pool: str, project: str) -> Turns:
        return self.turns[pool, self.tenants[project].parent or project]

    def _places(self, pool: str, project: str) -> Iterator[tuple[Turns, str]]:
        yield self._inner(pool, project), project
        yield self.turns[pool,], self.tenants[project].parent or project

    def _next(self, pool: str) -> str | None:
        groups = self.turns[pool,]
        while (group := groups.first()) is not None:
            turns = self.turns[pool, group]
            project = turns.first()
            if project is None:
                del groups.order[group]
            elif group != project and self.barred(group):
                del groups.order[group]
                self.parked.add((pool, group))
            elif self.barred(project):
                del turns.order[project]
                self.parked.add((pool, project))
            else:
                return project
        return None

    def _activate(self, pool: str, project: str) -> None:
        for turns, name in self._places(pool, project):
            self._join(turns, pool, name)

    def _join(self, turns: Turns, pool: str, name: str) -> None:
        if name not in turns.order and (pool, name) not in self.parked:
            start = min([turns.start, *turns.order.values()])
            turns.order[name] = turns.passes[name] = max(start, turns.passes.get(name, 0.0))

    def _review(self, pool: str, tenant: str) -> bool:
        if (pool, tenant) not in self.parked:
            return False
        backlog, projects = self.backlog(pool, tenant), self.turns[pool, tenant].order
        if (backlog or projects) and self.barred(tenant):
            return False
        self.parked.remove((pool, tenant))
        if backlog:
            self._activate(pool, tenant)
        elif projects:
            self._join(self.turns[pool,], pool, tenant)
        return bool(backlog or projects)

    def _settle(self, entry: Entry, seconds: float | None) -> None:
        had = max(FLOOR, seconds or 0.0)
        for turns, name in self._places(entry.pool, entry.project):
            weight = self.tenants[name].weight
            turns.move(name, had / weight, -entry.charged / weight)
            if not turns.order:
                turns.start = max(turns.start, turns.settled(name))
        if seconds is not None:
            usual = self.typical.get(entry.project, had)
            self.typical[entry.project] = usual + (had - usual) / 8
