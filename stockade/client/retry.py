"""Retry: what is worth another try, when, and how often.

Every request of this client can be repeated: what makes something carries an idempotency key, and everything else
leaves, done twice, what it leaves done once.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from itertools import count
from random import uniform

import httpx

from stockade.client.answer import problem_of
from stockade.client.effect import Plan, Sleep
from stockade.client.errors import StockadeError, Unreachable

AGAIN = frozenset({429, 502, 503, 504})
"""Statuses that say nothing about the request itself; 502 and 504 are those of proxies."""
HOPELESS = (httpx.UnsupportedProtocol, httpx.LocalProtocolError, httpx.DecodingError)
"""Failures that another try would end in, too."""
FIRST_DELAY, MOST_DELAY = 0.1, 5.0  # seconds


@dataclass(frozen=True)
class Patience:
    """For how long what fails is tried again."""

    seconds: float
    clock: Callable[[], float] = time.monotonic


def retried(attempt: Callable[[], Plan[httpx.Response]], patience: Patience) -> Plan[httpx.Response]:
    """The answer of an attempt, repeated while the service cannot be reached, is busy or unavailable.

    Waits for as long as `Retry-After` says, else ever longer. Where that would take more than the patience, which
    begins with the first failure, the failure is raised at once.

    Raises:
        Unreachable: no answer came.
        ApiError: 429 or 503, for longer than the patience.
    """
    deadline: float | None = None
    lost = False
    for number in count():
        delay = backoff(number)
        failure: StockadeError
        try:
            answer = yield from attempt()
        except httpx.RequestError as error:
            lost = True
            failure = unreachable(error)
            if isinstance(error, HOPELESS):
                raise failure from error
        else:
            if lost and answer.status_code == 404 and answer.request.method == "DELETE":
                return httpx.Response(204, request=answer.request)  # the one whose answer was lost did it
            if answer.status_code not in AGAIN:
                return answer
            after = retry_after(answer)
            failure = problem_of(answer, after)
            delay = delay if after is None else after
        now = patience.clock()
        deadline = now + patience.seconds if deadline is None else deadline
        if now + delay > deadline:
            raise failure
        yield Sleep(delay)
    raise AssertionError("there is always a next number")


def unreachable(error: httpx.RequestError) -> Unreachable:
    """The error that says why no answer came."""
    try:
        where = f"{error.request.url.scheme}://{error.request.url.netloc.decode()}"
    except RuntimeError:  # httpx, of an error that is not about one request
        where = "the service"
    return Unreachable(f"no answer from {where}: {error or type(error).__name__}")


def backoff(number: int) -> float:
    """Seconds before try `number` + 1: twice as long each time, and never the same for two clients."""
    longest = min(MOST_DELAY, FIRST_DELAY * 2.0 ** min(number, 10))
    return longest * uniform(0.5, 1)  # noqa: S311 - spreads load, guards nothing


def retry_after(answer: httpx.Response) -> float | None:
    """Seconds that `Retry-After` asks for, in either of its forms (RFC 9110, 10.2.3); None without it."""
    text = answer.headers.get("Retry-After", "").strip()
    if text.isascii() and text.isdigit():
        return float(text)
    try:
        moment = parsedate_to_datetime(text)
    except ValueError:
        return None
    return max(0.0, (moment.replace(tzinfo=moment.tzinfo or UTC) - datetime.now(UTC)).total_seconds())
