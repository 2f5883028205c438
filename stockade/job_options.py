"""Options that say what a job is: its limits, files and environment, for every command that takes one."""

from base64 import b64encode
from collections.abc import Callable
from pathlib import Path

import click

from policies.limits import Limits
from policies.violation import Violation, sentence


def limit_options(**notes: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """One option for each limit, with the limit's own name and description, and a note where there is one."""

    def add(command: Callable[..., None]) -> Callable[..., None]:
        for name, about in reversed(Limits.model_fields.items()):
            about_it = (about.description or "").split(". ")[0].rstrip(".") + "."
            help_text = " ".join((about_it, *filter(None, [notes.get(name)])))
            command = click.option(f"--{name.replace('_', '-')}", name, metavar="N", help=help_text)(command)
        return command

    return add


def given(limits: dict[str, str | None]) -> dict[str, str | int | float]:
    """The limits that the command line names; plain numbers as numbers."""
    return {name: _number(text) for name, text in limits.items() if text is not None}


def _number(text: str) -> str | int | float:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def environment(pairs: tuple[str, ...]) -> dict[str, str]:
    """The variables that ``NAME=VALUE`` options name."""
    for pair in pairs:
        if "=" not in pair:
            raise click.ClickException(f"--env {pair}: expected NAME=VALUE")
    return dict(pair.split("=", 1) for pair in pairs)


def file(argument: str) -> dict[str, str]:
    """The file that a ``LOCAL[:PATH]`` option names, with its content and mode."""
    local, colon, path = argument.partition(":")
    try:
        content, mode = Path(local).read_bytes(), Path(local).stat().st_mode
    except OSError as error:
        raise click.ClickException(f"--file {local}: {error.strerror}") from None
    name = path if colon else Path(local).name
    return {"path": name, "base64": b64encode(content).decode(), "mode": f"{mode & 0o777:04o}"}


def refusal(found: tuple[Violation, ...]) -> str:
    """Everything that is wrong with what was asked, a line each; limits by the name of their options."""
    named = (each.model_copy(update={"field": each.field.removeprefix("command.")}) for each in found)
    return "\n  ".join(["refused:", *map(sentence, named)])
