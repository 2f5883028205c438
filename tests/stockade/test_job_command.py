"""`stockade job`, on a service that is played by a test; against a real one it is in `tests/e2e`."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from click.testing import CliRunner, Result

from stockade import service
from stockade.cli import main
from stockade.client import Client
from tests.client.by_hand import job_view, problem

AT = "2026-01-01T00:00:00Z"
JOB = {"id": "job_1", "state": "queued"}
Handler = Callable[[httpx.Request], httpx.Response]


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> list[httpx.Request]:
    """What the command has sent."""
    monkeypatch.delenv("STOCKADE_URL", raising=False)
    monkeypatch.delenv("STOCKADE_KEY", raising=False)
    return []


@pytest.fixture
def answers(requests: list[httpx.Request], monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Says what the service answers, one after the other."""

    def prepare(*queue: httpx.Response) -> None:
        left = list(queue)

        def handler(request: httpx.Request) -> httpx.Response:
            requests.append(request)
            return left.pop(0)

        def client(url: str, key: str) -> Client:
            return Client(url, key, patience=0, transport=httpx.MockTransport(handler))

        monkeypatch.setattr(service, "Client", client)

    return prepare


def job(*arguments: str | Path, stdin: bytes = b"") -> Result:
    there = [] if {"--url", "--state"} & set(arguments) else ["--url", "http://service", "--key", "sk_1"]
    return CliRunner().invoke(main, ["job", str(arguments[0]), *there, *map(str, arguments[1:])], input=stdin)


def events(*of: tuple[str, dict[str, Any]]) -> httpx.Response:
    text = "".join(
        f"id: {n}\nevent: {name}\ndata: {json.dumps(data)}\n\n" for n, (name, data) in enumerate(of)
    )
    return httpx.Response(200, content=text.encode())


def output(stream: str, text: str | None, attempt: int = 1) -> tuple[str, dict[str, Any]]:
    data = {"attempt": attempt, "step": 0, "stream": stream, "offset": 0, "bytes": 1, "text": text}
    return "output", data | {"base64": "/w==" if text is None else None}


def finished(**outcome: Any) -> tuple[str, dict[str, Any]]:
    return "finished", {
        "state": "finished",
        "attempt": 1,
        "at": AT,
        "outcome": {"message": "It ended."} | outcome,
    }


def accepted(template: dict[str, Any]) -> httpx.Response:
    return httpx.Response(201, json=template)


@pytest.fixture
def view() -> dict[str, Any]:
    """A job that was accepted, as the API shows it."""
    return job_view()


def test_submit_says_the_whole_job_and_prints_its_id(
    answers: Callable[..., None], requests: list[httpx.Request], view: dict[str, Any], tmp_path: Path
) -> None:
    """Every option has its place in the job; what is not given is left to the policy."""
    answers(accepted(view), accepted(view), accepted(view))
    (tmp_path / "f").write_bytes(b"\xff")
    (tmp_path / "f").chmod(0o600)
    said = job(
        "submit", "--memory", "32MiB", "--pids", "3", "--file", f"{tmp_path / 'f'}:in/f", "--env", "A=b=c",
        "--label", "n=1", "--keep", "out/*", "--policy", "strict", "--stdin", "--idempotency-key", "k",
        "--", "sort", "-n", "--help", stdin=b"2\n1\n",
    )  # fmt: skip
    assert (said.exit_code, said.output) == (0, "job_1\n")
    assert requests[0].headers["Idempotency-Key"] == "k"
    assert json.loads(requests[0].content) == {
        "command": {
            "argv": ["sort", "-n", "--help"], "stdin": {"base64": "MgoxCg=="}, "env": {"A": "b=c"},
            "limits": {"memory": "32MiB", "pids": 3},
        },
        "files": [{"path": "in/f", "base64": "/w==", "mode": "0600"}],
        "labels": {"n": "1"}, "outputs": ["out/*"], "policy": "strict",
    }  # fmt: skip
    assert job("submit", "true").exit_code == 0
    assert json.loads(requests[1].content) == {"command": ["true"]}
    spec = {"steps": [{"argv": ["true"]}]}
    assert job("submit", "--spec", "-", stdin=json.dumps(spec).encode()).exit_code == 0
    assert json.loads(requests[2].content) == spec


@pytest.mark.parametrize(
    ("outcome", "status"),
    [
        ({"kind": "exited", "exit_code": 7}, 7),
        ({"kind": "signaled", "signal": 11}, 139),
        ({"kind": "memory_exceeded"}, 137),
        ({"kind": "exec_failed", "errno": "ENOENT"}, 127),
        ({"kind": "exec_failed", "errno": "EACCES"}, 126),
        ({"kind": "worker_lost"}, 125),
    ],
)
def test_follow_prints_what_the_job_prints_and_ends_as_it_ends(
    answers: Callable[..., None], view: dict[str, Any], outcome: dict[str, Any], status: int
) -> None:
    """Bytes as they are, each stream on ours; then the status that `stockade run` would have."""
    answers(
        accepted(view),
        events(output("stdout", "out"), output("stderr", "err"), output("stdout", None), finished(**outcome)),
    )
    done = job("submit", "--follow", "true")
    assert done.stdout_bytes == b"out\xff"
    assert done.stderr.startswith("err")
    assert (outcome["kind"] in done.stderr) == (outcome["kind"] != "exited")
    assert done.exit_code == status


