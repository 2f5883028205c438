"""Server-sent events: from bytes, however they are cut, to events (HTML standard, 9.2.6)."""

from typing import NamedTuple


class Message(NamedTuple):
    """One event as it came: its name, the id that is in force, its data."""

    name: str
    id: str
    data: str


class Decoder:
    """Takes bytes and says which events they complete."""

    def __init__(self) -> None:
        self.last_id = ""
        self.retry: float | None = None
        """Seconds after which to come back, when the service has said so."""
        self._rest = b""
        self._name = ""
        self._data: list[str] = []

    def feed(self, chunk: bytes) -> list[Message]:
        """The events that are whole with these bytes."""
        lines = (self._rest + chunk).splitlines(keepends=True)
        self._rest = b""
        if lines and not lines[-1].endswith(b"\n"):
            self._rest = lines.pop()  # its end is still to come; a CR may be half of a CR LF
        told = (self._line(line.rstrip(b"\r\n").decode(errors="replace")) for line in lines)
        return [message for message in told if message is not None]

    def _line(self, line: str) -> Message | None:
        if not line:
            return self._dispatch()
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "event":
            self._name = value
        elif name == "data":
            self._data.append(value)
        elif name == "id" and "\0" not in value:
            self.last_id = value
        elif name == "retry" and value.isascii() and value.isdigit():
            self.retry = int(value) / 1000
        return None

    def _dispatch(self) -> Message | None:
        name, data = self._name or "message", self._data
        self._name, self._data = "", []
        return Message(name, self.last_id, "\n".join(data)) if data else None
