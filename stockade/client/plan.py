"""Plans: the conversations that are more than one request and its answer."""

import hashlib
import math
from collections.abc import Callable
from functools import partial
from typing import BinaryIO, TypeVar

import httpx
from pydantic import ValidationError

from jobs.job_event import EVENTS, Event
from jobs.job_list import JobSummary
from jobs.job_view import JobView
from stockade.client import call
from stockade.client.answer import checked
from stockade.client.call import Call
from stockade.client.effect import Give, Giving, Plan, Request, Sleep, Work, next_bytes, open_answer, send
from stockade.client.errors import Corrupt, NotInTime, StockadeError, UnexpectedAnswer, Unreachable
from stockade.client.job_filter import Filter
from stockade.client.retry import Patience, backoff, retried, unreachable
from stockade.client.sse import Decoder, Message

T = TypeVar("T")
POLL = 30.0
"""Seconds that one request waits for the end of a job; proxies cut what is silent for longer."""
SILENCE = 45.0
"""Seconds without a byte after which a stream is taken for broken; the service speaks every 15."""
RECONNECT = 1.0
"""Seconds before a stream that broke off is asked for again, while the service has not said how many."""
PAUSE = 0.5
"""Seconds before the next long poll where one was answered at once: the service is about to stop."""


def answered(asked: Call[T], patience: Patience) -> Plan[T]:
    """The result of a call, tried again where that may help."""
    answer = yield from retried(partial(send, asked.request), patience)
    return asked.read(checked(answer))


def finished(
    first: Callable[[float], Call[JobView]], timeout: float | None, patience: Patience
) -> Plan[JobView]:
    """A job once it has finished.

    Args:
        first: the call that hands it in or looks at it, and waits for its end for so many seconds.
        timeout: seconds that this may take in all; None for as long as it takes.
        patience: for each of the calls.

    Raises:
        NotInTime: it took longer.
    """
    clock = patience.clock
    deadline = math.inf if timeout is None else clock() + timeout
    ask = first
    while True:
        begun = clock()
        seconds = max(0.0, min(POLL, deadline - begun))
        job = yield from answered(ask(seconds), patience)
        if job.finished:
            return job
        ask = partial(call.get, job.id)
        if timeout is not None and clock() >= deadline:
            raise NotInTime(job, timeout)
        if (early := begun + seconds - clock()) > 0:  # a service that is about to stop answers at once
            yield Sleep(min(PAUSE, early))


def listed(wanted: Filter, patience: Patience) -> Giving[JobSummary]:
    """The jobs that are wanted, newest first, page by page as they are asked for."""
    cursor: str | None = None
    while True:
        page = yield from answered(call.page(wanted, cursor), patience)
        for job in page.jobs:
            yield Give(job)
        cursor = page.next
        if cursor is None:
            return


def downloaded(request: Request, sink: BinaryIO, patience: Patience) -> Plan[None]:
    """Write the body of an answer to `sink` as it comes; from its beginning again where it broke off.

    Raises:
        Corrupt: its SHA-256 is not the one that the service has.
    """
    digest = hashlib.sha256()

    def attempt() -> Plan[httpx.Response]:
        nonlocal digest
        answer = yield from open_answer(request)
        if answer.status_code != 200:
            return answer
        digest = hashlib.sha256()
        yield Work(partial(_empty, sink))
        while (chunk := (yield from next_bytes())) is not None:
            digest.update(chunk)
            yield Work(partial(sink.write, chunk))
        return answer

    answer = yield from retried(attempt, patience)
    if not answer.is_success:
        checked(answer)
    expected = answer.headers.get("ETag", "").strip('"')
    if digest.hexdigest() != expected:
        raise Corrupt(
            f"{request.path}: the SHA-256 is {digest.hexdigest()}, the service has {expected or '?'}"
        )


def _empty(sink: BinaryIO) -> None:
    sink.seek(0)
    sink.truncate()


def followed(job_id: str, after: str | None, patience: Patience) -> Giving[Event]:
    """A job's events until it is finished, after the event `after`; a stream that breaks off is taken up again."""
    clock, pause, last, failures, given_up = patience.clock, RECONNECT, after, 0, 0.0
    while True:
        request = call.events(job_id, last, SILENCE)
        answer = checked((yield from retried(partial(open_answer, request), patience)))
        if answer.status_code == 204:
            return
        decoder, begun = Decoder(), clock()
        failure: StockadeError = Unreachable(f"the stream of events of job {job_id} ends before its end")
        try:
            while (chunk := (yield from next_bytes())) is not None:
                for message in decoder.feed(chunk):
                    last, failures = message.id or last, 0
                    if message.name in EVENTS:  # a newer service may have others
                        yield Give(_event(message))
                    if message.name == "finished":
                        return
        except httpx.RequestError as error:
            failure = unreachable(error)
        pause = pause if decoder.retry is None else decoder.retry
        if clock() - begun > SILENCE:  # it was alive, with nothing to tell
            failures = 0
        if failures == 0:
            given_up = clock() + patience.seconds
        delay = max(pause, backoff(failures)) if failures else pause
        failures += 1
        if clock() + delay > given_up:
            raise failure
        yield Sleep(delay)


def _event(message: Message) -> Event:
    name, event_id, data = message
    try:
        return Event(name, event_id, EVENTS[name].model_validate_json(data, extra="ignore"))
    except ValidationError as error:
        reason = error.errors(include_url=False, include_input=False)[0]["msg"]
        raise UnexpectedAnswer(f"an event {name!r} that is none: {reason}") from None
