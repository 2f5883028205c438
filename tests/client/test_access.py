"""Where the client goes, and that its key is seen by nobody but the service."""

import pickle
import traceback

import httpx
import pytest

from api.problems import KINDS as PROBLEMS
from jobs.problem import URN, Problem
from stockade.client import ApiError, AsyncClient, Client, ConfigurationError, StockadeError
from stockade.client.access import Access, access
from stockade.client.errors import error_of
from tests.clients import KINDS, opened

KEY = "sk_00112233_secret"


def test_arguments_go_before_the_environment() -> None:
    """Each of the two by itself; a line end around them is none of theirs."""
    there = {"STOCKADE_URL": "https://there/base/", "STOCKADE_KEY": f"{KEY}\n"}
    assert access(None, None, there) == Access("https://there/base", KEY)
    assert access("http://here", None, there) == Access("http://here", KEY)
    assert access(None, "sk_other", there) == Access("https://there/base", "sk_other")


@pytest.mark.parametrize(
    ("url", "key", "named"),
    [
        (None, KEY, "STOCKADE_URL"),
        ("http://x", None, "STOCKADE_KEY"),
        ("service:8000", KEY, "must be http"),
        ("ftp://x", KEY, "must be http"),
        ("http://", KEY, "must be http"),
        (f"http://user:{KEY}@x", KEY, "must be http"),
        ("http://x/?a=b", KEY, "must be http"),
        ("http://x:y", KEY, "must be http"),
        ("http://x", f"{KEY}\r\nX: y", "printable"),
        ("http://x", f"{KEY}é", "printable"),
    ],
)
def test_what_cannot_be_used_is_refused_without_showing_the_key(
    url: str | None, key: str | None, named: str
) -> None:
    """At once, naming the variable."""
    with pytest.raises(ConfigurationError, match=named) as error:
        access(url, key, {})
    assert KEY not in str(error.value)


def test_only_another_machine_is_asked_through_a_proxy() -> None:
    """The proxies of the environment cannot reach our own loopback addresses."""
    for url in ("http://127.0.0.1:1", "http://localhost", "http://[::1]:80", "http://0.0.0.0:1"):
        assert Access(url, KEY).local
    for url in ("http://example.com", "http://192.0.2.1", "http://localhost.example"):
        assert not Access(url, KEY).local


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("failing", ["connection", "refusal", "page"])
def test_the_key_is_in_no_representation_and_no_traceback(kind: str, failing: str) -> None:
    """Not even where every local value of every frame is shown."""

    def handler(request: httpx.Request) -> httpx.Response:
        assert request.headers["Authorization"] == f"Bearer {KEY}"
        if failing == "connection":
            raise httpx.ConnectError("refused", request=request)
        return httpx.Response(401, text="who?" if failing == "page" else problem.model_dump_json())

    problem = Problem(type=f"{URN}unauthenticated", title="No", status=401, detail="unknown")
    with opened(kind, "http://service", KEY, handler, patience=0) as client:
        with pytest.raises(StockadeError) as caught:
            client.submit(["true"])
        told = traceback.TracebackException.from_exception(caught.value, capture_locals=True)
        shown = "".join(told.format())
        assert "http://service" in shown or failing != "connection"
        secret = [line for line in shown.splitlines() if KEY in line and not line.strip().startswith("KEY =")]
        assert secret == []
    for each in (Client("http://x", KEY), AsyncClient("http://x", KEY), access("http://x", KEY)):
        assert KEY not in repr(each)


def test_every_error_is_one_that_the_service_has() -> None:
    """Each class stands for a kind of problem of the API, and travels between processes whole."""
    known = {kind.name for kind in PROBLEMS}
    for each in ApiError.__subclasses__():
        assert each.kind in known
        problem = Problem(type=f"{URN}{each.kind}", title="T", status=400, detail="D")
        error = error_of(problem, 5.0)
        assert type(error) is each
        copy = pickle.loads(pickle.dumps(error))
        assert (type(copy), copy.problem, copy.retry_after, str(copy)) == (each, problem, 5.0, "T: D")
