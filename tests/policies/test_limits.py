"""Limits: one set of names, complete where it is in force, and partial where it is asked for."""

import pytest
from pydantic import ValidationError

from policies.limits import LAUNCHER_MAX, Limits, LimitsRequest
from policies.loader import load_policies

DEFAULTS = load_policies()["default"].defaults


def test_a_request_names_the_same_limits_with_the_same_bounds() -> None:
    """What a policy bounds, a request can ask for, and nothing else."""
    full, asked = (model.model_json_schema()["properties"] for model in (Limits, LimitsRequest))
    assert list(full) == list(asked)
    for name, schema in full.items():
        number = schema.get("anyOf", [schema])[0]
        wanted = asked[name]["anyOf"][0]
        assert wanted.get("anyOf", [wanted])[0].get("minimum") == number["minimum"]


def test_every_limit_tells_its_kernel_knob() -> None:
    """Each field has a description, a unit and the kernel's own name for what it sets."""
    for field in Limits.model_fields.values():
        assert field.description
        assert isinstance(field.json_schema_extra, dict)
        assert field.json_schema_extra["x-kernel"]
        assert field.json_schema_extra["x-unit"]


def test_what_is_not_asked_for_is_the_default() -> None:
    """Only what a request names differs from the defaults; null is the same as not naming it."""
    limits = LimitsRequest.model_validate({"memory": "512MiB", "pids": None, "cpus": 2}).over(DEFAULTS)
    assert limits == DEFAULTS.model_copy(update={"memory": 512 << 20, "cpus": 2.0})
    assert LimitsRequest().over(DEFAULTS) is DEFAULTS


def test_limits_are_written_as_plain_numbers() -> None:
    """However a limit was written, it is answered in bytes and seconds."""
    asked = LimitsRequest.model_validate({"memory": "64MiB", "wall_time": "500ms"})
    assert asked.model_dump_json(exclude_unset=True) == '{"memory":67108864,"wall_time":0.5}'


@pytest.mark.parametrize("name", list(Limits.model_fields))
@pytest.mark.parametrize("value", [-1, float("nan"), float("inf"), True, "1e9", "", "1", [], {}, 10**400])
def test_no_limit_takes_what_is_no_quantity(name: str, value: object) -> None:
    """Negative numbers, NaN, infinity, booleans, bare text and lists are refused for every limit."""
    with pytest.raises(ValidationError) as caught:
        LimitsRequest.model_validate({name: value})
    assert [error["loc"] for error in caught.value.errors()] == [(name,)]


@pytest.mark.parametrize("name", sorted(set(Limits.model_fields) - {"output", "file_size"}))
def test_no_limit_can_be_zero_where_the_kernel_takes_zero_for_none(name: str) -> None:
    """A tmpfs of size 0 is unlimited, a quota of 0 is an error: such zeros never get through."""
    with pytest.raises(ValidationError):
        LimitsRequest.model_validate({name: 0})


def test_an_unknown_limit_is_refused() -> None:
    """A misspelt limit is an error, not a limit that silently does not apply."""
    with pytest.raises(ValidationError, match="extra_forbidden"):
        LimitsRequest.model_validate({"memory_limit": 1})


def test_limits_cannot_be_changed() -> None:
    """Nobody changes a limit after it was decided."""
    with pytest.raises(ValidationError, match="frozen"):
        LAUNCHER_MAX.memory = 1
