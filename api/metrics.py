"""`/metrics` for Prometheus, on a listener of its own: it needs no key, so tenants must not reach it.

What is shown is the sum of all processes' counts (`jobs.metrics`) and what Redis holds at the moment, so one
scrape of any API process tells about the whole installation. Without Redis a scrape says just that.
"""

import asyncio
import socketserver
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version
from socket import AF_INET, AF_INET6
from threading import Thread

import structlog
from anyio import to_thread
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from redis import Redis
from redis.exceptions import RedisError

from jobs.depth import depths
from jobs.measures import COUNTED, MEASURES, PREFIX, Kind, Measure, bound_text
from jobs.metrics import FLUSH, Series, metrics, stored
from jobs.settings import Settings
from jobs.store import connect
from jobs.workers import Workers

PATIENCE = 10.0  # seconds that a scrape may take to ask, and Redis to answer it
LOOK = 0.2  # seconds between two looks of the listener whether it shall end

log = structlog.get_logger(__name__)


class Installation(Collector):
    """The metrics of the whole installation, as they are when they are asked for."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    def collect(self) -> Iterable[Metric]:
        """Every measure that has a value; `redis_up` alone without Redis."""
        yield _gauge("build_info", {(version("stockade"),): 1})
        metrics.flush(self._redis)
        try:
            found = [*self._counted(), *self._observed()]
        except RedisError as error:
            log.warning("metrics_without_redis", error=type(error).__name__)
            yield _gauge("redis_up", {(): 0})
        else:
            yield _gauge("redis_up", {(): 1})
            yield from found

    def _counted(self) -> Iterator[Metric]:
        sums = stored(self._redis)
        for measure in COUNTED:
            series = sums.get(measure, {})
            yield _counter(measure, series) if measure.kind is Kind.COUNTER else _histogram(measure, series)

    def _observed(self) -> Iterator[Metric]:
        workers = Workers(self._redis).live()
        yield _gauge("workers", {(): len(workers)})
        yield _gauge("workers_without_launcher", {(): sum(worker.launcher is not None for worker in workers)})
        yield _gauge("slots", {(): sum(worker.slots for worker in workers)})
        yield _gauge("slots_running", {(): sum(worker.running for worker in workers)})
        pools = depths(self._redis)
        yield _gauge("jobs_backlogged", {(pool,): depth.backlogged for pool, depth in pools.items()})
        yield _gauge("jobs_released", {(pool,): depth.released for pool, depth in pools.items()})
        yield _gauge("jobs_running", {(pool,): depth.running for pool, depth in pools.items()})


def _gauge(name: str, values: Mapping[tuple[str, ...], float]) -> Metric:
    measure = MEASURES[name]
    family = GaugeMetricFamily(PREFIX + name, measure.help, labels=measure.labels)
    for labels, value in values.items():
        family.add_metric(labels, value)
    return family


def _counter(measure: Measure, series: Series) -> Metric:
    family = CounterMetricFamily(PREFIX + measure.name, measure.help, labels=measure.labels)
    if not measure.labels and not series:
        family.add_metric((), 0)  # what stands at 0 can be told from what is not there
    for labels, parts in sorted(series.items()):
        family.add_metric(labels, parts.get("", 0))
    return family


def _histogram(measure: Measure, series: Series) -> Metric:
    family = HistogramMetricFamily(PREFIX + measure.name, measure.help, labels=measure.labels)
    bounds = [*map(bound_text, measure.buckets), "+Inf"]
    for labels, parts in sorted(series.items()):
        total, buckets = 0.0, []
        for bound in bounds:
            total += parts.get(bound, 0)
            buckets.append((bound, total))
        family.add_metric(labels, buckets, parts.get("sum", 0))
    return family


class _Handler(BaseHTTPRequestHandler):
    """Answers GET /metrics, and nothing else. One request a connection."""

    timeout = PATIENCE
    server_version, sys_version = "stockade", ""
    server: "_Server"

    def do_GET(self) -> None:
        if self.path.partition("?")[0] != "/metrics":
            self.send_error(HTTPStatus.NOT_FOUND, "Only /metrics is here")
            return
        encode, media_type = choose_encoder(self.headers.get("Accept", ""))
        body = encode(self.server.registry)
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", media_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing: scrapes come every few seconds."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, address: tuple[str, int], registry: CollectorRegistry) -> None:
        self.address_family = AF_INET6 if ":" in address[0] else AF_INET
        self.registry = registry
        super().__init__(address, _Handler)

    def server_bind(self) -> None:
        """Bind, and do not ask the DNS for our name, as HTTPServer does."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address[0], self.server_address[1]  # type: ignore[assignment]

    def handle_error(self, request: object, client_address: object) -> None:
        """Log one line instead of a traceback: a scraper that hung up."""
        log.warning("scrape_failed", exc_info=True)


@contextmanager
def serving(settings: Settings) -> Iterator[int | None]:
    """Serve `/metrics` where the settings say, as long as the block runs; the port, or None.

    An address that cannot be had is an error in the log: the API is worth more than its metrics.
    """
    if settings.metrics_address is None:
        yield None
        return
    registry = CollectorRegistry()
    with connect(settings, PATIENCE) as redis:
        registry.register(Installation(redis))
        try:
            server = _Server(settings.metrics_address, registry)
        except OSError as error:
            log.error("metrics_not_served", listen=settings.metrics, reason=error.strerror or str(error))
            yield None
            return
        thread = Thread(target=server.serve_forever, args=(LOOK,), name="metrics", daemon=True)
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            server.server_close()
            thread.join()


@asynccontextmanager
async def flushing(redis: Redis) -> AsyncIterator[None]:
    """Add what this process counts to the sum in Redis every few seconds, and once at the end."""

    async def flush() -> None:
        while True:
            await asyncio.sleep(FLUSH)
            if not await to_thread.run_sync(metrics.flush, redis):
                log.warning("metrics_not_flushed")

    task = asyncio.create_task(flush())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait({task})
        await to_thread.run_sync(metrics.flush, redis)
