"""Events: what a job does while it does it, as server-sent events that can be resumed (docs/live-output.md).

The format is that of the HTML standard, https://html.spec.whatwg.org/multipage/server-sent-events.html. Data is
JSON in one line of ASCII, so nothing that a program prints can end a line, let alone an event.
"""

import asyncio
import json
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, suppress
from typing import Annotated, NamedTuple

from anyio import to_thread
from fastapi import APIRouter, Header, Request, Response
from fastapi.responses import StreamingResponse
from redis.exceptions import RedisError
from starlette.types import Receive, Scope, Send

from api.auth import Reader
from api.documentation import event_body
from api.jobs import JobId, find
from api.live import LiveJobs
from api.problems import (
    FORBIDDEN,
    INTERNAL,
    INVALID_REQUEST,
    NOT_FOUND,
    TOO_MANY_STREAMS,
    UNAUTHENTICATED,
    UNAVAILABLE,
    documented,
    invalid,
)
from api.services import Services, services_of
from api.story import Cursor, Story
from jobs.job import Job, JobState
from jobs.job_event import EVENTS, Event
from jobs.live import FIRST, Glance
from jobs.metrics import metrics
from policies.violation import Violation, shown

RECONNECT = 1000  # ms that a client waits before it comes back; sent as `retry`

HEADERS = {"X-Accel-Buffering": "no"}  # nginx and its like pass on at once; Cache-Control is in api.access

LastEventId = Annotated[
    str | None,
    Header(
        alias="Last-Event-ID",
        description="The `id` of the last event that was received, to go on after it; without it, from the"
        " beginning.",
        examples=["1r-0-12-0"],
    ),
]

router = APIRouter(
    tags=["jobs"], responses=documented(UNAUTHENTICATED, FORBIDDEN, INVALID_REQUEST, INTERNAL, UNAVAILABLE)
)


class EventStream(StreamingResponse):
    """The answer that goes on; it takes one of the places for streams while it is sent."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[str], live: LiveJobs, tenant: str) -> None:
        super().__init__(events, headers=HEADERS)
        self._events, self._live, self._tenant = events, live, tenant

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send events until there are no more or nobody listens. Raises ProblemError without a place."""
        async with aclosing(self._events):
            with self._live.place(self._tenant):
                metrics.count("live_streams_opened_total")
                try:
                    await super().__call__(scope, receive, send)
                finally:
                    metrics.count("live_streams_closed_total")


@router.get(
    "/v1/jobs/{job_id}/events",
    summary="Follow a job",
    responses={
        200: {"description": "Events, until the job is finished", "content": event_body(EVENTS)},
        204: {"description": "The event that was received last was `finished`: do not come back"},
        **documented(NOT_FOUND, INVALID_REQUEST, TOO_MANY_STREAMS),
    },
)
async def follow_job(
    request: Request, caller: Reader, job_id: JobId, last_event_id: LastEventId = None
) -> Response:
    """States, and what the job writes while it writes it, as server-sent events, from the beginning.

    After `finished` the stream ends. When it ends before, ask again with `Last-Event-ID`: nothing is missed and
    nothing comes twice.
    """
    cursor = _cursor(last_event_id)
    services = services_of(request)
    await to_thread.run_sync(find, services, job_id, caller)
    if cursor.finished:
        return Response(status_code=204)
    return EventStream(_told(services, job_id, caller.id, Story(cursor)), services.live, caller.id)


def _cursor(last_event_id: str | None) -> Cursor:
    if not last_event_id:
        return Cursor()
    try:
        return Cursor.parse(last_event_id)
    except ValueError:
        wrong = Violation(
            field="Last-Event-ID",
            got=shown(last_event_id),
            allowed="the id of an event of this job",
            message="must be the id of an event of this job",
        )
        raise invalid((wrong,)) from None


class _Found(NamedTuple):
    """What a look at a job found."""

    glance: Glance
    job: Job | None
    """The whole job, once it is finished and all of its live output is in the glance."""


async def _told(services: Services, job_id: str, tenant: str, story: Story) -> AsyncGenerator[str]:
    """The stream's text, piece by piece, until the job is finished or gone, or the stream has lasted long."""
    live, clock = services.live, asyncio.get_running_loop().time
    begun = spoken = clock()
    position = FIRST
    yield f"retry: {RECONNECT}\n\n"
    async with live.watch(job_id) as news:
        while not live.closed and clock() < begun + live.lasts:
            news.clear()
            more = False
            with suppress(RedisError):  # it comes back, or the caller leaves
                found = await to_thread.run_sync(
                    _look, services, job_id, tenant, position, limiter=live.lookers
                )
                if found is None:
                    return
                for event in _news(story, found):
                    yield _encoded(event)
                    spoken = clock()
                    await asyncio.sleep(0)  # a long story leaves time to others
                if found.job is not None:
                    return
                position, more = found.glance.position, found.glance.more
            if clock() - spoken >= live.keep_alive:
                yield ": keep-alive\n\n"
                spoken = clock()
            if not more:
                await live.wait(news, min(live.recheck, live.keep_alive))


def _look(services: Services, job_id: str, tenant: str, position: bytes) -> _Found | None:
    """Look at the tenant's job; None when there is none any more."""
    glance = services.live_output.look(job_id, tenant, position)
    if glance is None:
        return None
    if glance.more or glance.progress.state is not JobState.FINISHED:
        return _Found(glance, None)
    job = services.store.get(job_id, tenant)
    return _Found(glance, job) if job is not None else None


def _news(story: Story, found: _Found) -> Iterator[Event]:
    yield from story.progress(found.glance.progress)
    for piece in found.glance.pieces:
        yield from story.piece(piece)
    if found.job is not None:
        yield from story.end(found.job)


def _encoded(event: Event) -> str:
    data = json.dumps(event.data.model_dump(mode="json"), separators=(",", ":"))
    return f"id: {event.id}\nevent: {event.name}\ndata: {data}\n\n"
