"""Units: what people write for sizes and durations, and what is refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from policies.units import (
    DURATION_MAX,
    SIZE_MAX,
    Duration,
    Size,
    format_duration,
    format_size,
    parse_duration,
    parse_size,
)

size = TypeAdapter(Size).validate_python
duration = TypeAdapter(Duration).validate_python


@pytest.mark.parametrize(
    ("written", "bytes_"),
    [
        ("64MiB", 64 << 20),
        ("1.5GiB", 3 << 29),
        ("500kB", 500_000),
        ("0.3GB", 300_000_000),
        ("2 TiB", 2 << 40),
        ("0B", 0),
        (4096, 4096),
        (4096.0, 4096),
        (1e18, 10**18),
        (SIZE_MAX, SIZE_MAX),
    ],
)
def test_sizes_as_people_write_them(written: object, bytes_: int) -> None:
    """A size is a whole number of bytes, or text with a binary or decimal unit, taken exactly."""
    assert size(written) == bytes_


@pytest.mark.parametrize(
    "written",
    [
        *["64", "1e9", "64mb", "64 M", "MiB", "-1MiB", "+1MiB", "", " 1MiB", "1MiB ", "1MiB\n", "1,5GiB"],
        *[
            "0.3B",
            "\N{ARABIC-INDIC DIGIT ONE}MiB",
            "1_000kB",
            "0x10B",
            ".5MiB",
            "5.MiB",
            "9" * 20 + "B",
            "9999999TiB",
        ],
        *[-1, 1.5, float("nan"), float("inf"), True, None, SIZE_MAX + 1, 10**400, [1], {"MiB": 1}, b"1MiB"],
    ],
)
def test_what_is_no_size_is_refused(written: object) -> None:
    """Text without a unit, fractions of a byte, negative numbers, NaN and booleans are no sizes."""
    with pytest.raises(ValidationError):
        size(written)


@pytest.mark.parametrize(
    ("written", "seconds"),
    [("500ms", 0.5), ("10s", 10.0), ("2m", 120.0), ("1.5h", 5400.0), (3, 3.0), (0.25, 0.25), (0, 0.0)],
)
def test_durations_as_people_write_them(written: object, seconds: float) -> None:
    """A duration is a number of seconds, or text with a unit; inside it is always a float."""
    found = duration(written)
    assert found == seconds
    assert type(found) is float


@pytest.mark.parametrize(
    "written",
    [
        *["10", "10 sec", "1d", "", "-1s", "s"],
        *[-1, -0.1, float("nan"), float("inf"), True, None, 10**400, [1], DURATION_MAX + 1],
    ],
)
def test_what_is_no_duration_is_refused(written: object) -> None:
    """Text without a unit, negative numbers, NaN, infinity and booleans are no durations."""
    with pytest.raises(ValidationError):
        duration(written)


@given(st.integers(0, 1 << 53))
def test_a_formatted_size_is_read_back_exactly(bytes_: int) -> None:
    """What we write for people, we read as the same number of bytes."""
    assert parse_size(format_size(bytes_)) == bytes_


@given(st.integers(0, 10**9))
def test_a_formatted_duration_is_read_back_exactly(milliseconds: int) -> None:
    """What we write for people, we read as the same time."""
    assert parse_duration(format_duration(milliseconds / 1000)) == milliseconds / 1000


@given(st.text())
def test_no_text_breaks_the_parsers(text: str) -> None:
    """Whatever stands there, the answer is a value or a ValueError."""
    for parse in (parse_size, parse_duration):
        try:
            assert parse(text) >= 0
        except ValueError as error:
            assert len(str(error)) < 300


def test_the_schema_tells_both_forms_of_an_input() -> None:
    """The JSON schema of an input is a number or text with a unit; that of an output is a number."""
    both = TypeAdapter(Size).json_schema()["anyOf"]
    assert [form["type"] for form in both] == ["integer", "string"]
    assert both[0]["minimum"] == 0
    assert "64MiB" in both[1]["examples"]
    assert TypeAdapter(Size).json_schema(mode="serialization")["type"] == "integer"
