"""What is wrong with an image, as a code for programs and a sentence for people."""

from __future__ import annotations


class ImageError(Exception):
    """The image can't be used: it is malformed, too large, or not what its digest says.

    What fails on our side while we handle it (a full disk, a kernel without idmapped mounts) is a
    `worker.sandbox.errors.SandboxError`.

    code: ``image_too_large``, ``layer_digest_mismatch``, ``layer_bad_path`` ...
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(code, message)
        self.code, self.message = code, message

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"


def shown(name: bytes) -> str:
    """A name out of an archive as text that a terminal takes without harm, at most 200 characters."""
    text = name.decode("utf-8", "backslashreplace")
    safe = "".join(each if each.isprintable() else f"\\x{ord(each):02x}" for each in text)
    return safe if len(safe) <= 200 else safe[:197] + "..."
