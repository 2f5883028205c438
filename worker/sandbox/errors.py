"""The one exception of the sandbox: *we* failed; it never tells what a program did."""

from __future__ import annotations

import errno as _errno
import os


class SandboxError(Exception):
    """A step of ours could not be done.

    step: the short name of the step (``mount``, ``cgroup``, ``clone3``, ``userns`` ...).
    errno: the kernel's error number, 0 where there was none.
    subject: what it was done to (a path, a limit, a field).
    hint: what the operator can do about it.
    """

    def __init__(self, step: str, errno: int = 0, subject: str = "", hint: str = "") -> None:
        self.step, self.errno, self.subject, self.hint = step, errno, subject, hint
        super().__init__(step, errno, subject, hint)

    def __str__(self) -> str:
        reason = f": {errno_name(self.errno)} ({os.strerror(self.errno)})" if self.errno else ""
        subject = f" {self.subject}" if self.subject else ""
        return f"{self.step}{subject}{reason}" + (f"; {self.hint}" if self.hint else "")

    def as_message(self) -> dict[str, object]:
        """The ``failed`` message of the launcher's protocol."""
        return {
            "op": "failed",
            "step": self.step,
            "errno": self.errno,
            "subject": self.subject,
            "hint": self.hint,
        }


def errno_name(number: int) -> str:
    """``2`` -> ``"ENOENT"`` (errno(3))."""
    return _errno.errorcode.get(number, str(number))
