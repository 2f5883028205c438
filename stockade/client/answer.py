"""Answers: from the bytes that came to the models of the house, or to an error.

Members that this version does not know are ignored, so that a client understands newer services.
"""

from collections.abc import Callable
from typing import TypeVar

import httpx
from pydantic import BaseModel, ValidationError

from jobs.problem import Problem
from stockade.client.errors import ApiError, UnexpectedAnswer, error_of

Model = TypeVar("Model", bound=BaseModel)
_SHOWN = 200  # characters of an answer that is not understood


def checked(answer: httpx.Response, retry_after: float | None = None) -> httpx.Response:
    """The answer, if it is a good one.

    Raises:
        ApiError: it is a problem document.
        UnexpectedAnswer: it is neither.
    """
    if not answer.is_success:
        raise problem_of(answer, retry_after)
    return answer


def problem_of(answer: httpx.Response, retry_after: float | None = None) -> ApiError | UnexpectedAnswer:
    """The error that an answer is."""
    try:
        problem = Problem.model_validate_json(answer.content, extra="ignore")
    except ValidationError:
        return _unexpected(answer, f"with status {answer.status_code}, which is no problem document")
    return error_of(problem, retry_after)


def reads(model: type[Model]) -> Callable[[httpx.Response], Model]:
    """What reads a good answer as this model."""

    def read(answer: httpx.Response) -> Model:
        try:
            return model.model_validate_json(answer.content, extra="ignore")
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            place = ".".join(map(str, first["loc"])) or "the body"
            raise _unexpected(answer, f"that is no {model.__name__}: {place}: {first['msg']}") from None

    return read


def nothing(answer: httpx.Response) -> None:
    """Read an answer that has no body."""


def content(answer: httpx.Response) -> bytes:
    """Read an answer that is bytes as they are."""
    return answer.content


def _unexpected(answer: httpx.Response, what: str) -> UnexpectedAnswer:
    text = answer.content[:_SHOWN].decode(errors="replace")
    return UnexpectedAnswer(
        f"{answer.request.method} {answer.request.url.path} got an answer {what}: {text!r}"
    )
