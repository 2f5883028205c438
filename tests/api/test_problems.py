"""Problem details: every refusal has one form."""

import asyncio
import json

import httpx
import pytest
from fastapi import FastAPI
from redis.exceptions import RedisError

from api import problems
from api.problems import KINDS, ProblemError
from jobs.problem import Problem
from policies.violation import Violation


def test_a_problem_says_type_title_status_and_detail() -> None:
    """The body is RFC 9457 with our `errors`, and nothing else."""
    response = problems.not_found("No such job.").response()
    assert response.media_type == "application/problem+json"
    assert json.loads(response.body) == {
        "type": "urn:stockade:problem:not-found",
        "title": "Not found",
        "status": 404,
        "detail": "No such job.",
        "errors": [],
    }


def test_an_unavailable_component_is_named_and_may_be_tried_again() -> None:
    """503 names the component and says when to come back."""
    response = problems.unavailable("redis", "Redis is down.").response()
    assert json.loads(response.body)["component"] == "redis"
    assert response.headers["retry-after"] == "1"


def test_kinds_are_told_apart_by_their_type() -> None:
    """No two kinds of problem share a name or a title."""
    assert len({kind.name for kind in KINDS}) == len({kind.title for kind in KINDS}) == len(KINDS)


def test_every_field_at_fault_is_listed() -> None:
    """All errors are in the body, and the first few in its sentence."""
    errors = tuple(Violation(field=f"files[{n}]", got=n, allowed=None, message="no") for n in range(7))
    problem = Problem.model_validate_json(problems.invalid(errors).response().body)
    assert problem.errors == errors
    assert problem.detail.startswith("7 fields are not valid: files[0], files[1]")


def test_the_body_as_a_whole_has_a_name_in_the_sentence() -> None:
    """A violation of the whole body has "" as its field, which says nothing to people."""
    errors = (Violation(field="", got=[], allowed="an object", message="must be an object"),)
    assert problems.invalid(errors).detail == "1 field is not valid: the body"


@pytest.mark.parametrize(
    ("method", "path", "status"), [("GET", "/nowhere", 404), ("DELETE", "/v1/jobs", 405), ("GET", "/v1", 404)]
)
def test_the_frameworks_own_refusals_are_problems_too(
    client: httpx.Client, method: str, path: str, status: int
) -> None:
    """An unknown address and a wrong method answer as problem details."""
    answer = client.request(method, path)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert Problem.model_validate_json(answer.content).status == status


@pytest.mark.parametrize(
    ("path", "methods"),
    [
        ("/v1/jobs", "GET, POST"),
        ("/v1/jobs/job_1", "DELETE, GET"),
        ("/v1/jobs/job_1:cancel", "POST"),
        ("/v1/jobs/job_1/artifacts/a:b/c", "GET"),
        ("/v1/webhooks/wh_1", "DELETE, GET, PATCH"),
        ("/docs", "GET"),
    ],
)
def test_a_wrong_method_is_told_the_right_ones(client: httpx.Client, path: str, methods: str) -> None:
    """405 has an Allow header with every method of the address (RFC 9110), whichever routes they come from."""
    answer = client.put(path)
    assert answer.status_code == 405
    assert answer.headers["allow"] == methods
    assert answer.json()["detail"] == f"PUT is not one of the methods of this address: {methods}."


@pytest.mark.parametrize("error", [RedisError("gone")])
def test_a_failing_redis_is_503_naming_it(error: Exception) -> None:
    """Whether the store or the queue says so, the caller reads `redis`."""
    app = FastAPI()
    problems.install(app, ())

    @app.get("/")
    async def fail() -> None:
        raise error

    async def get() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            return await client.get("/")

    answer = asyncio.run(get())
    assert answer.status_code == 503
    assert answer.json()["component"] == "redis"
    assert "gone" not in answer.text


def test_a_refusal_carries_its_headers() -> None:
    """Headers of a `ProblemError` are sent."""
    error = ProblemError(problems.UNAUTHENTICATED, "No.", headers={"WWW-Authenticate": "Bearer"})
    assert error.response().headers["www-authenticate"] == "Bearer"
