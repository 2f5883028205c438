"""What can go wrong with a registry. No message holds a credential, a token or the query of a URL."""

from enum import StrEnum


class Fault(StrEnum):
    """What kind of failure it is, for whoever decides what to do about it."""

    NOT_FOUND = "not_found"
    """The registry has no such image, or hides it from us."""
    DENIED = "denied"
    """The registry wants credentials, or refused those that it got."""
    UNREACHABLE = "unreachable"
    """No answer, or only answers that ask to come back later, for as long as we had patience."""
    REFUSED = "refused"
    """We refuse: what came is not what was asked for, or leads where we do not go."""
    SETTINGS = "settings"
    """A file of the operator's cannot be used."""


class RegistryError(Exception):
    """Something about a registry failed.

    fault: what kind of failure it is.
    subject: what it is about: an image, a blob, a host, a file.
    reason: what happened.
    hint: what can be done about it.
    """

    def __init__(self, fault: Fault, subject: str, reason: str, hint: str = "") -> None:
        self.fault, self.subject, self.reason, self.hint = fault, subject, reason, hint
        super().__init__(fault, subject, reason, hint)

    def __str__(self) -> str:
        return f"{self.subject}: {self.reason}" + (f"; {self.hint}" if self.hint else "")
