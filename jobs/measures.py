"""Measures: everything that is counted about an installation, with its labels and what it means.

No label ever holds the name or the id of a tenant, a job or a key, or text of a caller's: the number of series
must not depend on who uses the service (docs/metrics.md is made of this list).
"""

from bisect import bisect_left
from dataclasses import dataclass
from enum import StrEnum

PREFIX = "stockade_"
"""Before each name when it is shown."""

_MILLISECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1)
_MINUTES = (2.5, 5, 10, 30, 60, 300, 900, 3600)


class Kind(StrEnum):
    """How a measure moves: only up, as a distribution, or up and down."""

    COUNTER = "counter"
    HISTOGRAM = "histogram"
    GAUGE = "gauge"


@dataclass(frozen=True)
class Measure:
    """One thing that is counted. `buckets` are the upper bounds of a histogram, without +Inf."""

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()

    def bucket(self, value: float) -> str:
        """The smallest bound that `value` does not exceed, as text; "+Inf" above the last."""
        place = bisect_left(self.buckets, value)
        return bound_text(self.buckets[place]) if place < len(self.buckets) else "+Inf"


def bound_text(bound: float) -> str:
    """A bucket's bound as it is written: 0.5 is "0.5", 10 is "10"."""
    return f"{bound:g}"


def _counter(name: str, help_: str, *labels: str) -> Measure:
    return Measure(name, Kind.COUNTER, help_, labels)


def _histogram(name: str, help_: str, *labels: str, buckets: tuple[float, ...]) -> Measure:
    return Measure(name, Kind.HISTOGRAM, help_, labels, buckets)


def _gauge(name: str, help_: str, *labels: str) -> Measure:
    return Measure(name, Kind.GAUGE, help_, labels)


COUNTED = (
    _counter(
        "jobs_submitted_total",
        "Requests to run a job, by their result: admitted, repeated (of one that was, with its idempotency key), or"
        " the kind of the problem that refused them.",
        "result",
    ),
    _counter(
        "refusals_total",
        "Reasons for which requests to run a job were refused: the kind of the problem, and the rule, which is"
        " the field at fault without its indices, or budgets.NAME. A request counts once for each of its rules.",
        "problem",
        "rule",
    ),
    _counter(
        "jobs_finished_total",
        "Jobs that ended, by outcome and pool. Each job counts once.",
        "outcome",
        "pool",
    ),
    _counter(
        "attempts_total",
        "Executions of jobs by how they ended: finished; stale (another had the job meanwhile); shutdown and"
        " lease_lost (stopped); failed (a failure of ours).",
        "result",
    ),
    _histogram(
        "queue_wait_seconds",
        "Time from a job's acceptance to its first execution.",
        "pool",
        buckets=(*_MILLISECONDS, *_MINUTES),
    ),
    _histogram(
        "run_seconds",
        "Time of an execution whose result was stored, from its claim to its end.",
        "pool",
        buckets=(*_MILLISECONDS, *_MINUTES),
    ),
    _histogram(
        "sandbox_phase_seconds",
        "Time of each phase of an execution: claim (the store gives the job), admit (the policy is asked again),"
        " session (connection to the launcher), sandbox (a step's set-up and removal: between asking the launcher"
        " and its answer, without the program's own time), run (a step's program), collect (artifacts), finish"
        " (the result is stored).",
        "phase",
        buckets=(0.00025, 0.0005, *_MILLISECONDS, 5, 60),
    ),
    _histogram(
        "release_seconds",
        "Time of one call that ends a job and lets those that wait into the queue by fair share.",
        buckets=(0.0001, 0.00025, 0.0005, *_MILLISECONDS),
    ),
    _counter(
        "http_requests_total",
        "Requests that were answered, by method, pattern of the address and status. Addresses that do not exist"
        " have the route none; status 499 is a caller that hung up.",
        "method",
        "route",
        "status",
    ),
    _histogram(
        "http_request_seconds",
        "Time from a request's head to the end of its answer, long polls and streams included.",
        "method",
        "route",
        buckets=(*_MILLISECONDS, 2.5, 5, 10, 60),
    ),
    _counter(
        "webhook_deliveries_total",
        "Tries to deliver a webhook's message, by result: delivered, refused (not 2xx), failed (no answer, or no"
        " address that is allowed).",
        "result",
    ),
    _counter("live_streams_opened_total", "Streams of live output that began."),
    _counter(
        "live_streams_closed_total",
        "Streams of live output that ended; opened minus closed are open, but for those of a killed process.",
    ),
)
"""What processes count themselves and add up in Redis."""

OBSERVED = (
    _gauge("build_info", "1, with the version of the process that was asked.", "version"),
    _gauge("redis_up", "Whether Redis answered this scrape; when 0, nothing else is shown."),
    _gauge("workers", "Workers that have been heard of lately."),
    _gauge("workers_without_launcher", "Of these, workers whose launcher does not answer."),
    _gauge("slots", "Sandboxes that all workers together run at a time."),
    _gauge("slots_running", "How many of them are in use."),
    _gauge("jobs_backlogged", "Jobs that wait for their turn, by pool.", "pool"),
    _gauge("jobs_released", "Jobs that stand in the queue to the workers, by pool.", "pool"),
    _gauge("jobs_running", "Jobs that a worker has, by pool.", "pool"),
)
"""What is looked up in Redis at each scrape."""

MEASURES = {measure.name: measure for measure in (*COUNTED, *OBSERVED)}
"""All of them by name."""
