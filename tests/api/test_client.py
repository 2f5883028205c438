"""The Python client, blocking and in an event loop, against the served application."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from jobs import tenants
from jobs.job import Tenant
from jobs.outcome import OutcomeKind, Output
from jobs.spec import JobSpec, Step
from jobs.store import Store
from policies.limits import LimitsRequest
from stockade.client import (
    Corrupt,
    IdempotencyMismatch,
    InvalidRequest,
    JobState,
    NotAdmitted,
    NotFinished,
    NotFound,
    NotInTime,
    OverBudget,
    Unauthenticated,
    call,
)
from tests.api.conftest import Served, Worker
from tests.clients import KINDS, opened

TRUE = ["true"]


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    """Each kind of client in turn."""
    return str(request.param)


@pytest.fixture
def api(kind: str, served: Served, key: str) -> Iterator[Any]:
    """A client with the tenant's key."""
    with opened(kind, served.url, key) as client:
        yield client


def test_every_way_to_say_a_job_says_the_same(api: Any, store: Store) -> None:
    """As arguments, step, spec or JSON, with fields beside it or in it: one and the same spec is stored."""
    limits = LimitsRequest(memory=32 * 2**20)
    step = Step(argv=("sort",), stdin={"text": "b\na\n"}, limits=limits)
    asked = [
        api.submit(["sort"], stdin="b\na\n", limits={"memory": "32MiB"}, files={"a": "x"}, labels={"n": "1"}),
        api.submit(step, files=[{"path": "a", "text": "x"}], labels={"n": "1"}),
        api.submit(JobSpec(command=step, files=({"path": "a", "text": "x"},), labels={"n": "1"})),
        api.submit(
            {"command": ["sort"], "labels": {"n": "1"}}, stdin="b\na\n", limits=limits, files={"a": "x"}
        ),
    ]
    specs = [store.get(job.id).spec for job in asked]
    assert all(spec == specs[0] for spec in specs)
    assert specs[0].command.limits == limits
    binary = api.submit(["cat"], stdin=b"\xff", files={"f": b"\0\xff"})
    spec = store.get(binary.id).spec
    assert (spec.command.stdin.data, spec.files[0].data) == (b"\xff", b"\0\xff")


def test_a_job_is_waited_for_to_its_end(api: Any, worker: Worker) -> None:
    """`wait` comes back with the finished job; outputs and files are had exactly."""
    job = api.submit(TRUE)
    assert (job.state, api.get(job.id).id) == (JobState.QUEUED, job.id)
    later = threading.Timer(0.1, worker.finish, (job.id,), {"stdout": Output.of(b"\xffout")})
    later.start()
    done = api.wait(job.id, timeout=30)
    later.join()
    assert (done.finished, done.outcome.kind) == (True, OutcomeKind.EXITED)
    assert done.steps[0].stdout.data == api.output(job.id) == b"\xffout"
    assert api.output(job.id, 0, "stderr") == b""


def test_what_takes_too_long_is_said_with_the_job_as_it_is(api: Any) -> None:
    """`run` and `wait` give up when they were told to; the job goes on."""
    with pytest.raises(NotInTime, match=r"has not finished within 0\.1 s: it is queued") as told:
        api.run(TRUE, timeout=0.1)
    job = told.value.job
    with pytest.raises(TimeoutError):
        api.wait(job.id, timeout=0)
    assert api.cancel(job.id).outcome.kind == OutcomeKind.CANCELLED
    assert api.wait(job.id).state == JobState.FINISHED


def test_artifacts_come_to_memory_or_to_a_file(api: Any, worker: Worker, tmp_path: Path) -> None:
    """Whatever their names and bytes; a file that was there before is replaced."""
    files = {"a b/100%41/ü?#.bin": bytes(range(256)) * 1000, "empty": b""}
    job = api.submit(TRUE, outputs=["**"])
    with pytest.raises(NotFinished, match="queued"):
        api.artifacts(job.id)
    worker.finish(job.id, files=files)
    assert {each.path: each.size for each in api.artifacts(job.id).artifacts} == {
        path: len(content) for path, content in files.items()
    }
    for path, content in files.items():
        assert api.artifact(job.id, path) == content
        target = tmp_path / "file"
        assert api.download(job.id, path, target) == target
        assert target.read_bytes() == content
    with pytest.raises(NotFound, match="no such artifact"):
        api.download(job.id, "nothing", tmp_path / "nothing")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_corrupt_artifact_is_no_artifact(
    api: Any, worker: Worker, redis_client: redis.Redis, tmp_path: Path
) -> None:
    """What does not have the SHA-256 that the job has is refused, and no file is left."""
    job = api.submit(TRUE, outputs=["f"])
    worker.finish(job.id, files={"f": b"good"})
    (kept,) = redis_client.keys(f"stockade:artifacts:{job.id}:*")
    redis_client.hset(kept, "f", b"evil")
    with pytest.raises(Corrupt, match="SHA-256"):
        api.artifact(job.id, "f")
    with pytest.raises(Corrupt):
        api.download(job.id, "f", tmp_path / "f")
    assert list(tmp_path.iterdir()) == []


def test_events_tell_the_whole_story_and_go_on_where_they_were(api: Any, worker: Worker) -> None:
    """States, output and end as typed events; from any of them the rest is told again."""
    job = api.submit(TRUE)
    later = threading.Timer(0.2, worker.finish, (job.id,), {"stdout": Output.of(b"h\xc3\xa4\xff")})
    later.start()
    story = list(api.events(job.id))
    later.join()
    assert [event.name for event in story] == ["state", "state", "output", "finished"]
    assert story[2].data.data == b"h\xc3\xa4\xff"
    assert story[-1].data.outcome.succeeded
    for number, event in enumerate(story):
        assert list(api.events(job.id, after=event.id)) == story[number + 1 :]
    first = api.events(job.id)
    assert next(first) == story[0]
    first.close()


