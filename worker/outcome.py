"""From what the launcher reports to the verdict: a pure function, and the words for it.

The kernel's facts decide, in this order: what the step was killed for; the output limit, where passing it
ends the step; a program that could not be started; a signal; limits that were met by a program that then
failed. An exit status alone never means more than itself.
"""

import errno
from typing import Any

from jobs.outcome import Evidence, Outcome, OutcomeKind, signal_name
from policies.limits import Limits
from worker.capture import Capture

_KILLED = {
    "cpu_time": OutcomeKind.CPU_TIME_EXCEEDED,
    "wall_time": OutcomeKind.WALL_TIME_EXCEEDED,
    "memory": OutcomeKind.MEMORY_EXCEEDED,
    "output": OutcomeKind.OUTPUT_EXCEEDED,
    "cancelled": OutcomeKind.CANCELLED,
}
_SIGSYS = 31


def outcome_of(report: dict[str, Any], limits: Limits, passed: tuple[Evidence, ...] = ()) -> Outcome:
    """The verdict on one step.

    Args:
        report: the launcher's `ended` message.
        limits: the limits in force.
        passed: streams that passed the limit `output` where that ends the step (see `output_passed`).
    """
    evidence = (*(Evidence(**fact) for fact in report["evidence"]), *passed)
    kind = _kind(report, {fact.limit for fact in evidence})
    if kind is OutcomeKind.SYSCALL_DENIED:
        evidence += (Evidence(limit="syscalls", value=None, observed="SIGSYS", where="wait status"),)
    failed_exec, signal = report["exec_errno"], report["signal"]
    error = errno.errorcode.get(failed_exec, str(failed_exec)) if failed_exec is not None else None
    name = signal_name(signal) if signal is not None else None
    message = _message(kind, limits, report["exit_code"], name, error)
    if kind is OutcomeKind.EXEC_FAILED and report.get("exec_call") == "chdir":
        message = f"The program was not started, its working directory could not be entered: {error}."
    return Outcome(
        kind=kind,
        exit_code=report["exit_code"],
        signal=signal,
        signal_name=name,
        errno=error,
        message=message,
        evidence=evidence,
    )


def output_passed(limit: int, stdout: Capture, stderr: Capture) -> tuple[Evidence, ...]:
    """Evidence for each stream that is over the limit."""
    streams = (("stdout", stdout), ("stderr", stderr))
    return tuple(
        Evidence(limit="output", value=limit, observed=capture.total, where=f"bytes written to {name}")
        for name, capture in streams
        if capture.over
    )


def _kind(report: dict[str, Any], met: set[str]) -> OutcomeKind:
    killed, failed = report["killed"], report["exit_code"] != 0
    if killed is not None:
        return _KILLED[killed]
    if "output" in met:
        return OutcomeKind.OUTPUT_EXCEEDED
    if report["exec_errno"] is not None:
        return OutcomeKind.EXEC_FAILED
    if "memory" in met:
        return OutcomeKind.MEMORY_EXCEEDED
    if report["signal"] == _SIGSYS:
        return OutcomeKind.SYSCALL_DENIED
    if failed and met & {"disk", "disk_inodes"}:
        return OutcomeKind.DISK_EXCEEDED
    if failed and "pids" in met:
        return OutcomeKind.PIDS_EXCEEDED
    return OutcomeKind.EXITED if report["signal"] is None else OutcomeKind.SIGNALED


def _message(
    kind: OutcomeKind, limits: Limits, code: int | None, signal: str | None, error: str | None
) -> str:
    how = f"It was ended by {signal}" if signal else f"It exited with status {code}"
    match kind:
        case OutcomeKind.EXITED | OutcomeKind.SIGNALED:
            return f"{how}."
        case OutcomeKind.EXEC_FAILED:
            return f"The program could not be executed: {error}."
        case OutcomeKind.CPU_TIME_EXCEEDED:
            return f"It was killed for using more than {limits.cpu_time:g} s of CPU time."
        case OutcomeKind.WALL_TIME_EXCEEDED:
            return f"It was killed for running longer than {limits.wall_time:g} s."
        case OutcomeKind.MEMORY_EXCEEDED:
            return f"It was killed for using more than {limits.memory} bytes of memory."
        case OutcomeKind.OUTPUT_EXCEEDED:
            return f"It was ended for writing more than {limits.output} bytes to one stream."
        case OutcomeKind.DISK_EXCEEDED:
            return (
                f"{how} after it had filled its disk of {limits.disk} bytes and {limits.disk_inodes} inodes."
            )
        case OutcomeKind.PIDS_EXCEEDED:
            return f"{how} after it had been refused a process over its {limits.pids}."
        case OutcomeKind.SYSCALL_DENIED:
            return "It was killed for a system call that its policy does not allow (SIGSYS)."
        case _:
            return "It was cancelled."
