"""One stream of a program's output: its first and last part kept, all of it counted, memory bounded."""

from jobs.outcome import Output


class Capture:
    """Keeps at most `limit` bytes of what is fed: the first half and the last half.

    Holds at most one and a half times the limit and one chunk, however much is fed.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.total = 0
        """Bytes fed."""
        self._head_max = limit - limit // 2
        self._tail_max = limit // 2
        self._head = bytearray()
        self._tail = bytearray()

    @property
    def over(self) -> bool:
        """Whether more was fed than is kept."""
        return self.total > self.limit

    def feed(self, chunk: bytes) -> None:
        """Take the next bytes of the stream."""
        self.total += len(chunk)
        room = self._head_max - len(self._head)
        if room:
            self._head += chunk[:room]
            chunk = chunk[room:]
        if len(chunk) >= self._tail_max:
            self._tail = bytearray(chunk[len(chunk) - self._tail_max :])
        elif chunk:
            self._tail += chunk
            if len(self._tail) > 2 * self._tail_max:
                del self._tail[: -self._tail_max]

    def output(self) -> Output:
        """What was kept, as a result shows it."""
        tail = self._tail[len(self._tail) - self._tail_max :] if self.over else self._tail
        return Output.of(bytes(self._head), bytes(tail), self.total)
