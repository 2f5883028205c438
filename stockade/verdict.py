"""Verdicts: how an outcome is told on a terminal and by an exit status.

The status is the command's own; 128 plus the signal that ended it, which is 137 when a limit did; 125 when we
failed or refused; 126 when the command could not be started, 127 when there is no such command.
"""

import click

from jobs.outcome import Evidence, Outcome, OutcomeKind
from policies.units import format_duration, format_size

OURS, NOT_STARTED, NOT_FOUND, KILLED = 125, 126, 127, 137


def status_of(outcome: Outcome) -> int:
    """The exit status that stands for an outcome."""
    if outcome.kind.ours:
        return OURS
    if outcome.kind is OutcomeKind.EXEC_FAILED:
        return NOT_FOUND if outcome.errno == "ENOENT" else NOT_STARTED
    if outcome.signal is not None:
        return 128 + outcome.signal
    return KILLED if outcome.exit_code is None else outcome.exit_code


def say(outcome: Outcome, command: str) -> None:
    """Say on standard error what stopped the program, if something did, and what limits it met."""
    if outcome.kind is not OutcomeKind.EXITED:
        click.echo(f"{command}: {outcome.kind}: {outcome.message}", err=True)
    for each in outcome.evidence:
        click.echo(f"{command}:   {shown(each)}", err=True)


def shown(evidence: Evidence) -> str:
    """One piece of evidence in a line: ``memory 64MiB, memory.events oom_kill: 1``."""
    value = evidence.value
    if evidence.limit in ("memory", "disk", "output") and isinstance(value, int):
        value = format_size(value)
    elif evidence.limit in ("cpu_time", "wall_time") and isinstance(value, int | float):
        value = format_duration(value)
    return f"{evidence.limit} {value}, {evidence.where}: {evidence.observed}"
