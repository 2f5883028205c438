"""What fails is tried again, when that may help and for as long as the client has patience."""

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from functools import partial
from typing import Any

import httpx
import pytest

from stockade.client import (
    ApiError,
    InvalidRequest,
    NotFound,
    OverBudget,
    Unavailable,
    UnexpectedAnswer,
    Unreachable,
)
from stockade.client import call as calls
from stockade.client.effect import Plan, send
from stockade.client.plan import answered
from stockade.client.retry import retried, retry_after
from tests.client.by_hand import ByHand, Script, problem
from tests.clients import KINDS, opened

QUOTA = {"tenant": "t", "name": "acme/x", "budgets": []}
GOOD = {"project": QUOTA, "organisation": QUOTA}


def first_then(*first: httpx.Response | Exception, then: httpx.Response | None = None) -> Script:
    """These answers, then a good one."""
    return lambda _, number: (
        first[number - 1] if number <= len(first) else then or httpx.Response(200, json=GOOD)
    )


def asked(service: ByHand, patience: float = 30.0) -> Any:
    return service.run(answered(calls.quota(), service.patience(patience)))


@pytest.mark.parametrize(
    "failure",
    [httpx.ConnectError("refused"), httpx.ReadTimeout("silent"), httpx.RemoteProtocolError("closed"),
     problem(503, "unavailable"), problem(429, "too-many-streams"), httpx.Response(502, text="<html>proxy")],
    ids=lambda failure: type(failure).__name__,
)  # fmt: skip
def test_what_passes_is_tried_again(failure: httpx.Response | Exception) -> None:
    """The answer that comes in the end counts; every pause is a little longer than the one before."""
    service = ByHand(first_then(*[failure] * 5))
    assert asked(service).project.name == "acme/x"
    assert len(service.requests) == 6
    assert all(0.05 * 2**n <= pause <= 0.1 * 2**n for n, pause in enumerate(service.slept))


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_retry_after_is_honoured(form: str) -> None:
    """Not before the service has asked for, in either form of the header field."""
    late = format_datetime(datetime.now(UTC) + timedelta(seconds=8), usegmt=True)
    service = ByHand(first_then(problem(503, "unavailable", retry_after=7 if form == "seconds" else late)))
    asked(service)
    (slept,) = service.slept
    assert 6 < slept <= 8


def test_nothing_that_is_no_time_is_waited_for() -> None:
    """A header field that says something else is as none."""
    for text in ("", "soon", "-1", "1.5", "²"):
        assert retry_after(httpx.Response(503, headers={"Retry-After": text.encode()})) is None


def test_a_budget_that_comes_back_too_late_is_said_at_once() -> None:
    """Who would wait an hour is told so now: which budget, and when to come back."""
    errors = [{"field": "budgets.cpu_seconds_per_hour", "got": 9, "allowed": 5, "message": "is used up"}]
    service = ByHand(first_then(problem(429, "over-budget", retry_after=1800, errors=errors)))
    with pytest.raises(OverBudget, match=r"budgets\.cpu_seconds_per_hour: is used up") as error:
        asked(service)
    assert (error.value.budget, error.value.retry_after, service.slept) == ("cpu_seconds_per_hour", 1800, [])


def test_patience_ends() -> None:
    """After the seconds that the caller allows, what failed last is raised; with none, after one try."""
    service = ByHand(lambda *_: problem(503, "unavailable", component="redis"))
    with pytest.raises(Unavailable) as error:
        asked(service, patience=10)
    assert error.value.problem.component == "redis"
    assert 5 <= service.now <= 10
    once = ByHand(lambda *_: httpx.ConnectError("refused"))
    with pytest.raises(Unreachable, match="no answer from http://service: refused"):
        asked(once, patience=0)
    assert len(once.requests) == 1


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 413, 422, 500])
def test_a_refusal_is_not_asked_for_twice(status: int) -> None:
    """What is wrong with the request itself stays wrong."""
    service = ByHand(lambda *_: problem(status, "invalid-request"))
    with pytest.raises(InvalidRequest):
        asked(service)
    assert len(service.requests) == 1


@pytest.mark.parametrize(
    "answer",
    [httpx.Response(404, text="<html>"), httpx.Response(302, headers={"Location": "http://elsewhere"}),
     httpx.Response(200, text="<html>"), httpx.Response(200, json={"project": 1})],
)  # fmt: skip
def test_what_is_not_the_api_is_said_to_be_that(answer: httpx.Response) -> None:
    """A page of some proxy, a redirection, a body of another form: neither success nor a refusal."""
    with pytest.raises(UnexpectedAnswer, match="GET /v1/quota got an answer"):
        asked(ByHand(lambda *_: answer))


def test_members_of_a_newer_service_are_ignored() -> None:
    """An answer with more in it than this version knows is understood."""
    budget = {"budget": "b", "limit": 1, "used": 0, "resets": None, "novel": 1}
    newer = {"project": QUOTA | {"budgets": [budget], "novel": {}}, "organisation": QUOTA, "novel": []}
    assert asked(ByHand(lambda *_: httpx.Response(200, json=newer))).project.budgets[0].limit == 1
    refused = ByHand(lambda *_: problem(418, "teapot", novel=1))
    with pytest.raises(ApiError) as error:
        asked(refused)
    assert (type(error.value), error.value.status) == (ApiError, 418)


def test_a_deletion_whose_answer_was_lost_has_succeeded() -> None:
    """404 after a try that may have arrived is what was wanted; at the first try it is `NotFound`."""
    gone = problem(404, "not-found")
    delete = calls.delete("job_1")
    service = ByHand(first_then(httpx.ReadError("reset"), then=gone))
    assert service.run(answered(delete, service.patience(9))) is None
    service = ByHand(first_then(problem(503, "unavailable"), then=gone))
    with pytest.raises(NotFound):
        service.run(answered(delete, service.patience(9)))


def test_what_cannot_ever_be_sent_is_not_tried_again() -> None:
    """A request that the protocol cannot carry."""
    service = ByHand(lambda *_: httpx.LocalProtocolError("illegal"))
    plan: Plan[httpx.Response] = retried(partial(send, calls.quota().request), service.patience(9))
    with pytest.raises(Unreachable):
        service.run(plan)
    assert len(service.requests) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_job_is_handed_in_once_however_often_it_is_sent(kind: str) -> None:
    """Every try has the same idempotency key, and another job has another; one that is given is used."""
    keys: list[str] = []

    def handler(request: httpx.Request) -> httpx.Response:
        keys.append(request.headers["Idempotency-Key"])
        if len(keys) % 2:
            raise httpx.ReadError("the answer is lost", request=request)
        return problem(422, "not-admitted")

    with opened(kind, "http://service", "sk_1", handler) as client:
        for submit in (client.submit, client.run, partial(client.submit, idempotency_key="mine")):
            with pytest.raises(ApiError):
                submit(["true"])
        with pytest.raises(ApiError):
            client.batch([["true"]])
    assert keys[::2] == keys[1::2]
    assert len(set(keys)) == 4
    assert keys[4] == "mine"
