"""The worker's process: Celery with a pool of threads and exactly one task, and what stands beside it."""

import logging
import os
import secrets
import socket
import sys
import threading
from typing import Any

import structlog
from celery import Celery, signals

from jobs import broker, queue
from jobs.live import LiveOutput
from jobs.policy_source import PolicySource
from jobs.policy_versions import PolicyVersions
from jobs.settings import Settings
from jobs.store import Store, connect
from worker.admission import Policies
from worker.attempt import Workshop
from worker.keeper import Keeper
from worker.live import PATIENCE, Live
from worker.reaper import Reaper
from worker.stop import Reason, Stops
from worker.task import Runner

log = structlog.get_logger(__name__)


class Worker:
    """One worker process, from start to stop."""

    def __init__(self, settings: Settings) -> None:
        """Raises policies.finding.PolicyError when a policy cannot be read."""
        self._settings = settings
        self.name = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"
        self.app = queue.celery_app(settings)
        redis = connect(settings)
        store = Store(redis, lease=settings.lease)
        self._policies = PolicySource(settings.policies)
        policies = Policies(self._policies, PolicyVersions(redis))
        self._live = Live()
        workshop = Workshop(store, policies, settings.launcher, settings.image_host, self._live)
        self._stops = Stops()
        self._keeper = Keeper(self.name, settings, store, self._stops, Reaper(store))
        register(self.app, Runner(self.name, workshop, self._stops))

    def run(self) -> int:
        """Work until a signal says to stop (SIGTERM, SIGINT); the exit status of the process."""
        consumer = self.app.Worker(
            hostname=self.name,
            pool_cls="threads",
            concurrency=self._settings.slots,
            without_mingle=True,
            without_gossip=True,
            without_heartbeat=True,
            loglevel="WARNING",
            quiet=True,
        )
        signals.worker_shutting_down.connect(self._on_stop)
        self._keeper.start()
        self._live.start(LiveOutput(connect(self._settings, PATIENCE)))
        log.info("working", worker=self.name, slots=self._settings.slots, redis=self._settings.redis_shown)
        try:
            with self._policies.watched():
                consumer.start()
        finally:
            self._live.stop()
            self._keeper.stop()
            log.info("stopped", worker=self.name)
        return int(consumer.exitcode or 0)

    def _on_stop(self, **_: Any) -> None:
        """No new jobs come in; those that run have `drain` seconds, then they go back to the queue."""
        log.info("stopping", worker=self.name, drain=self._settings.drain)
        timer = threading.Timer(self._settings.drain, self._stops.ask_all, [Reason.SHUTDOWN])
        timer.daemon = True
        timer.start()


def register(app: Celery, runner: Runner) -> None:
    """Give the application its one task, and take away those that Celery brings."""
    app.task(runner.run, name=broker.TASK, ignore_result=True)
    app.finalize()
    for name in list(app.tasks):
        if name != broker.TASK:
            del app.tasks[name]


def configure_logging() -> None:
    """One JSON object a line on standard error, for our own log; the libraries' warnings beside it."""
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    logging.basicConfig(
        level=logging.WARNING, stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s"
    )
    signals.setup_logging.connect(_leave_logging_alone)


def _leave_logging_alone(**_: Any) -> None:
    """Connected to Celery's signal, it keeps Celery from putting up handlers of its own."""
