"""Of a request nothing large stays when its job has ended, and what admission asks of it does."""

import json
from typing import Any

import pytest
from redis import Redis

from jobs.job import JobState
from jobs.kept import as_asked, without_contents
from jobs.spec import JobSpec
from jobs.store import Store
from policies.admission import admit
from policies.loader import load_policies
from tests.dispatch import DONE
from tests.jobs.conftest import TENANT, Submit

LARGE = 100_000
BODY: dict[str, Any] = {
    "steps": [{"argv": ["cat"], "stdin": "x" * LARGE}, {"argv": ["true"]}],
    "files": [
        {"path": "a", "text": "\N{LATIN SMALL LETTER E WITH ACUTE}" * LARGE, "mode": "0755"},
        {"path": "b/c", "base64": "AAEC" * LARGE},
    ],
    "labels": {"a": "b"},
}


@pytest.mark.parametrize("end", ["finish", "cancel", "late"])
def test_contents_go_when_the_job_ends(store: Store, redis: Redis, submit: Submit, end: str) -> None:
    """Whatever ends it; until then they are all there, for each attempt."""
    job = submit(**BODY)
    assert store.get(job.id) == job
    assert redis.memory_usage(f"stockade:job:{job.id}", samples=0) > 4 * LARGE
    if end == "cancel":
        store.cancel(job.id, TENANT)
    elif end == "late":
        redis.hset(f"stockade:job:{job.id}", "ends_by", 1)
        assert store.claim(job.id, 1, "w") is None
    else:
        first = store.claim(job.id, 1, "w")
        assert first is not None
        store.give_back(first)
        attempt = store.claim(job.id, 2, "w")
        assert attempt is not None
        assert attempt.job.spec == job.spec
        assert store.finish(attempt, DONE)
    assert redis.memory_usage(f"stockade:job:{job.id}", samples=0) < LARGE / 10
    ended = store.get(job.id)
    assert ended is not None
    assert ended.state is JobState.FINISHED
    assert ended.spec.labels == job.spec.labels
    assert [(file.path, file.mode) for file in ended.spec.files] == [("a", "0755"), ("b/c", "0644")]
    assert [step.argv for step in ended.spec.sequence] == [("cat",), ("true",)]


def test_admission_decides_the_same_about_what_is_kept() -> None:
    """Paths and sizes of files are what they were: it is admitted, and refused, as before."""
    spec = JobSpec.model_validate_json(json.dumps(BODY))
    kept, sizes = without_contents(spec)
    again = as_asked(kept.encode(), sizes.encode())
    assert [(file.path, file.size) for file in again.files] == [("a", 2 * LARGE), ("b/c", 3 * LARGE)]
    policy = load_policies()["default"]
    assert admit(again, policy) == admit(spec, policy)


def test_a_small_request_is_kept_as_it_is(store: Store, submit: Submit) -> None:
    """Of little there is nothing to win."""
    job = submit(command={"argv": ["cat"], "stdin": "x"}, files=[{"path": "a", "text": "x"}])
    store.cancel(job.id, TENANT)
    ended = store.get(job.id)
    assert ended is not None
    assert ended.spec == job.spec
    assert as_asked(job.spec.model_dump_json(exclude_unset=True).encode(), None) == job.spec