def test_refusals_name_every_field(api: Any) -> None:
    """Of shape and of policy; as text for people, and as violations for programs."""
    with pytest.raises(InvalidRequest) as shape:
        api.submit(["true"], env={"A=B": "c"}, limits={"pids": 0})
    assert {each.field.partition("[")[0] for each in shape.value.violations} == {
        "command.env", "command.limits.pids",
    }  # fmt: skip
    with pytest.raises(NotAdmitted) as policy:
        api.run(["true"], limits={"memory": "800GiB", "pids": 10**5})
    text = str(policy.value)
    for each in policy.value.violations:
        assert f"{each.field}: {each.message} (got {each.got!r}; allowed: {each.allowed})" in text
    assert (policy.value.status, len(policy.value.violations)) == (422, 2)


def test_nothing_of_others_is_found(api: Any, kind: str, served: Served, other_key: str) -> None:
    """Another tenant's job and one that never was are the same `NotFound`, in every call."""
    with opened(kind, served.url, other_key) as other:
        theirs = other.submit(TRUE).id
    said = set()
    for job_id in (theirs, "job_none", "../policies", "a/b"):
        for ask in (api.get, api.wait, api.cancel, api.artifacts, api.output):
            with pytest.raises(NotFound) as error:
                ask(job_id)
            said.add(str(error.value))
        with pytest.raises(NotFound):
            next(api.events(job_id))
    assert len(said) <= 2, said


def test_a_key_that_is_not_known_is_said(kind: str, served: Served) -> None:
    """`Unauthenticated`, without the key in it."""
    key = f"sk_{'0' * 16}_{'x' * 43}"
    with opened(kind, served.url, key) as client, pytest.raises(Unauthenticated) as error:
        client.quota()
    assert key not in str(error.value)


def test_explain_quota_and_usage(api: Any, worker: Worker) -> None:
    """What would become of a job, and what has become of the budgets."""
    explanation = api.explain(["true"], limits={"pids": 10**5})
    assert not explanation.admitted
    assert [each.field for each in explanation.violations] == ["command.limits.pids"]
    worker.finish(api.submit(TRUE).id)
    assert api.usage("hour").total.jobs == 1
    assert {each.budget for each in api.quota().project.budgets} >= {"concurrent_jobs", "artifact_bytes"}


def test_the_list_is_read_to_its_end(api: Any, worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Page by page, newest first; with filters, only what all of them hold for."""
    monkeypatch.setattr(call, "PAGE", 3)
    made = [api.submit(TRUE, labels={"n": str(n % 2), "of": "a/b@c"}) for n in range(7)]
    assert [job.id for job in api.list()] == [job.id for job in reversed(made)]
    worker.finish(made[0].id)
    assert [job.id for job in api.list(state="finished")] == [made[0].id]
    assert [
        job.id for job in api.list(state=["queued", JobState.FINISHED], labels={"n": "0", "of": "a/b@c"})
    ] == [job.id for job in reversed(made[::2])]
    third = made[3].created_at
    assert {job.id for job in api.list(created_after=third)} == {
        job.id for job in made if job.created_at >= third
    }
    assert {job.id for job in api.list(created_before=third)} == {
        job.id for job in made if job.created_at < third
    }
    assert next(api.list()).labels == {"n": "0", "of": "a/b@c"}
    with pytest.raises(ValueError, match="'ended' is not a valid JobState"):
        list(api.list(state="ended"))


def test_a_batch_tells_each_job_and_each_refusal(api: Any) -> None:
    """In order, jobs as jobs and refusals as the errors that they would have been."""
    job, wrong, refused = api.batch([TRUE, {"command": []}, {"command": TRUE, "policy": "none"}])
    assert api.get(job.id).id == job.id
    assert isinstance(wrong, InvalidRequest)
    assert isinstance(refused, NotAdmitted)
    assert [each.field for each in refused.violations] == ["policy"]
    first, again = (api.batch([TRUE, TRUE], idempotency_key="k") for _ in range(2))
    assert [job.id for job in first] == [job.id for job in again]


def test_the_same_key_is_the_same_job(api: Any) -> None:
    """Handed in again it is the job that there is; with another job it is refused."""
    job = api.submit(TRUE, idempotency_key="once")
    assert api.submit(TRUE, idempotency_key="once").id == job.id
    assert api.submit(TRUE).id != job.id
    with pytest.raises(IdempotencyMismatch, match="Idempotency-Key"):
        api.submit(["false"], idempotency_key="once")


def test_a_finished_job_can_be_deleted(api: Any, worker: Worker) -> None:
    """Then it is gone; before, it has to be cancelled."""
    job = api.submit(TRUE)
    with pytest.raises(NotFinished, match="cancel it first"):
        api.delete(job.id)
    worker.finish(job.id)
    assert api.delete(job.id) is None
    for gone in (api.get, api.delete):
        with pytest.raises(NotFound):
            gone(job.id)


def test_a_budget_that_is_used_up_is_named(
    kind: str, served: Served, key: str, tenant: Tenant, redis_client: redis.Redis
) -> None:
    """Without patience at once, with the time after which it may go; with patience it goes by itself."""
    tenants.set_tenant(redis_client, tenant, budgets={"submits_per_minute": 60})
    with opened(kind, served.url, key, patience=0) as hasty, pytest.raises(OverBudget) as error:
        for _ in range(200):
            hasty.submit(TRUE)
    assert (error.value.budget, error.value.retry_after) == ("submits_per_minute", 1)
    with opened(kind, served.url, key, patience=20) as patient:
        assert patient.submit(TRUE).state == JobState.QUEUED
