"""Admission: a policy's yes with limits for every step, or its no with every reason."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.spec import JobSpec
from policies.admission import AdmissionError, admit
from policies.limits import Limits
from policies.loader import load_policies
from policies.policy import Policy

DEFAULT = load_policies()["default"]


def spec(**values: Any) -> JobSpec:
    """A request for /bin/true with these values."""
    form = {} if "steps" in values else {"command": ["/bin/true"]}
    return JobSpec.model_validate(form | values)


def refused(request: JobSpec, policy: Policy = DEFAULT, **options: bool) -> dict[str, tuple[Any, Any]]:
    """What was got and what is allowed, by field, of everything that the policy does not allow."""
    with pytest.raises(AdmissionError) as caught:
        admit(request, policy, **options)
    assert all(found.message for found in caught.value.violations)
    return {found.field: (found.got, found.allowed) for found in caught.value.violations}


def test_a_job_that_asks_for_nothing_gets_the_defaults() -> None:
    """The limits in force are the policy's defaults, and the digest says which policy that was."""
    admission = admit(spec(), DEFAULT)
    assert [step.name for step in admission.steps] == ["step-1"]
    assert admission.steps[0].limits == DEFAULT.defaults
    assert (admission.policy, admission.policy_digest) == ("default", DEFAULT.digest)
    assert admission.retention == DEFAULT.retention


def test_steps_keep_their_names_and_limits() -> None:
    """Each step has its own limits; one without a name is called after its place."""
    request = spec(steps=[{"argv": ["a"], "name": "compile", "limits": {"memory": "1GiB"}}, {"argv": ["b"]}])
    admission = admit(request, DEFAULT)
    assert [(step.name, step.limits.memory) for step in admission.steps] == [
        ("compile", 1 << 30),
        ("step-2", 256 << 20),
    ]
    assert admission.wall_time == 2 * DEFAULT.defaults.wall_time


def test_every_violation_is_told_at_once() -> None:
    """One answer names every field that is over, what it got and what is allowed."""
    request = spec(
        image="other",
        steps=[
            {"argv": ["a"], "limits": {"memory": "3GiB", "pids": 600}},
            {"argv": ["b"], "limits": {"cpus": 4.5, "wall_time": "11m", "output": "5MiB"}},
        ],
        files=[{"path": f"f{number}", "text": ""} for number in range(1001)],
    )
    assert refused(request) == {
        "image": ("other", ["host"]),
        "files": (1001, 1000),
        "steps[0].limits.memory": (3 << 30, 2 << 30),
        "steps[0].limits.pids": (600, 512),
        "steps[1].limits.cpus": (4.5, 4.0),
        "steps[1].limits.wall_time": (660.0, 600.0),
        "steps[1].limits.output": (5 << 20, 4 << 20),
    }


def test_a_single_command_is_named_as_it_was_written() -> None:
    """With the short form the path starts with `command`."""
    request = JobSpec.model_validate({"command": {"argv": ["a"], "limits": {"open_files": 5000}}})
    assert refused(request) == {"command.limits.open_files": (5000, 4096)}


@pytest.mark.parametrize("name", list(Limits.model_fields))
def test_every_limit_has_a_ceiling(name: str) -> None:
    """The ceiling itself is allowed and the next value over it is not, for every limit."""
    ceiling = getattr(DEFAULT.ceilings, name)
    at = {"argv": ["a"], "limits": {name: ceiling}}
    assert getattr(admit(spec(command=at), DEFAULT).steps[0].limits, name) == ceiling
    over = {"argv": ["a"], "limits": {name: ceiling + 1}}
    assert refused(spec(command=over)) == {f"command.limits.{name}": (ceiling + 1, ceiling)}


def test_counts_are_the_policys() -> None:
    """Steps, files and their bytes are counted against the policy."""
    strict = load_policies()["strict"]
    assert refused(spec(steps=[{"argv": ["a"]}] * 5), strict) == {"steps": (5, 4)}
    many = [{"path": f"f{number}", "text": ""} for number in range(101)]
    assert refused(spec(files=many), strict) == {"files": (101, 100)}
    big = [{"path": "a", "text": "x" * (1 << 20)}, {"path": "b", "base64": "AA=="}]
    assert refused(spec(files=big), strict) == {"files": ((1 << 20) + 1, 1 << 20)}


def test_files_must_fit_on_the_disk_of_every_step() -> None:
    """Files that the workspace cannot hold are refused, not left to fail as an error of ours."""
    steps = [{"argv": ["a"]}, {"argv": ["b"], "limits": {"disk": "1MiB"}}]
    full = {"path": "full", "text": "x" * (1 << 20)}
    assert admit(spec(steps=steps, files=[full]), DEFAULT)
    request = spec(steps=steps, files=[full, {"path": "one", "text": "x"}])
    assert refused(request) == {"steps[1].limits.disk": (1 << 20, f"at least {(1 << 20) + 4096}")}
    deep = [{"path": "/".join([str(number), *["d"] * 60, "f"]), "text": ""} for number in range(3)]
    request = spec(command={"argv": ["a"], "limits": {"disk_inodes": 128}}, files=deep)
    assert refused(request) == {"command.limits.disk_inodes": (128, "at least 186")}


def test_the_host_image_can_be_switched_off() -> None:
    """Where the installation does not offer the image host, the answer says so."""
    assert admit(spec(), DEFAULT, host_image=True)
    assert refused(spec(), host_image=False) == {"image": ("host", None)}


def test_the_error_reads_as_a_sentence() -> None:
    """Whoever only sees the exception sees every field and why."""
    with pytest.raises(AdmissionError, match=r"command\.limits\.pids: pids of 600 is over .* 512"):
        admit(spec(command={"argv": ["a"], "limits": {"pids": 600}}), DEFAULT)


quantities = st.fixed_dictionaries(
    {},
    optional={
        "cpus": st.floats(0.01, 8),
        "memory": st.integers(4 << 20, 4 << 30),
        "pids": st.integers(1, 1024),
        "wall_time": st.floats(0.01, 1200),
        "disk": st.integers(1 << 20, 2 << 30),
    },
)


@given(st.lists(quantities, min_size=1, max_size=4), st.sampled_from(list(load_policies().values())))
def test_nothing_admitted_is_over_a_ceiling(asked: list[dict[str, Any]], policy: Policy) -> None:
    """Whatever is asked: admitted limits are what was asked or the default, within the ceilings."""
    request = spec(steps=[{"argv": ["a"], "limits": limits} for limits in asked])
    try:
        admission = admit(request, policy)
    except AdmissionError as error:
        over = {
            (f"steps[{n}].limits.{k}")
            for n, limits in enumerate(asked)
            for k, v in limits.items()
            if v > getattr(policy.ceilings, k)
        }
        assert {found.field for found in error.violations} == over
        return
    for limits, step in zip(asked, admission.steps, strict=True):
        for name, value in step.limits:
            assert value == limits.get(name, getattr(policy.defaults, name))
            assert value <= getattr(policy.ceilings, name)
