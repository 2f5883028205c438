"""Waiting for the end of a job: by long polls, for as long as the caller says, whatever happens to one of them."""

from functools import partial
from typing import Any

import httpx
import pytest

from stockade.client import NotInTime, Unreachable, call
from stockade.client.plan import PAUSE, POLL, finished
from tests.client.by_hand import ByHand, job_view


def polled(service: ByHand, timeout: float | None, patience: float = 5) -> Any:
    return service.run(finished(partial(call.get, "job_1"), timeout, service.patience(patience)))


def waits(service: ByHand) -> list[float]:
    """For how long each request has asked to wait."""
    return [float(request.url.params.get("wait", 0)) for request in service.requests]


def test_long_polls_follow_each_other_until_the_job_has_finished() -> None:
    """Each as long as proxies bear; nothing is slept between polls that took their time."""

    def script(_: httpx.Request, number: int) -> httpx.Response:
        service.now += POLL
        return httpx.Response(200, json=job_view("finished" if number == 40 else "running"))

    service = ByHand(script)
    assert polled(service, None).finished
    assert (waits(service), service.slept) == ([POLL] * 40, [])


def test_the_last_poll_is_as_long_as_there_is_time() -> None:
    """Never longer than the caller waits; then the job comes with the error."""

    def script(request: httpx.Request, _: int) -> httpx.Response:
        service.now += float(request.url.params["wait"])
        return httpx.Response(200, json=job_view("running"))

    service = ByHand(script)
    with pytest.raises(NotInTime, match="within 70 s") as error:
        polled(service, 70)
    assert (waits(service), service.now, error.value.job.state) == ([POLL, POLL, 10], 70, "running")


def test_a_service_that_answers_early_is_not_flooded() -> None:
    """One that is about to stop ends all polls at once."""
    service = ByHand(
        lambda _, number: httpx.Response(200, json=job_view("finished" if number == 9 else "queued"))
    )
    polled(service, None)
    assert service.slept == [PAUSE] * 8


def test_a_poll_that_breaks_late_is_taken_up_again() -> None:
    """Patience begins with a failure, not with the poll; a second failure after it ends it."""

    def script(_: httpx.Request, number: int) -> httpx.Response | Exception:
        service.now += POLL
        if number in failing:
            return httpx.ReadError("reset")
        return httpx.Response(200, json=job_view("finished" if number > 3 else "running"))

    failing = {1, 3}
    service = ByHand(script)
    assert polled(service, None).finished
    failing = {1, 2}
    service = ByHand(script)
    with pytest.raises(Unreachable):
        polled(service, None)


def test_a_job_is_handed_in_by_the_first_poll_alone() -> None:
    """What comes after it looks at the job that it made."""
    states = iter(("queued", "running", "finished"))
    service = ByHand(lambda *_: httpx.Response(200, json=job_view(next(states), id="job_7")))
    submit = partial(call.submit, {"command": ["true"]}, idempotency_key="k")
    service.run(finished(submit, None, service.patience(0)))
    assert [(each.method, each.url.path) for each in service.requests] == [
        ("POST", "/v1/jobs"), ("GET", "/v1/jobs/job_7"), ("GET", "/v1/jobs/job_7"),
    ]  # fmt: skip
