"""What one release costs, with few and with many tenants, and with few and with many jobs that wait.

A release is what makes room and fills it: one job is handed in (create.lua), one ends (finish.lua), and with that the
next one is released. Both run inside a Valkey server of their own, which is made for this and durable as that of
`stockade up`; every slot is taken, so that each pair releases exactly one job. The server's own figures are the
microseconds by which each call moves EVALSHA in its `INFO commandstats`; beside them what the client waited.
"""

import contextlib
import json
import random
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from redis import Redis

from bench.figures import percentile
from jobs.job import JobResult
from jobs.outcome import Outcome, OutcomeKind
from jobs.scripts import script
from jobs.settings import Settings
from jobs.spec import JobSpec
from jobs.store import Store, connect, create_call
from policies.admission import admit
from policies.loader import load_policies
from stockade import valkey
from stockade.children import Child

TENANTS = (10, 100, 1_000, 10_000)
JOBS = (100, 1_000, 10_000, 100_000)
SLOTS = 64
BATCH = 1000

_SPEC = JobSpec.model_validate_json('{"command": ["true"]}')
_DONE = JobResult(outcome=Outcome(kind=OutcomeKind.EXITED, exit_code=0, message="It exited with status 0."))


@contextlib.contextmanager
def server() -> Iterator[Redis]:
    """A client of a new, empty, durable Valkey server."""
    directory = Path(tempfile.mkdtemp(prefix="stockade-bench-"))
    child = Child("valkey", valkey.command(directory, durable=True), log=directory / "log")
    try:
        child.start()
        child.wait_until(lambda: valkey.answers(directory), timeout=30, pause=time.sleep)
        with connect(Settings(redis=valkey.url(directory)), timeout=120) as redis:
            yield redis
    finally:
        child.stop(grace=10)
        shutil.rmtree(directory, ignore_errors=True)


class Pair(NamedTuple):
    """Microseconds that one job handed in and one ended took: in the server, and for the client together."""

    create: int
    finish: int
    client: int


class Installation:
    """Tenants with jobs that wait: each tenant is an organisation with one project."""

    def __init__(self, redis: Redis, tenants: int) -> None:
        self.redis, self.store = redis, Store(redis, lease=3600)
        redis.flushall()
        self._admission = admit(_SPEC, load_policies()["default"])
        self._projects = [f"tenant_p{number:06}" for number in range(tenants)]
        self._create = script(redis, "create")
        self._arguments = create_call("", _SPEC, self._admission, "")[1]
        self._jobs = 0
        self._make_tenants()

    def _make_tenants(self) -> None:
        make = script(self.redis, "tenant_create")
        for first in range(0, len(self._projects), BATCH):
            with self.redis.pipeline(transaction=False) as pipe:
                for project in self._projects[first : first + BATCH]:
                    parent = project.replace("_p", "_o")
                    keys = ["stockade:tenant_names", f"stockade:tenant_projects:{parent}"]
                    keys += [f"stockade:tenant:{parent}", f"stockade:tenant:{project}"]
                    make(
                        keys, [parent, parent, project, f"{parent}/default", "stockade:tenant:"], client=pipe
                    )
                pipe.execute()

    def fill(self, jobs: int) -> None:
        """Let so many jobs wait, as many of each tenant, besides those for which there is room."""
        missing = jobs + SLOTS + SLOTS // 4 - self._jobs
        for first in range(0, missing, BATCH):
            with self.redis.pipeline(transaction=False) as pipe:
                for _ in range(min(BATCH, missing - first)):
                    job_id, project = f"job_b{self._jobs}", self._projects[self._jobs % len(self._projects)]
                    arguments = [job_id, project, *self._arguments[2:]]
                    self._create([f"stockade:job:{job_id}"], arguments, client=pipe)
                    self._jobs += 1
                pipe.execute()
        self.redis.hset("stockade:slots", "default", SLOTS)
        self.store.sweep(3600)

    def pairs(self, number: int) -> list[Pair]:
        """Hand in and end so many jobs, or a few more."""
        found: list[Pair] = []
        dice = random.Random(1)
        while len(found) < number:
            for attempt in self._claimed():
                spent = [self._spent()]
                begun = time.perf_counter()
                self.store.create(_SPEC, self._admission, dice.choice(self._projects))
                between = time.perf_counter()
                spent.append(self._spent())
                resumed = time.perf_counter()
                self.store.finish(attempt, _DONE)
                took = time.perf_counter() - resumed + between - begun
                spent.append(self._spent())
                found.append(Pair(spent[1] - spent[0], spent[2] - spent[1], round(took * 1e6)))
        return found

    def _spent(self) -> int:
        """Microseconds that the server has spent in scripts."""
        statistics: Any = self.redis.info("commandstats")
        return int(statistics["cmdstat_evalsha"]["usec"])

    def _claimed(self) -> list[Any]:
        """All that stands in the queue, claimed."""
        found = []
        while (raw := self.redis.rpop("stockade:celery:default")) is not None:
            job_id, number = json.loads(json.loads(raw)["body"])[0]  # type: ignore[arg-type]
            found.append(self.store.claim(job_id, number, "bench"))
        return found


def summary(pairs: list[Pair]) -> dict[str, float]:
    """What is shown of them."""
    server, client = [each.create + each.finish for each in pairs], [each.client for each in pairs]
    return {
        "create_p50": percentile([each.create for each in pairs], 50),
        "finish_p50": percentile([each.finish for each in pairs], 50),
        "server_p10": percentile(server, 10),
        "server_p50": percentile(server, 50),
        "server_p99": percentile(server, 99),
        "client_p50": percentile(client, 50),
        "client_p99": percentile(client, 99),
    }


def measure(pairs: int, waiting: Sequence[int], say: Callable[[str], None]) -> dict[str, dict[str, float]]:
    """All combinations of `TENANTS` and so many jobs `waiting`, by what they are called."""
    found = {}
    with server() as redis:
        for tenants in TENANTS:
            installation = Installation(redis, tenants)
            installation.fill(waiting[0])
            installation.pairs(SLOTS)  # warm: scripts, sockets
            for jobs in waiting:
                say(f"release: {tenants:,} tenants, {jobs:,} jobs wait")
                installation.fill(jobs)
                found[f"{tenants:,} tenants, {jobs:,} jobs wait"] = summary(installation.pairs(pairs))
    return found


def flatness(report: dict[str, dict[str, float]]) -> float:
    """The dearest combination over the cheapest, in the server; by the tenth percentile, which little else disturbs."""
    quiet = [each["server_p10"] for each in report.values()]
    return max(quiet) / min(quiet)
