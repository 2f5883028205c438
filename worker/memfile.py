"""Files that live in memory and cannot be changed any more: how bytes are handed to the launcher."""

import fcntl
import os
import struct
from collections.abc import Iterable

from jobs.spec import File

_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


def sealed(name: str, parts: Iterable[bytes]) -> int:
    """A read-only descriptor of a new sealed memfd with these bytes; the caller closes it.

    One for each job: a file that two jobs had open would be a channel between them (flock(2), F_SETLEASE).
    """
    writable = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        for part in parts:
            rest = memoryview(part)
            while rest:
                rest = rest[os.write(writable, rest) :]
        fcntl.fcntl(writable, fcntl.F_ADD_SEALS, _SEALS)
        return os.open(f"/proc/self/fd/{writable}", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(writable)


def packed(files: Iterable[File]) -> Iterable[bytes]:
    """The files as the launcher unpacks them: for each `<HIQ` (path length, mode, size), path, data."""
    for file in files:
        path, data = file.path.encode(), file.data
        yield struct.pack("<HIQ", len(path), file.mode_bits, len(data)) + path
        yield data
