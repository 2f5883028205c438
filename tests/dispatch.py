"""A worker's and a broker's part in dispatch, played by hand."""

import json

from redis import Redis

from jobs.job import JobResult
from jobs.outcome import Outcome, OutcomeKind
from jobs.queue import PREFIX
from jobs.workers import WorkerStatus

DONE = JobResult(outcome=Outcome(kind=OutcomeKind.EXITED, exit_code=0, message="It exited with status 0."))
"""A result without steps."""


def open_window(redis: Redis, slots: int = 1000, pools: tuple[str, ...] = ("default",)) -> None:
    """Let jobs be released as if workers with so many slots lived: `slots`, and a quarter more in the queue."""
    redis.hset("stockade:slots", mapping=dict.fromkeys(pools, slots))


def make_project(redis: Redis, project: str) -> str:
    """Write the record of a project of this id, with no organisation and no limits, and return the id."""
    plain = {"id": project, "name": project, "parent": "", "created": 0, "weight": 1, "bounds": "{}"}
    redis.hset(f"stockade:tenant:{project}", mapping=plain)
    return project


def worker_status(name: str, launcher: str | None = None) -> WorkerStatus:
    """What a worker of four slots says; `launcher`: what is wrong with its launcher."""
    return WorkerStatus(name=name, slots=4, running=0, pools=("default",), launcher=launcher)


def published(redis: Redis, pool: str = "default") -> list[tuple[str, int]]:
    """The messages in a pool's Celery queue, the next first: job id and attempt."""
    raw = redis.lrange(PREFIX + pool, 0, -1)
    return [tuple(json.loads(json.loads(each)["body"])[0]) for each in reversed(raw)]  # type: ignore[arg-type]


def message(job_id: str, attempt: int, pool: str = "default") -> dict[str, object]:
    """A message as the store's scripts write it."""
    return {
        "body": json.dumps([[job_id, attempt], {}, {}]),
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": {"lang": "py", "task": "stockade.run_job", "id": f"{job_id}/{attempt}"},
        "properties": {
            "delivery_tag": f"{job_id}/{attempt}/0",
            "delivery_mode": 2,
            "delivery_info": {"exchange": "", "routing_key": pool},
        },
    }


def deliver(redis: Redis, job_id: str, attempt: int, pool: str = "default") -> None:
    """Put a message into the queue, as somebody would who may write there."""
    redis.lpush(PREFIX + pool, json.dumps(message(job_id, attempt, pool)))
