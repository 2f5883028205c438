"""Client: the API for programs that may block."""

import io
from collections.abc import Generator, Iterable, Mapping
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
from stockade.client.driver import BlockingDriver
from stockade.client.errors import ApiError
from stockade.client.job_body import JobFields, JobLike, document
from stockade.client.job_filter import wanted
from stockade.client.retry import Patience

T = TypeVar("T")


class Client:
    """A connection to one service with one API key. Close it, or use it as a context manager.

    May be used by several threads at once. Every call raises a `StockadeError` when it does not succeed.
    """

    def __init__(
        self,
        url: str | None = None,
        key: str | None = None,
        *,
        timeout: float = 30.0,
        patience: float = 30.0,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        """Connect nothing yet.

        Args:
            url: where the service is; the default is the variable `STOCKADE_URL`.
            key: the API key; the default is the variable `STOCKADE_KEY`.
            timeout: seconds that one try may take to connect, to send, and to get each part of the answer.
            patience: seconds after its first failure for which a call is tried again, while the service cannot
                be reached, is busy (429) or unavailable (503); 0 for one try only.
            transport: what sends the requests in place of the network.

        Raises:
            ConfigurationError: address or key are missing or cannot be used.
        """
        opened = access(url, key)
        self.url = opened.url
        self._patience = Patience(patience)
        self._driver = BlockingDriver(opened, timeout, transport)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.url!r})"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close every connection; may be repeated."""
        self._driver.http.close()

    def submit(
        self,
        job: JobLike,
        *,
        wait: float = 0,
        idempotency_key: str | None = None,
        **fields: Unpack[JobFields],
    ) -> JobView:
        """Hand in a job, once, however often the request has to be sent.

        Args:
            job: a command, or a whole job.
            wait: seconds to wait for its end, at most 60; the job comes back as it then is.
            idempotency_key: the same key and job give the same job again, also to another process and another
                day; the default is a new key.
            fields: what more there is to say of it, such as `policy`, `files` or `limits`.

        Raises:
            InvalidRequest: a field is not as it must be.
            NotAdmitted: the policy does not allow the job.
            OverBudget: a budget is used up for longer than the client has patience.
        """
        return self._answered(call.submit(document(job, fields), wait, idempotency_key or call.new_key()))

    def run(self, job: JobLike, *, timeout: float | None = None, **fields: Unpack[JobFields]) -> JobView:
        """Hand in a job and wait until it has finished.

        Raises:
            NotInTime: it has not within `timeout` seconds; it goes on.
        """
        submit = partial(call.submit, document(job, fields), idempotency_key=call.new_key())
        return self._driver.run(plan.finished(submit, timeout, self._patience))

    def batch(
        self, jobs: Iterable[JobLike], *, idempotency_key: str | None = None
    ) -> tuple[JobView | ApiError, ...]:
        """Hand in up to 100 jobs at once; for each, in order, the job or why it was refused."""
        documents = [document(job, {}) for job in jobs]
        return self._answered(call.batch(documents, idempotency_key or call.new_key()))

    def explain(self, job: JobLike, **fields: Unpack[JobFields]) -> Explanation:
        """Say what would become of a job, value by value, without handing it in."""
        return self._answered(call.explain(document(job, fields)))

    def get(self, job_id: str) -> JobView:
        """The job as it is now. Raises NotFound."""
        return self._answered(call.get(job_id))

    def wait(self, job_id: str, *, timeout: float | None = None) -> JobView:
        """The job once it has finished.

        Raises:
            NotInTime: it has not within `timeout` seconds.
            NotFound: there is no such job.
        """
        return self._driver.run(plan.finished(partial(call.get, job_id), timeout, self._patience))

    def events(self, job_id: str, *, after: str | None = None) -> Generator[Event, None, None]:
        """What the job does and writes, while it does, from its beginning to `finished`.

        A connection that breaks is taken up again; nothing is missed and nothing comes twice. `after` is the id
        of the last event that the caller knows.
        """
        return self._driver.told(plan.followed(job_id, after, self._patience))

    def list(
        self,
        *,
        state: JobState | str | Iterable[JobState | str] = (),
        labels: Mapping[str, str] | None = None,
        created_after: datetime | None = None,
        created_before: datetime | None = None,
    ) -> Generator[JobSummary, None, None]:
        """The project's jobs, newest first, those for which all that is given holds; asked for page by page."""
        which = wanted(state, labels or {}, created_after, created_before)
        return self._driver.told(plan.listed(which, self._patience))

    def cancel(self, job_id: str) -> JobView:
        """Have the job stopped; it as it then is. One that has finished stays as it is."""
        return self._answered(call.cancel(job_id))

    def delete(self, job_id: str) -> None:
        """Remove a finished job with its outputs and artifacts.

        Raises:
            NotFinished: cancel it first.
            NotFound: there is no such job.
        """
        self._answered(call.delete(job_id))

    def output(self, job_id: str, step: int = 0, stream: Stream | str = Stream.STDOUT) -> bytes:
        """What was kept of an output of a step of a finished job, exactly."""
        return self._answered(call.output(job_id, step, stream))

    def artifacts(self, job_id: str) -> ArtifactList:
        """The files that a finished job left, and those that could not be kept."""
        return self._answered(call.artifacts(job_id))

    def artifact(self, job_id: str, path: str) -> bytes:
        """The content of one artifact. Raises Corrupt when its SHA-256 is wrong."""
        sink = io.BytesIO()
        self._driver.run(plan.downloaded(call.artifact(job_id, path), sink, self._patience))
        return sink.getvalue()

    def download(self, job_id: str, path: str, to: str | PathLike[str]) -> Path:
        """Write one artifact to the file `to`, piece by piece; it is there whole or, after an error, not at all."""
        with replaced(Path(to)) as sink:
            self._driver.run(plan.downloaded(call.artifact(job_id, path), sink, self._patience))
        return Path(to)

    def quota(self) -> Quota:
        """Limit, use and reset of every budget of the project and of its organisation."""
        return self._answered(call.quota())

    def usage(
        self,
        step: Window | str = Window.DAY,
        *,
        since: datetime | None = None,
        until: datetime | None = None,
    ) -> UsageReport:
        """What the project used, in windows of an hour or of a day."""
        return self._answered(call.usage(step, since, until))

    def _answered(self, asked: Call[T]) -> T:
        return self._driver.run(plan.answered(asked, self._patience))
