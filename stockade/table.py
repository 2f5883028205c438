"""Tables for people: columns as wide as what stands in them."""

from collections.abc import Sequence
from datetime import datetime

import click


def print_table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    """Print a head and rows."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    for row in (head, *rows):
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def moment(when: datetime | None) -> str:
    """A moment as people read it; ``-`` for none."""
    return "-" if when is None else f"{when:%Y-%m-%d %H:%M:%S} UTC"
