"""Listing: a project's jobs, newest first, page by page, without what they were asked and what came of them.

`stockade:jobs:PROJECT` (sorted set) has the ids of the project's jobs by the time of their creation, ms. A cursor
names the place in that order after which a page begins, not a number of jobs: so whatever comes and goes
meanwhile, a job that stays is listed exactly once, and a job that comes is not listed among older ones.
"""

import json
import math
import re
import time
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any, NamedTuple, Self

from redis import Redis

from jobs.clock import instant
from jobs.job import JobState
from jobs.job_list import JobList, JobSummary
from jobs.outcome import Outcome
from jobs.store import job_key

PAGE_MAX = 100
"""The most jobs of one page."""
EXAMINED_MAX = 1000
"""The most jobs that are looked at for one page; with a filter that few meet it may come out short, or empty."""

_CHUNK = 200
_FORM = re.compile(r"([0-9]{1,15})-([A-Za-z0-9_-]{1,64})")
_FIELDS = (
    *("state", "attempt", "created", "started", "finished", "labels", "policy", "pool", "outcome"),
    "expires",
)


class Cursor(NamedTuple):
    """A place in the order of a project's jobs: that of one job, there or not."""

    created: int
    job_id: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """The cursor that a page gave out. Raises ValueError when it is none."""
        parts = _FORM.fullmatch(text)
        if parts is None:
            raise ValueError("a cursor that a page gave out as next")
        return cls(int(parts[1]), parts[2])

    def __str__(self) -> str:
        return f"{self.created}-{self.job_id}"


class JobFilter(NamedTuple):
    """Which jobs are wanted: those for which all of this holds."""

    states: frozenset[JobState] = frozenset()
    """Any of these; none is any."""
    labels: Sequence[tuple[str, str]] = ()
    """All of these."""
    since: datetime | None = None
    """Created then or later."""
    until: datetime | None = None
    """Created before."""

    def meets(self, state: str, labels: dict[str, str]) -> bool:
        """Whether a job with this state and these labels is wanted, whenever it was created."""
        return (not self.states or state in self.states) and all(
            labels.get(name) == value for name, value in self.labels
        )


def list_jobs(
    redis: Redis, project: str, wanted: JobFilter, *, limit: int, cursor: Cursor | None = None
) -> JobList:
    """The newest jobs of a project that are wanted.

    Args:
        redis: where they are.
        project: id of the tenant.
        wanted: which jobs.
        limit: how many at the most.
        cursor: only what is older than the page that gave this out.
    """
    found: list[JobSummary] = []
    last = cursor
    examined = 0
    chunk = _CHUNK if wanted.states or wanted.labels else limit + 1
    for places in _places(redis, project, wanted, cursor, chunk):
        for place, fields in zip(places, _read(redis, places), strict=True):
            if examined == EXAMINED_MAX:
                return JobList(jobs=tuple(found), next=str(last))
            examined += 1
            if _is_there(fields) and wanted.meets(fields["state"], _labels(fields)):
                if len(found) == limit:
                    return JobList(jobs=tuple(found), next=str(last))
                found.append(_summary(place.job_id, fields))
            last = place
    return JobList(jobs=tuple(found), next=None)


def _places(
    redis: Redis, project: str, wanted: JobFilter, cursor: Cursor | None, size: int
) -> Iterator[list[Cursor]]:
    """The places of a project's jobs in order, so many at a time."""
    key = f"stockade:jobs:{project}"
    oldest = _bound(wanted.since) if wanted.since else "-inf"
    until = _bound(wanted.until) if wanted.until else math.inf
    skipped = 0
    while True:
        newest = str(cursor.created) if cursor is not None and cursor.created < until else f"({until}"
        raw: Any = redis.zrevrangebyscore(
            key, newest, oldest, start=skipped, num=size, withscores=True, score_cast_func=int
        )
        if not raw:
            return
        # Jobs of the very millisecond of the cursor, and not after it, come again.
        places = [place for name, created in raw if _after(place := Cursor(created, name.decode()), cursor)]
        if places:
            yield places
            cursor, skipped = places[-1], 0
        else:
            skipped += len(raw)


def _after(place: Cursor, cursor: Cursor | None) -> bool:
    return cursor is None or place < cursor


def _read(redis: Redis, places: Sequence[Cursor]) -> list[dict[str, str]]:
    with redis.pipeline(transaction=False) as pipe:
        for place in places:
            pipe.hmget(job_key(place.job_id), _FIELDS)
        rows = pipe.execute()
    return [
        {name: value.decode() for name, value in zip(_FIELDS, row, strict=True) if value is not None}
        for row in rows
    ]


def _is_there(fields: dict[str, str]) -> bool:
    """Whether the job has not been deleted, nor is only waiting for that."""
    return "state" in fields and ("expires" not in fields or int(fields["expires"]) > time.time() * 1000)


def _labels(fields: dict[str, str]) -> dict[str, str]:
    found: dict[str, str] = json.loads(fields["labels"])
    return found


def _summary(job_id: str, fields: dict[str, str]) -> JobSummary:
    def moment(name: str) -> datetime | None:
        return instant(fields[name]) if name in fields else None

    return JobSummary(
        id=job_id,
        state=JobState(fields["state"]),
        attempt=int(fields["attempt"]),
        created_at=instant(fields["created"]),
        started_at=moment("started"),
        finished_at=moment("finished"),
        labels=_labels(fields),
        policy=fields["policy"],
        pool=fields["pool"],
        outcome=Outcome.model_validate_json(fields["outcome"]) if "outcome" in fields else None,
    )


def _bound(moment: datetime) -> int:
    """The first whole millisecond that is not before a moment."""
    return math.ceil(round(moment.timestamp() * 1000, 3))
