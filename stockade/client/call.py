"""Calls: each request that the API takes, and how its answer is read. Pure: data in, data out."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Generic, TypeVar
from urllib.parse import quote
from uuid import uuid4

import httpx

from jobs.batch import AcceptedItem, BatchAnswer
from jobs.job_event import Stream
from jobs.job_list import JobList
from jobs.job_view import ArtifactList, JobView
from jobs.quota import Quota
from jobs.usage import UsageReport, Window
from policies.explain import Explanation
from stockade.client.answer import content, nothing, reads
from stockade.client.effect import Request
from stockade.client.errors import ApiError, error_of
from stockade.client.job_body import encoded
from stockade.client.job_filter import Filter

T = TypeVar("T")
JSON = ("Content-Type", "application/json")
IDEMPOTENCY = "Idempotency-Key"
JOBS = "/v1/jobs"
PAGE = 50
"""Jobs in one page of the list."""


@dataclass(frozen=True)
class Call(Generic[T]):
    """A request and what reads its answer."""

    request: Request
    read: Callable[[httpx.Response], T]


def new_key() -> str:
    """An idempotency key that nobody has used."""
    return uuid4().hex


def submit(document: Mapping[str, Any], wait: float, idempotency_key: str) -> Call[JobView]:
    """Store a job; the answer comes when it has finished, at the latest after `wait` seconds."""
    request = Request(
        "POST", JOBS, _waiting(wait), encoded(document), (JSON, (IDEMPOTENCY, idempotency_key)), wait
    )
    return Call(request, reads(JobView))


def batch(
    documents: Sequence[Mapping[str, Any]], idempotency_key: str
) -> Call[tuple[JobView | ApiError, ...]]:
    """Store several jobs; each of them by itself is accepted or refused."""
    request = Request(
        "POST", f"{JOBS}:batch", (), encoded({"jobs": documents}), (JSON, (IDEMPOTENCY, idempotency_key))
    )
    return Call(request, lambda answer: _items(reads(BatchAnswer)(answer)))


def explain(document: Mapping[str, Any]) -> Call[Explanation]:
    """Say what would become of a job."""
    return Call(Request("POST", f"{JOBS}:explain", (), encoded(document), (JSON,)), reads(Explanation))


def get(job_id: str, wait: float = 0) -> Call[JobView]:
    """See a job; the answer comes when it has finished, at the latest after `wait` seconds."""
    return Call(Request("GET", _of(job_id), _waiting(wait), silence=wait), reads(JobView))


def cancel(job_id: str) -> Call[JobView]:
    """Have a job stopped."""
    return Call(Request("POST", f"{_of(job_id)}:cancel"), reads(JobView))


def delete(job_id: str) -> Call[None]:
    """Remove a finished job and all that it left."""
    return Call(Request("DELETE", _of(job_id)), nothing)


def page(wanted: Filter, cursor: str | None) -> Call[JobList]:
    """Read one page of the list of jobs."""
    query = [("limit", str(PAGE))]
    query += [("cursor", cursor)] if cursor else []
    return Call(Request("GET", JOBS, (*query, *wanted.query)), reads(JobList))


def output(job_id: str, step: int, stream: Stream | str) -> Call[bytes]:
    """Fetch what was kept of an output of a step."""
    return Call(Request("GET", f"{_of(job_id)}/steps/{step}/{Stream(stream)}"), content)


def artifacts(job_id: str) -> Call[ArtifactList]:
    """List a job's artifacts."""
    return Call(Request("GET", f"{_of(job_id)}/artifacts"), reads(ArtifactList))


def artifact(job_id: str, path: str) -> Request:
    """Fetch one artifact."""
    return Request("GET", f"{_of(job_id)}/artifacts/{quote(path)}")


def events(job_id: str, after: str | None, silence: float) -> Request:
    """Follow a job from the event `after` on."""
    headers = [("Accept", "text/event-stream")]
    headers += [("Last-Event-ID", after)] if after else []
    return Request("GET", f"{_of(job_id)}/events", headers=tuple(headers), silence=silence)


def quota() -> Call[Quota]:
    """See every budget."""
    return Call(Request("GET", "/v1/quota"), reads(Quota))


def usage(step: Window | str, since: datetime | None, until: datetime | None) -> Call[UsageReport]:
    """See what was used, hour by hour or day by day."""
    query = [("step", Window(step).value)]
    query += [(name, moment.isoformat()) for name, moment in (("from", since), ("to", until)) if moment]
    return Call(Request("GET", "/v1/usage", tuple(query)), reads(UsageReport))


def _of(job_id: str) -> str:
    if not job_id:
        raise ValueError("a job's id must not be empty")
    return f"{JOBS}/{quote(job_id, safe='')}"


def _waiting(wait: float) -> tuple[tuple[str, str], ...]:
    return (("wait", f"{wait:g}"),) if wait else ()


def _items(answer: BatchAnswer) -> tuple[JobView | ApiError, ...]:
    return tuple(
        item.job if isinstance(item, AcceptedItem) else error_of(item.problem) for item in answer.items
    )
