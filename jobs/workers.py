"""The workers that live: each says so every few seconds, with how much it can run, of which pools, on what host.

`stockade:workers` (hash) has what each said last; from it `heartbeat.lua` counts the slots of each pool
(`stockade:slots`), which is how many of its jobs are released at a time.
"""

import json
from typing import Any

from pydantic import Field
from redis import Redis

from jobs.scripts import script
from policies.model import Frozen

SILENCE = 15.0
"""Seconds without a heartbeat after which a worker counts as gone."""

_WORKERS, _SLOTS = "stockade:workers", "stockade:slots"


class HostFacts(Frozen):
    """What a worker's host offers, as far as a policy may ask for it."""

    cgroup: str | None = Field(default=None, description='"v1" or "v2"; null when the launcher is not there.')
    kernel: str = Field(default="", description="The kernel's release.")
    images: dict[str, str] = Field(
        default_factory=dict, description="The images that it has: their digests by name; `host` by itself."
    )


class WorkerStatus(Frozen):
    """What a worker last told about itself."""

    name: str = Field(description="The worker's name.")
    slots: int = Field(description="Sandboxes that it runs at a time.")
    running: int = Field(description="How many of them are in use.")
    pools: tuple[str, ...] = Field(description="The pools whose jobs it takes.")
    launcher: str | None = Field(description="Null when its launcher answers; else what is wrong.")
    host: HostFacts = Field(default=HostFacts(), description="What its host offers.")
    silent: float = Field(default=0.0, description="Seconds since it was last heard of.")


class Workers:
    """The workers of one installation. Every method raises redis.RedisError when Redis is not there."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._beat = script(redis, "heartbeat")

    def heartbeat(self, status: WorkerStatus) -> None:
        """Say that a worker lives; to be repeated well within `SILENCE`."""
        about = status.model_dump_json(exclude={"name", "silent"})
        self._beat([_WORKERS, _SLOTS], [status.name, about, int(SILENCE * 1000)])

    def farewell(self, worker: str) -> None:
        """Say that a worker has stopped."""
        self._beat([_WORKERS, _SLOTS], [worker, "", int(SILENCE * 1000)])

    def live(self) -> list[WorkerStatus]:
        """The workers that live."""
        with self._redis.pipeline(transaction=False) as pipe:
            pipe.time()
            pipe.hgetall(_WORKERS)
            (seconds, microseconds), entries = pipe.execute()
        now = seconds + microseconds / 1e6
        found = []
        for name, entry in entries.items():
            seen, _, about = entry.partition(b" ")
            silent = max(0.0, round(now - int(seen) / 1000, 3))
            if silent < SILENCE:
                told: dict[str, Any] = json.loads(about)
                found.append(WorkerStatus.model_validate({"name": name.decode(), "silent": silent} | told))
        return found
