"""What a job prints is seen while it runs: through kernel, launcher, worker, Redis and HTTP."""

import pytest

from stockade.client import Event, OutputEvent
from tests.e2e.service import Service, shell

pytestmark = [pytest.mark.kernel, pytest.mark.e2e, pytest.mark.once]


def test_output_is_seen_before_the_job_has_ended(service: Service) -> None:
    """A job prints over two seconds, in two steps: each line comes while it runs, and nothing twice."""
    slowly = shell("for n in 1 2 3 4; do echo line $n; sleep 0.25; done; echo done >&2")
    job_id = service.submit({"steps": [{"argv": slowly}, {"argv": slowly}]})["id"]
    seen: list[Event] = []
    for event in service.api.events(job_id):
        seen.append(event)
        if isinstance(event.data, OutputEvent) and event.data.text == "line 2\n":
            assert service.state(job_id) == "running"
    lines = "".join(f"line {n}\n" for n in range(1, 5))
    assert output_of(seen) == {(0, "stdout"): lines, (0, "stderr"): "done\n"} | {
        (1, "stdout"): lines,
        (1, "stderr"): "done\n",
    }
    assert len([event for event in seen if event.name == "output"]) > 4, "it came line by line"
    assert [event.data.state for event in seen if event.name in ("state", "finished")] == [
        "queued",
        "running",
        "finished",
    ]
    middle = len(seen) // 2
    rest = list(service.api.events(job_id, after=seen[middle - 1].id))
    assert output_of(seen[:middle] + rest) == output_of(seen)


def output_of(events: list[Event]) -> dict[tuple[int, str], str]:
    """What events tell of each step and stream."""
    told: dict[tuple[int, str], str] = {}
    for event in events:
        data = event.data
        if isinstance(data, OutputEvent):
            key = (data.step, data.stream.value)
            assert data.offset == len(told.get(key, ""))
            told[key] = told.get(key, "") + data.data.decode()
    return told
