"""AsyncClient: the API for programs with an event loop, asyncio's or trio's. `Client` tells what each call means."""

import io
from collections.abc import AsyncGenerator, Iterable, Mapping
from datetime import datetime
from functools import partial
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar, Unpack

import httpx

from jobs.job import JobState
from jobs.job_event import Event, Stream
from jobs.job_list import JobSummary
from jobs.job_view import ArtifactList, JobView
from jobs.quota import Quota
from jobs.usage import UsageReport, Window
from policies.explain import Explanation
from stockade.client import call, plan
from stockade.client.access import access
from stockade.client.call import Call
from stockade.client.download import replaced
from stockade.client.driver import LoopDriver
from stockade.client.errors import ApiError
from stockade.client.job_body import JobFields, JobLike, document
from stockade.client.job_filter import wanted
from stockade.client.retry import Patience

T = TypeVar("T")


class AsyncClient:
    """A connection to one service with one API key. Close it, or use it as an asynchronous context manager.

    May be used by several tasks at once. Every call raises a `StockadeError` when it does not succeed.
    """

    def __init__(
        self,
        url: str | None = None,
        key: str | None = None,
        *,
        timeout: float = 30.0,
        patience: float = 30.0,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        """Connect nothing yet; see `Client`."""
        opened = access(url, key)
        self.url = opened.url
        self._patience = Patience(patience)
        self._driver = LoopDriver(opened, timeout, transport)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.url!r})"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close every connection; may be repeated."""
        await self._driver.http.aclose()

    async def submit(
        self,
        job: JobLike,
        *,
        wait: float = 0,
        idempotency_key: str | None = None,
        **fields: Unpack[JobFields],
    ) -> JobView:
        """Hand in a job, once, however often the request has to be sent; see `Client.submit`."""
        return await self._answered(
            call.submit(document(job, fields), wait, idempotency_key or call.new_key())
        )

    async def run(
        self, job: JobLike, *, timeout: float | None = None, **fields: Unpack[JobFields]
    ) -> JobView:
        """Hand in a job and wait until it has finished; see `Client.run`."""
        submit = partial(call.submit, document(job, fields), idempotency_key=call.new_key())
        return await self._driver.run(plan.finished(submit, timeout, self._patience))

    async def batch(
        self, jobs: Iterable[JobLike], *, idempotency_key: str | None = None
    ) -> tuple[JobView | ApiError, ...]:
        """Hand in up to 100 jobs at once; see `Client.batch`."""
        documents = [document(job, {}) for job in jobs]
        return await self._answered(call.batch(documents, idempotency_key or call.new_key()))

    async def explain(self, job: JobLike, **fields: Unpack[JobFields]) -> Explanation:
        """Say what would become of a job; see `Client.explain`."""
        return await self._answered(call.explain(document(job, fields)))

    async def get(self, job_id: str) -> JobView:
        """The job as it is now. Raises NotFound."""
        return await self._answered(call.get(job_id))

    async def wait(self, job_id: str, *, timeout: float | None = None) -> JobView:
        """The job once it has finished; see `Client.wait`."""
        return await self._driver.run(plan.finished(partial(call.get, job_id), timeout, self._patience))

    def events(self, job_id: str, *, after: str | None = None) -> AsyncGenerator[Event]:
        """What the job does and writes, while it does; see `Client.events`.

        Who leaves the loop early closes what this returns (`contextlib.aclosing`).
        """
        return self._driver.told(plan.followed(job_id, after, self._patience))

    def list(
        self,
        *,
        state: JobState | str | Iterable[JobState | str] = (),
        labels: Mapping[str, str] | None = None,
        created_after: datetime | None = None,
        created_before: datetime | None = None,
    ) -> AsyncGenerator[JobSummary]:
        """The project's jobs, newest first; see `Client.list`."""
        which = wanted(state, labels or {}, created_after, created_before)
        return self._driver.told(plan.listed(which, self._patience))

    async def cancel(self, job_id: str) -> JobView:
        """Have the job stopped; it as it then is."""
        return await self._answered(call.cancel(job_id))

    async def delete(self, job_id: str) -> None:
        """Remove a finished job with its outputs and artifacts; see `Client.delete`."""
        await self._answered(call.delete(job_id))

    async def output(self, job_id: str, step: int = 0, stream: Stream | str = Stream.STDOUT) -> bytes:
        """What was kept of an output of a step of a finished job, exactly."""
        return await self._answered(call.output(job_id, step, stream))

    async def artifacts(self, job_id: str) -> ArtifactList:
        """The files that a finished job left, and those that could not be kept."""
        return await self._answered(call.artifacts(job_id))

    async def artifact(self, job_id: str, path: str) -> bytes:
        """The content of one artifact. Raises Corrupt when its SHA-256 is wrong."""
        sink = io.BytesIO()
        await self._driver.run(plan.downloaded(call.artifact(job_id, path), sink, self._patience))
        return sink.getvalue()

    async def download(self, job_id: str, path: str, to: str | PathLike[str]) -> Path:
        """Write one artifact to the file `to`, piece by piece; see `Client.download`."""
        with replaced(Path(to)) as sink:
            await self._driver.run(plan.downloaded(call.artifact(job_id, path), sink, self._patience))
        return Path(to)

    async def quota(self) -> Quota:
        """Limit, use and reset of every budget of the project and of its organisation."""
        return await self._answered(call.quota())

    async def usage(
        self,
        step: Window | str = Window.DAY,
        *,
        since: datetime | None = None,
        until: datetime | None = None,
    ) -> UsageReport:
        """What the project used, in windows of an hour or of a day."""
        return await self._answered(call.usage(step, since, until))

    async def _answered(self, asked: Call[T]) -> T:
        return await self._driver.run(plan.answered(asked, self._patience))
