"""A line on a terminal that says how many bytes have gone by, and how fast."""

import time
from types import TracebackType
from typing import TextIO

from policies.units import format_size

_PAUSE = 0.1
"""Seconds between two changes of the line."""


class Progress:
    """Counts over several blobs, one after the other. On what is no terminal it says nothing."""

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._shows = stream, stream.isatty()
        self._before = self._current = 0
        self._begin = time.monotonic()
        self._next = 0.0

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._shows:
            self._stream.write("\r\033[K")
            self._stream.flush()

    def bytes(self, count: int) -> None:
        """So many bytes of the present blob have come; fewer than before: the next one has begun."""
        if count < self._current:
            self._before += self._current
        self._current = count
        now = time.monotonic()
        if self._shows and now >= self._next:
            self._next = now + _PAUSE
            total = self._before + count
            rate = int(total / max(now - self._begin, 0.001))
            self._stream.write(f"\r\033[K{short(total)}  {short(rate)}/s")
            self._stream.flush()


def short(size: int) -> str:
    """A size for people: ``187.8 MiB``."""
    return f"{size / (1 << 20):.1f} MiB" if size >= 1 << 20 else format_size(size)
