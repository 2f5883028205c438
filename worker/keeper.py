"""Two threads beside a worker's jobs: a timer for leases, heartbeat, reaper, metrics; an ear for cancellations."""

import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import structlog
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from jobs.metrics import FLUSH, metrics
from jobs.store import Renewal, Store
from worker.reaper import Reaper
from worker.stop import Reason, Stops

HEARTBEAT = 4.0
"""Seconds between two heartbeats."""
SWEEP = 2.0
"""Seconds between two sweeps of the reaper, at the most; less where leases are short."""
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
        except (RedisError, OperationalError) as error:
            log.warning("redis_away", error=str(error))
        except Exception:
            log.exception("duty_failed")  # a thread that dies would take all leases with it


class Keeper:
    """Keeps what a worker holds: renews leases, beats, sweeps, and hears of cancellations."""

    def __init__(
        self, name: str, slots: int, launcher: Path, store: Store, stops: Stops, reaper: Reaper
    ) -> None:
        self._name, self._slots, self._launcher = name, slots, launcher
        self._store, self._stops = store, stops
        third = store.lease / 3
        self._duties = [
            Every(third, self._renew),
            Every(HEARTBEAT, self._beat),
            Every(min(SWEEP, third), reaper.sweep),
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
        Every(0, lambda: self._store.farewell(self._name)).turn()
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

    def _beat(self) -> None:
        running = len(self._stops.running())
        launcher = launcher_trouble(self._launcher)
        self._store.heartbeat(self._name, slots=self._slots, running=running, launcher=launcher)

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


def launcher_trouble(path: Path) -> str | None:
    """What keeps the launcher at this socket from being used, in one sentence; None when it answers."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.settimeout(2)
        try:
            connection.connect(str(path))
        except OSError as error:
            return f"The launcher does not answer on {path}: {error.strerror or error}."
    return None
