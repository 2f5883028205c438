"""The verdict on a step follows from the launcher's facts alone."""

from typing import Any

import pytest

from jobs.outcome import Evidence, OutcomeKind
from policies.loader import load_policies
from worker.capture import Capture
from worker.outcome import outcome_of, output_passed

LIMITS = load_policies()["default"].defaults


def report(**facts: Any) -> dict[str, Any]:
    """The launcher's report on a step that exited with 0, but for these facts."""
    met = [{"limit": name, "value": 1, "observed": 2, "where": "there"} for name in facts.pop("met", [])]
    base = {"exit_code": 0, "signal": None, "exec_errno": None, "killed": None, "evidence": met}
    if "signal" in facts or "exec_errno" in facts:
        base["exit_code"] = None
    return base | facts


KINDS = [
    # what the kernel says                                       the verdict
    (report(), OutcomeKind.EXITED),
    (report(exit_code=1), OutcomeKind.EXITED),
    (report(exit_code=137), OutcomeKind.EXITED),
    (report(exit_code=159), OutcomeKind.EXITED),
    (report(signal=9), OutcomeKind.SIGNALED),
    (report(signal=11), OutcomeKind.SIGNALED),
    (report(signal=25), OutcomeKind.SIGNALED),
    (report(signal=40), OutcomeKind.SIGNALED),
    (report(signal=31), OutcomeKind.SYSCALL_DENIED),
    (report(exec_errno=2), OutcomeKind.EXEC_FAILED),
    (report(exec_errno=8), OutcomeKind.EXEC_FAILED),
    (report(signal=9, killed="cpu_time", met=["cpu_time"]), OutcomeKind.CPU_TIME_EXCEEDED),
    (report(signal=9, killed="wall_time", met=["wall_time"]), OutcomeKind.WALL_TIME_EXCEEDED),
    (report(signal=9, killed="memory", met=["memory"]), OutcomeKind.MEMORY_EXCEEDED),
    (report(signal=9, killed="output"), OutcomeKind.OUTPUT_EXCEEDED),
    (report(signal=9, killed="cancelled"), OutcomeKind.CANCELLED),
    # a child was killed for memory while the main process returned 0
    (report(met=["memory"]), OutcomeKind.MEMORY_EXCEEDED),
    (report(killed="memory", met=["memory"]), OutcomeKind.MEMORY_EXCEEDED),
    # the reason for the kill wins over limits met on the way
    (report(signal=9, killed="wall_time", met=["pids", "disk", "wall_time"]), OutcomeKind.WALL_TIME_EXCEEDED),
    (report(signal=9, killed="cancelled", met=["cpu_time"]), OutcomeKind.CANCELLED),
    # limits that refuse: a verdict only when the program then failed
    (report(exit_code=1, met=["disk"]), OutcomeKind.DISK_EXCEEDED),
    (report(exit_code=1, met=["disk_inodes"]), OutcomeKind.DISK_EXCEEDED),
    (report(signal=6, met=["disk"]), OutcomeKind.DISK_EXCEEDED),
    (report(met=["disk"]), OutcomeKind.EXITED),
    (report(exit_code=2, met=["pids"]), OutcomeKind.PIDS_EXCEEDED),
    (report(met=["pids"]), OutcomeKind.EXITED),
    (report(exit_code=1, met=["disk", "pids"]), OutcomeKind.DISK_EXCEEDED),
    (report(signal=31, met=["disk"]), OutcomeKind.SYSCALL_DENIED),
]


@pytest.mark.parametrize(("facts", "kind"), KINDS, ids=lambda value: str(value)[:60])
def test_verdict_follows_from_the_facts(facts: dict[str, Any], kind: OutcomeKind) -> None:
    """Each combination of facts has one verdict, one sentence, and keeps its evidence and numbers."""
    outcome = outcome_of(facts, LIMITS)
    assert outcome.kind is kind
    assert outcome.message.endswith(".")
    assert [fact.limit for fact in outcome.evidence if fact.limit != "syscalls"] == [
        fact["limit"] for fact in facts["evidence"]
    ]
    assert (outcome.exit_code, outcome.signal) == (facts["exit_code"], facts["signal"])


def test_names_are_the_kernels() -> None:
    """Signals and errors are named as the kernel's headers name them."""
    assert outcome_of(report(signal=11), LIMITS).signal_name == "SIGSEGV"
    assert outcome_of(report(exec_errno=2), LIMITS).errno == "ENOENT"
    assert outcome_of(report(exec_errno=7), LIMITS).errno == "E2BIG"


PASSED = (Evidence(limit="output", value=10, observed=11, where="bytes written to stdout"),)


@pytest.mark.parametrize(
    ("facts", "kind"),
    [
        (report(), OutcomeKind.OUTPUT_EXCEEDED),
        (report(signal=9, killed="output"), OutcomeKind.OUTPUT_EXCEEDED),
        (report(exit_code=1, met=["pids"]), OutcomeKind.OUTPUT_EXCEEDED),
        (report(signal=9, killed="wall_time"), OutcomeKind.WALL_TIME_EXCEEDED),
        (report(signal=9, killed="cancelled"), OutcomeKind.CANCELLED),
    ],
    ids=str,
)
def test_output_over_a_limit_that_kills(facts: dict[str, Any], kind: OutcomeKind) -> None:
    """Where passing the output limit ends the step, it makes no difference whether it exited first."""
    outcome = outcome_of(facts, LIMITS, PASSED)
    assert outcome.kind is kind
    assert outcome.evidence[-1] == PASSED[0]


def test_streams_over_the_limit_are_named() -> None:
    """The evidence says which stream wrote how much."""
    full, fine = Capture(4), Capture(4)
    full.feed(b"12345")
    fine.feed(b"1234")
    [fact] = output_passed(4, fine, full)
    assert (fact.limit, fact.value, fact.observed, fact.where) == ("output", 4, 5, "bytes written to stderr")


def test_a_working_directory_that_cannot_be_entered_is_told_apart_from_the_program() -> None:
    """The message says which of the two was missing."""
    outcome = outcome_of(report(exec_errno=2, exec_call="chdir"), LIMITS)
    assert outcome.kind is OutcomeKind.EXEC_FAILED
    assert "working directory" in outcome.message
