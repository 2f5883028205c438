"""Policies: data with a digest, whose parts cannot contradict each other."""

import json
from dataclasses import fields
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from policies import syscalls
from policies.isolation import SyscallProfile
from policies.limits import LAUNCHER_MAX, LimitsRequest
from policies.loader import load_policies
from policies.policy import Capability, Policy
from policies.violation import violations
from worker.sandbox.plan import FLOORS, Ceilings

DEFAULT = load_policies()["default"]


def changed(**values: Any) -> Policy:
    """The default policy with other values."""
    return Policy.model_validate(DEFAULT.model_dump() | values)


def test_a_digest_names_one_content() -> None:
    """Equal content has one digest however it was written; any other content has another."""
    assert changed().digest == DEFAULT.digest
    assert changed(files_bytes="16MiB").digest == DEFAULT.digest
    assert changed(capabilities=[*reversed(DEFAULT.capabilities), "CHOWN"]).digest == DEFAULT.digest
    assert changed(retention="25h").digest != DEFAULT.digest
    assert DEFAULT.model_copy(update={"user": 7}).digest != DEFAULT.digest


def test_a_policy_survives_json() -> None:
    """A policy that is written out and read again is the same, with the same digest."""
    assert DEFAULT.digest
    again = Policy.model_validate_json(DEFAULT.model_dump_json())
    assert again == changed()
    assert again.digest == DEFAULT.digest


def test_a_default_over_its_ceiling_is_refused() -> None:
    """A job that asks for nothing must be admitted: no default may be over its ceiling."""
    with pytest.raises(ValidationError) as caught:
        changed(defaults=DEFAULT.defaults.model_dump() | {"memory": "3GiB", "pids": 513})
    (found,) = violations(caught.value)
    assert found.field == "defaults"
    assert found.message == "memory, pids: defaults over ceilings"


def test_a_ceiling_over_what_the_launcher_gives_is_refused() -> None:
    """A policy cannot promise more than the launcher's own ceilings."""
    with pytest.raises(ValidationError, match="cpus: ceilings over what the launcher gives"):
        changed(ceilings=DEFAULT.ceilings.model_dump() | {"cpus": 257})


def test_the_launcher_gives_what_a_policy_may_allow() -> None:
    """Every value that a policy can allow is inside the launcher's own floors and ceilings."""
    launcher = Ceilings()
    least = LimitsRequest.model_json_schema()["properties"]
    for limit in FLOORS:
        assert getattr(LAUNCHER_MAX, limit) <= getattr(launcher, limit), limit
        wanted = least[limit]["anyOf"][0]
        assert wanted.get("anyOf", [wanted])[0]["minimum"] >= FLOORS[limit], limit
    assert set(FLOORS) < {field.name for field in fields(launcher)}
    assert set(Capability) <= launcher.capabilities


@pytest.mark.parametrize(
    "values",
    [
        {"name": "Default"},
        {"name": "../x"},
        {"name": ""},
        {"images": []},
        {"images": "host"},
        {"capabilities": ["SYS_ADMIN"]},
        {"capabilities": ["CAP_CHOWN"]},
        {"syscalls": "../default"},
        {"user": -1},
        {"user": 65536},
        {"user": True},
        {"steps_max": 0},
        {"steps_max": 65},
        {"retention": 0},
        {"retention": float("nan")},
        {"network": True},
        {"network": "egress"},
        {"images": ["a b"]},
        {"images": ["a & "]},
        {"pools": []},
        {"pools": ["Big"]},
        {"priority_max": "urgent"},
        {"max_queue_time": 0},
        {"isolation": {"cgroup": "v1"}},
        {"isolation": {"kernel": "4.19"}},
        {"isolation": {"kernel": 5.12}},
        {"isolation": {"image": "oci"}},
        {"environment": {"A=B": "1"}},
        {"environment": {"A": "\0"}},
        {"environment": {f"A{n}": "x" * 4000 for n in range(5)}},
        {"version": 1},
        {"files_bytes": "1e9"},
    ],
)
def test_what_no_policy_can_say(values: dict[str, Any]) -> None:
    """Unknown fields, wrong types and values that cannot be kept are refused."""
    with pytest.raises(ValidationError):
        changed(**values)


@pytest.mark.parametrize("name", list(Policy.model_fields))
def test_every_field_is_required_and_described(name: str) -> None:
    """A policy leaves nothing unsaid, and says of every field what it means."""
    values = DEFAULT.model_dump()
    del values[name]
    with pytest.raises(ValidationError, match="missing"):
        Policy.model_validate(values)
    assert Policy.model_fields[name].description


def test_images_match_like_file_names() -> None:
    """An image is allowed by its name or by a pattern; case counts, and nothing is allowed by accident."""
    policy = changed(images=["host", "registry.example/py:*"])
    assert policy.allows_image("host")
    assert policy.allows_image("registry.example/py:3.11")
    assert not policy.allows_image("HOST")
    assert not policy.allows_image("registry.example/python:3.11")


def test_the_syscall_profiles_are_in_order_of_strictness() -> None:
    """Every profile that can be named is there, and lets through no call that the next one refuses outright."""
    directory = Path(syscalls.__path__[0])

    def passed(name: str) -> set[str]:
        profile = json.loads((directory / f"{name}.json").read_text())
        above = passed(profile["extends"]) if "extends" in profile else set()
        return above | {
            call
            for rule in profile["syscalls"]
            if rule["action"] == "SCMP_ACT_ALLOW"
            for call in rule["names"]
        }

    assert {path.stem for path in directory.glob("*.json")} == set(SyscallProfile)
    allowed = [passed(profile) for profile in SyscallProfile]
    assert all(less <= more for less, more in pairwise(allowed))
