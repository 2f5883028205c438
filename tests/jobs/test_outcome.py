"""Outcomes, outputs and artifacts: what a result says is exact, and can always be said in JSON."""

import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import ValidationError

from jobs.outcome import Artifact, ArtifactError, Outcome, OutcomeKind, Output, Usage, signal_name


def test_two_kinds_are_no_verdict_on_the_program() -> None:
    """Only sandbox_error and worker_lost say that the service failed."""
    assert [kind for kind in OutcomeKind if kind.ours] == ["sandbox_error", "worker_lost"]


def test_success_is_an_exit_with_status_0() -> None:
    """An exit with any other status, and any other kind, is no success."""
    assert Outcome(kind=OutcomeKind.EXITED, exit_code=0, message="").succeeded
    assert not Outcome(kind=OutcomeKind.EXITED, exit_code=1, message="").succeeded
    assert not Outcome(kind=OutcomeKind.MEMORY_EXCEEDED, exit_code=0, message="").succeeded


@pytest.mark.parametrize(
    ("number", "name"),
    [
        (9, "SIGKILL"),
        (31, "SIGSYS"),
        (34, "SIGRTMIN"),
        (37, "SIGRTMIN+3"),
        (64, "SIGRTMAX"),
        (32, "signal 32"),
    ],
)
def test_signals_have_names(number: int, name: str) -> None:
    """Every signal that can end a program has a name, also those without a name of their own."""
    assert signal_name(number) == name


@pytest.mark.parametrize("content", [b"", b"hello\n", "ü€😀".encode(), b"\0\x1b[31m\r"])
def test_text_is_shown_as_text(content: bytes) -> None:
    """Output in UTF-8, NULs and escape sequences included, stands in `text`."""
    output = Output.of(content)
    assert (output.text, output.base64) == (content.decode(), None)
    assert (output.bytes, output.truncated, output.omitted) == (len(content), False, None)


@pytest.mark.parametrize("content", [b"\xff\xfe", b"\xed\xa0\x80", b"ok\xc3", b"\xc0\x80"])
def test_what_is_no_text_is_base64(content: bytes) -> None:
    """Output that is not UTF-8, lone surrogates included, is base64, exactly."""
    output = Output.of(content)
    assert output.text is None
    assert output.data == content


def test_a_truncated_output_says_what_is_missing_and_where() -> None:
    """The kept parts are joined; `omitted` tells the place of the gap and its size."""
    output = Output.of(b"begin", b"end", 1000)
    assert output.text == "beginend"
    assert output.truncated
    assert output.bytes == 1000
    assert output.omitted is not None
    assert (output.omitted.at, output.omitted.bytes) == (5, 992)


def test_two_parts_without_a_gap_are_the_whole() -> None:
    """Where head and tail are everything that was written, nothing was dropped, not even half a character."""
    euro = "€".encode()
    output = Output.of(euro[:1], euro[1:], 3)
    assert (output.text, output.truncated) == ("€", False)


@given(st.text(min_size=1), st.integers(0, 40), st.integers(0, 40))
@example("€€€€", 2, 2)
@example("😀😀😀😀", 3, 1)
@example("a€", 2, 1)
def test_a_text_stays_text_wherever_it_is_cut(text: str, head: int, tail: int) -> None:
    """A cut through a character loses that character, not the text."""
    content = text.encode()
    if head + tail >= len(content):
        head, tail = 0, 0
    output = Output.of(content[:head], content[len(content) - tail :], len(content))
    assert output.text is not None
    assert output.omitted is not None
    at = output.omitted.at
    assert head - 3 <= at <= head
    assert content.startswith(output.data[:at])
    assert content.endswith(output.data[at:])


@given(st.binary(), st.binary(), st.integers(1, 1000))
def test_kept_and_dropped_are_always_the_total(head: bytes, tail: bytes, dropped: int) -> None:
    """Whatever the bytes are, kept and omitted bytes add up to what was written."""
    total = len(head) + len(tail) + dropped
    output = Output.of(head, tail, total)
    assert output.omitted is not None
    assert len(output.data) + output.omitted.bytes == output.bytes == total
    assert Output.model_validate_json(output.model_dump_json()) == output


@pytest.mark.parametrize("forms", [{}, {"text": "", "base64": ""}])
def test_an_output_has_one_form(forms: dict[str, str]) -> None:
    """Text and base64 never stand together, and one of them always stands."""
    with pytest.raises(ValidationError):
        Output.model_validate({"bytes": 0} | forms)


USAGE: dict[str, Any] = dict.fromkeys(Usage.model_fields, 0)


def test_usage_is_complete() -> None:
    """A figure that was not read is an error of ours, not a zero."""
    assert Usage.model_validate(USAGE).memory == 0
    for name in Usage.model_fields:
        with pytest.raises(ValidationError, match="missing"):
            Usage.model_validate({key: value for key, value in USAGE.items() if key != name})


@pytest.mark.parametrize("value", [-1, float("nan"), True, "1", None])
@pytest.mark.parametrize("name", list(Usage.model_fields))
def test_usage_is_made_of_quantities(name: str, value: object) -> None:
    """No figure is negative, NaN, a boolean or text."""
    with pytest.raises(ValidationError):
        Usage.model_validate(USAGE | {name: value})


def test_an_artifact_shows_its_mode_in_octal() -> None:
    """The mode that the launcher reports as a number reads like that of a request."""
    artifact = Artifact.model_validate({"path": "a", "size": 1, "sha256": "0" * 64, "mode": 0o755})
    assert artifact.mode == "0755"
    assert Artifact.model_validate_json(artifact.model_dump_json()) == artifact


def test_a_file_name_that_is_no_text_can_be_reported() -> None:
    """A job can name files as it likes; the report on one is valid JSON all the same."""
    name = b"bad\xff\x1b[31m\n".decode("utf-8", "surrogateescape")
    error = ArtifactError(path=name, error="unreadable", message=f"{name} cannot be read")
    assert json.loads(error.model_dump_json())["path"] == "bad\\udcff\x1b[31m\n"
    with pytest.raises(ValidationError, match="string_unicode"):
        Artifact.model_validate({"path": name, "size": 1, "sha256": "0" * 64, "mode": 0})