def test_what_is_missing_or_told_again_is_said(answers: Callable[..., None]) -> None:
    """A gap in the output, and a job that begins anew because the service failed."""
    gap = {"attempt": 1, "step": 0, "stream": "stdout", "offset": 0, "bytes": 9}
    again = {"state": "running", "attempt": 2, "at": AT}
    answers(events(("gap", gap), ("state", again), finished(kind="exited", exit_code=0)))
    done = job("events", "job_1", "--output")
    assert (done.exit_code, done.stdout) == (0, "")
    assert "9 bytes of stdout were not kept" in done.stderr
    assert "begins anew" in done.stderr


def test_ctrl_c_cancels_what_is_followed(
    answers: Callable[..., None],
    requests: list[httpx.Request],
    view: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As with `stockade run`, the command ends with the one who watches it."""

    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Client, "events", interrupted)
    answers(accepted(view), httpx.Response(200, json=view))
    done = job("submit", "--follow", "sleep", "9")
    assert (done.exit_code, requests[-1].url.path) == (130, "/v1/jobs/job_1:cancel")


def test_a_refusal_has_a_line_for_each_field_and_the_status_of_ours(answers: Callable[..., None]) -> None:
    """125, which no program that was started would have by a limit."""
    wrong = [
        {"field": f"command.limits.{name}", "got": 9, "allowed": 5, "message": "is too much"}
        for name in ("memory", "pids")
    ]
    answers(problem(422, "not-admitted", errors=wrong))
    done = job("submit", "--memory", "9", "true")
    assert done.exit_code == 125
    assert "limits.memory: is too much (got 9; allowed: 5)\n  limits.pids: is too much" in done.stderr


def test_the_running_service_of_a_state_directory_is_the_default(
    answers: Callable[..., None], requests: list[httpx.Request], view: dict[str, Any], tmp_path: Path
) -> None:
    """Its address and its development key; without them the message says what to do."""
    done = job("get", "job_1", "--state", tmp_path)
    assert done.exit_code == 125
    assert "Is `stockade up` running on it? Else give --url" in done.stderr
    (tmp_path / "address").write_text("http://there:1\n")
    (tmp_path / "dev-key").write_text("sk_dev\n")
    answers(httpx.Response(200, json=view))
    done = job("get", "job_1", "--state", tmp_path)
    assert json.loads(done.stdout) == view
    assert requests[0].url == "http://there:1/v1/jobs/job_1"
    assert requests[0].headers["Authorization"] == "Bearer sk_dev"


def test_the_development_key_goes_to_its_own_service_alone(
    answers: Callable[..., None], requests: list[httpx.Request], tmp_path: Path
) -> None:
    """With another address, another key has to be given."""
    answers()
    (tmp_path / "dev-key").write_text("sk_dev\n")
    done = job("get", "job_1", "--url", "http://elsewhere", "--state", tmp_path)
    assert (done.exit_code, requests) == (125, [])
    assert "no API key for http://elsewhere" in done.stderr


def test_lists_name_what_is_wanted(answers: Callable[..., None], requests: list[httpx.Request]) -> None:
    """A table for people, JSON for programs, and no more pages than are needed."""
    summary = {
        "id": "job_1", "state": "finished", "attempt": 1, "created_at": AT, "started_at": AT, "finished_at": AT,
        "labels": {"n": "1"}, "policy": "default", "pool": "default",
        "outcome": {"kind": "exited", "exit_code": 3, "message": "It exited."},
    }  # fmt: skip
    page = {"jobs": [summary] * 2, "next": "more"}
    answers(httpx.Response(200, json=page), httpx.Response(200, json=page))
    done = job("list", "--in", "finished", "--label", "n=1", "--after", "2026-01-01", "--limit", "2")
    assert done.stdout.splitlines()[1].split() == [
        "job_1",
        "2026-01-01",
        "00:00:00",
        "UTC",
        "finished",
        "exited",
        "3",
        "n=1",
    ]
    query = requests[0].url.params
    assert (query["state"], query["label"], query["created_after"]) == (
        "finished",
        "n:1",
        "2026-01-01T00:00:00+00:00",
    )
    assert json.loads(job("list", "--json", "--limit", "1").stdout)["id"] == "job_1"
    assert len(requests) == 2


@pytest.mark.parametrize("path", ["../outside", "/etc/passwd", "a/../../b"])
def test_no_artifact_is_written_outside_the_directory(
    answers: Callable[..., None], tmp_path: Path, path: str
) -> None:
    """Whatever a service says that a file is called."""
    artifact = {"path": path, "size": 1, "sha256": "0" * 64, "mode": "0644"}
    listed = httpx.Response(200, json={"artifacts": [artifact], "artifact_errors": []})
    answers(listed, httpx.Response(200, content=b"x"))
    done = job("artifacts", "job_1", "--to", tmp_path / "to")
    assert done.exit_code == 125, done.output
    assert list(tmp_path.rglob("*")) == []


def test_a_file_name_cannot_move_the_cursor(answers: Callable[..., None]) -> None:
    """What a job calls its files is shown escaped where it is not plain text."""
    artifact = {"path": "a\x1b[2Jb", "size": 1, "sha256": "0" * 64, "mode": "0644"}
    answers(httpx.Response(200, json={"artifacts": [artifact], "artifact_errors": []}))
    done = job("artifacts", "job_1")
    assert "\x1b" not in done.stdout
    assert '"a\\u001b[2Jb"' in done.stdout
