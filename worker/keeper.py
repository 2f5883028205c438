"""Two threads beside a worker's jobs: a timer for leases, heartbeat, reaper, metrics; an ear for cancellations."""

import os
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import structlog
from redis.exceptions import RedisError

from jobs.metrics import FLUSH, metrics
from jobs.settings import Settings
from jobs.store import Renewal, Store
from jobs.workers import HostFacts, Workers, WorkerStatus
from worker.reaper import Reaper
from worker.sandbox.client import Session
from worker.sandbox.errors import SandboxError
from worker.stop import Reason, Stops

HEARTBEAT = 4.0
"""Seconds between two heartbeats."""
SWEEP = 2.0
"""Seconds between two sweeps of the reaper, at the most; less where leases are short."""
LAUNCHER_SILENCE = 2.0
"""Seconds that a launcher may take to answer."""
RESUBSCRIBE = 0.5
"""Seconds between two tries to subscribe to cancellations."""

log = structlog.get_logger(__name__)


class Every:
    """Something to be done at intervals, by whoever calls `turn` often enough."""

    def __init__(self, seconds: float, act: Callable[[], None]) -> None:
        self._seconds = seconds
        self._act = act
        self._next = 0.0

    def turn(self) -> None:
        """Do it if its time has come. Whatever goes wrong is logged, and it is tried again the next time."""
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + self._seconds
        try:
            self._act()
        except RedisError as error:
            log.warning("redis_away", error=str(error))
        except Exception:
            log.exception("duty_failed")  # a thread that dies would take all leases with it


class Keeper:
    """Keeps what a worker holds: renews leases, beats, sweeps, and hears of cancellations."""

    def __init__(self, name: str, settings: Settings, store: Store, stops: Stops, reaper: Reaper) -> None:
        self._name, self._settings = name, settings
        self._store, self._stops = store, stops
        self._workers = Workers(store.redis)
        third = store.lease / 3
        self._duties = [
            Every(third, self._renew),
            Every(HEARTBEAT, self._beat),  # before the sweep: it opens the window through which jobs come
            Every(min(SWEEP, third), reaper.sweep),
            Every(0, self._look_at_deadlines),
            Every(FLUSH, self._flush),
        ]
        self._tick = min(0.5, third / 2)
        self._end = threading.Event()
        self._threads = [
            threading.Thread(target=self._keep, name="keeper", daemon=True),
            threading.Thread(target=self._listen, name="cancellations", daemon=True),
        ]

    def start(self) -> None:
        """Start both threads."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End both threads, and say that the worker is gone."""
        self._end.set()
        for thread in self._threads:
            thread.join(timeout=3)
        Every(0, lambda: self._workers.farewell(self._name)).turn()
        Every(0, self._flush).turn()

    def _keep(self) -> None:
        while not self._end.is_set():
            for duty in self._duties:
                duty.turn()
            self._end.wait(self._tick)

    def _renew(self) -> None:
        running = self._stops.running()
        renewals = self._store.renew([attempt for attempt, _ in running])
        for (_, stop), renewal in zip(running, renewals, strict=True):
            if renewal is Renewal.LOST:
                stop.ask(Reason.LEASE_LOST)
            elif renewal is Renewal.CANCELLING:
                stop.ask(Reason.CANCELLED)

    def _look_at_deadlines(self) -> None:
        now = datetime.now(UTC)
        for attempt, stop in self._stops.running():
            deadline = attempt.job.spec.deadline
            if deadline is not None and now >= deadline:
                stop.ask(Reason.DEADLINE)

    def _beat(self) -> None:
        trouble, host = launcher_state(self._settings.launcher)
        self._workers.heartbeat(
            WorkerStatus(
                name=self._name,
                slots=self._settings.slots,
                running=len(self._stops.running()),
                pools=self._settings.pools,
                launcher=trouble,
                host=host,
            )
        )

    def _flush(self) -> None:
        if not metrics.flush(self._store.redis):
            log.warning("metrics_not_flushed")

    def _listen(self) -> None:
        while not self._end.is_set():
            try:
                self._hear()
            except (RedisError, OSError):
                self._end.wait(RESUBSCRIBE)

    def _hear(self) -> None:
        with self._store.cancellations() as subscription:
            while not self._end.is_set():
                message = subscription.get_message(timeout=1.0)
                if message is not None:
                    self._stops.ask(message["data"].decode(), Reason.CANCELLED)


def launcher_state(path: Path) -> tuple[str | None, HostFacts]:
    """What keeps the launcher at this socket from being used, None when it answers; and what its host offers."""
    try:
        with Session(str(path)) as session:
            about = session.about(LAUNCHER_SILENCE)
    except SandboxError as error:
        reason = os.strerror(error.errno) if error.errno else error.hint
        return f"The launcher does not answer on {path}: {reason}.", HostFacts()
    return None, HostFacts(**{name: about[name] for name in HostFacts.model_fields})
