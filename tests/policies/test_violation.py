"""Violations: the field, what it got, what is allowed, in words that people use."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from jobs.spec import JobSpec
from policies.violation import SHOWN_MAX, VIOLATIONS_MAX, Violation, field_path, shown, violations


def found(body: Any) -> list[Violation]:
    """What is wrong with a request body."""
    with pytest.raises(ValidationError) as caught:
        JobSpec.model_validate(body)
    return list(violations(caught.value))


@pytest.mark.parametrize(
    ("location", "path"),
    [
        ((), ""),
        (("steps", 0, "limits", "memory"), "steps[0].limits.memory"),
        ((0, 1), "[0][1]"),
        (("command", "env", "a=b", "[key]"), 'command.env["a=b"]'),
        (("command", "env", 'say "hi"'), 'command.env["say \\"hi\\""]'),
        (("x\0y",), '["x\\u0000y"]'),
    ],
)
def test_paths_read_like_code(location: tuple[str | int, ...], path: str) -> None:
    """A path is written as one would write it in code; odd keys are quoted."""
    assert field_path(location) == path


def test_everything_wrong_is_told_at_once() -> None:
    """Errors in different places of a body come together, each with its own path."""
    body = {
        "command": {"argv": [1], "limits": {"memory": -1, "cores": 2}, "cwd": "/etc"},
        "files": [{"path": "../x", "text": ""}],
        "privileged": True,
    }
    assert {violation.field for violation in found(body)} == {
        *["command.argv[0]", "command.limits.memory", "command.limits.cores", "command.cwd"],
        *["files[0].path", "privileged"],
    }


def test_a_wrong_item_is_told_once() -> None:
    """A list whose one item is wrong is not said to be empty as well."""
    assert [(v.field, v.message) for v in found({"command": [1]})] == [("command.argv[0]", "must be text")]


def test_a_violation_shows_what_it_got() -> None:
    """Got and allowed stand beside each other."""
    (violation,) = found({"command": {"argv": ["a"], "limits": {"cpus": 0}}})
    assert violation == Violation(
        field="command.limits.cpus", got=0, allowed="at least 0.01", message="must be at least 0.01"
    )


def test_a_missing_field_is_told_as_such() -> None:
    """A missing field got nothing, not the object around it."""
    (violation,) = found({"command": {}})
    assert (violation.field, violation.got, violation.message) == ("command.argv", None, "must be given")


def test_an_endless_list_of_errors_is_cut() -> None:
    """Ten thousand wrong files give an answer of bounded size."""
    assert len(found({"command": ["a"], "files": [{}] * 10_000})) == VIOLATIONS_MAX


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_what_is_shown_is_short_and_valid_json(value: Any) -> None:
    """NaN, lone surrogates, huge numbers and long texts: whatever came is shown in valid, short JSON."""
    text = json.dumps(shown(value), allow_nan=False, ensure_ascii=False)
    assert len(text.encode()) <= 8 * SHOWN_MAX


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=5),
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.dictionaries(
                st.sampled_from(
                    [
                        "command",
                        "argv",
                        "steps",
                        "files",
                        "path",
                        "text",
                        "base64",
                        "limits",
                        "memory",
                        "env",
                        "stdin",
                        "cwd",
                        "mode",
                        "outputs",
                        "\ud800",
                    ]
                ),
                inner,
            )
        ),
        max_leaves=20,
    )
)
def test_no_body_breaks_validation(body: Any) -> None:
    """Whatever JSON comes, it is a request or a list of violations that can be sent."""
    try:
        JobSpec.model_validate(body)
    except ValidationError as error:
        assert all(violation.model_dump_json() for violation in violations(error))


@pytest.mark.parametrize(
    ("body", "field", "known"),
    [
        ({"command": ["a"], "foo": 1}, "foo", "policy"),
        ({"command": {"argv": ["a"], "limits": {"mem": 1}}}, "command.limits.mem", "memory"),
        ({"steps": [{"argv": ["a"], "cmd": 1}]}, "steps[0].cmd", "on_output_limit"),
    ],
)
def test_an_unknown_field_is_told_with_those_that_are_known(body: Any, field: str, known: str) -> None:
    """Who misspells a field is shown the fields that may stand in its place."""
    with pytest.raises(ValidationError) as caught:
        JobSpec.model_validate(body)
    (violation,) = violations(caught.value, JobSpec)
    assert violation.field == field
    assert isinstance(violation.allowed, list)
    assert known in violation.allowed
