"""Workers that are played: jobs take the time that the test says, and no time passes.

A clock of the test's own stands at the moment of the next event, a job that is handed in or one that ends. The
store sees how long a job took because its start is set back by that much before it ends.
"""

import heapq
import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from redis import Redis

from jobs.job import Attempt, Job
from jobs.scripts import script
from jobs.spec import JobSpec
from jobs.store import Store, create_call
from policies.admission import Admission, admit
from policies.loader import load_policies
from tests.dispatch import DONE, open_window

SPEC = JobSpec.model_validate_json('{"command": ["true"]}')
_BATCH = 2000


def admission(**changes: Any) -> Admission:
    """What the default policy decides about `SPEC`, changed."""
    return admit(SPEC, load_policies()["default"]).model_copy(update=changes)


def fill(redis: Redis, project: str, jobs: int) -> None:
    """Hand in so many jobs of a project, as quickly as that can be done."""
    create = script(redis, "create")
    create_job = create_call("", SPEC, admission(), project)[1]
    for first in range(0, jobs, _BATCH):
        with redis.pipeline(transaction=False) as pipe:
            for number in range(first, min(jobs, first + _BATCH)):
                job_id = f"job_{project}_{number}"
                create([f"stockade:job:{job_id}"], [job_id, *create_job[1:]], client=pipe)
            pipe.execute()


class PlayedWorkers:
    """Workers with `slots` in all. `now` is their clock, seconds."""

    def __init__(self, store: Store, slots: int, seconds: Callable[[Job], float]) -> None:
        """`seconds`: how long a job runs."""
        open_window(store.redis, slots)
        self._store, self._slots, self._seconds = store, slots, seconds
        self._running: list[tuple[float, int, float, Attempt]] = []
        self._arrived: dict[str, float] = {}
        self.now = 0.0
        self.waited: dict[str, float] = {}
        """Seconds that each job waited for its start, for those that were handed in by `arrive`."""
        store.sweep(3600)
        self._take()

    def work(self, arrivals: Iterable[tuple[float, str]] = ()) -> Iterator[tuple[Job, float]]:
        """Work until nothing runs any more; each job that has ended, and how long it took.

        `arrivals`: when a job of which project is handed in, in the order of time.
        """
        coming = iter(arrivals)
        following = next(coming, None)
        while following or self._running:
            if following and (not self._running or following[0] <= self._running[0][0]):
                self._arrive(*following)
                following = next(coming, None)
            else:
                yield self._end_next()

    def _arrive(self, moment: float, project: str) -> None:
        self.now = moment
        job = self._store.create(SPEC, admission(), project).job
        self._arrived[job.id] = moment
        self._take()

    def _end_next(self) -> tuple[Job, float]:
        self.now, _, seconds, attempt = heapq.heappop(self._running)
        self._store.redis.hincrby(f"stockade:job:{attempt.job.id}", "started", -int(seconds * 1000))
        assert self._store.finish(attempt, DONE)
        self._take()
        return attempt.job, seconds

    def _take(self) -> None:
        while len(self._running) < self._slots:
            raw: Any = self._store.redis.rpop("stockade:celery:default")
            if raw is None:
                return
            job_id, number = json.loads(json.loads(raw)["body"])[0]
            attempt = self._store.claim(job_id, number, "w")
            assert attempt is not None
            if job_id in self._arrived:
                self.waited[job_id] = self.now - self._arrived[job_id]
            seconds = self._seconds(attempt.job)
            heapq.heappush(self._running, (self.now + seconds, attempt.token, seconds, attempt))
