"""Finding: one thing that is wrong with a policy document, and where it stands."""

import difflib
from collections.abc import Sequence

from pydantic import Field

from policies.model import Frozen
from policies.violation import Violation


class Finding(Frozen):
    """One thing that is wrong, or odd, in a document."""

    file: str = Field(description="The document's file.")
    line: int = Field(description="The line, from 1.")
    path: str = Field(description='Where in the document: "ceilings.memory"; "" is the whole of it.')
    message: str = Field(description="One sentence for people.")

    def __str__(self) -> str:
        path = f"{self.path}: " if self.path else ""
        return f"{self.file}:{self.line}: {path}{self.message}"


class PolicyError(Exception):
    """Policy documents that are not as they must be.

    Attributes:
        findings: everything that is wrong, not the first thing; by file and line.
    """

    def __init__(self, findings: Sequence[Finding]) -> None:
        self.findings = tuple(sorted(findings, key=lambda each: (each.file, each.line, each.path)))
        super().__init__("\n".join(map(str, self.findings)))


def sentence(found: Violation) -> str:
    """Return what a violation says, and for a name that nobody knows the one that was meant."""
    if isinstance(found.allowed, list) and "is not a field" in found.message:
        name = found.field.rpartition(".")[2]
        meant = difflib.get_close_matches(name, map(str, found.allowed), 1)
        return f"{found.message}; did you mean {meant[0]}?" if meant else found.message
    return found.message
