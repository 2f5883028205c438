"""What a job prints is seen while it runs: through kernel, launcher, worker, Redis and HTTP."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.e2e.service import Service, shell

pytestmark = [pytest.mark.kernel, pytest.mark.e2e, pytest.mark.once]

Event = tuple[str, str, dict[str, Any]]


def followed(service: Service, job_id: str, after: str | None = None) -> Iterator[Event]:
    """Id, name and data of a job's events."""
    headers = {"Last-Event-ID": after} if after else {}
    with service.client.stream("GET", f"/v1/jobs/{job_id}/events", headers=headers) as answer:
        assert answer.status_code == 200
        fields: dict[str, str] = {}
        for line in answer.iter_lines():
            name, _, value = line.partition(": ")
            fields[name] = value
            if name == "data":
                yield fields["id"], fields["event"], json.loads(value)


def test_output_is_seen_before_the_job_has_ended(service: Service) -> None:
    """A job prints over two seconds, in two steps: each line comes while it runs, and nothing twice."""
    slowly = shell("for n in 1 2 3 4; do echo line $n; sleep 0.25; done; echo done >&2")
    job_id = service.submit({"steps": [{"argv": slowly}, {"argv": slowly}]})["id"]
    seen: list[Event] = []
    for event in followed(service, job_id):
        seen.append(event)
        if event[1] == "output" and event[2]["text"] == "line 2\n":
            assert service.state(job_id) == "running"
    lines = "".join(f"line {n}\n" for n in range(1, 5))
    assert output_of(seen) == {(0, "stdout"): lines, (0, "stderr"): "done\n"} | {
        (1, "stdout"): lines,
        (1, "stderr"): "done\n",
    }
    assert len([event for event in seen if event[1] == "output"]) > 4, "it came line by line"
    assert [data["state"] for _, _, data in seen if "state" in data] == ["queued", "running", "finished"]
    middle = len(seen) // 2
    rest = list(followed(service, job_id, seen[middle - 1][0]))
    assert output_of(seen[:middle] + rest) == output_of(seen)


def output_of(events: list[Event]) -> dict[tuple[int, str], str]:
    """What events tell of each step and stream."""
    told: dict[tuple[int, str], str] = {}
    for _, name, data in events:
        if name == "output":
            key = (data["step"], data["stream"])
            assert data["offset"] == len(told.get(key, ""))
            told[key] = told.get(key, "") + data["text"]
    return told
