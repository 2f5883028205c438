"""One TCP connection: what Uvicorn leaves open to strangers is bounded here, before any key is looked at.

Uvicorn (with httptools) keeps the head of a request whatever its size, waits for its end for ever, and
after an early answer goes on reading a body that nobody wants, and waits for ever for a caller that does not
take its answer. Here a head has `MAX_HEAD` bytes and `HEAD_TIME` seconds, an answer that came before the end of
the body ends the connection, and so does a caller that takes nothing for `STALL_TIME` seconds.
"""

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from api.problems import HEAD_TIMEOUT, HEAD_TOO_LARGE, MALFORMED, MEDIA_TYPE, Kind, ProblemError

MAX_HEAD = 64 * 1024  # bytes of request line and header fields; other servers take 8 to 64 KiB
HEAD_TIME = 20.0  # seconds from the connection, or from the first byte of a further request, to its end
STALL_TIME = 60.0  # seconds in which a caller must take something of what waits for it


class Connection(HttpToolsProtocol):
    """Uvicorn's protocol with bounds; one object for each connection."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._in_head = True
        self._head_bytes = 0
        self._head_timer: asyncio.TimerHandle | None = None
        self._stall_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the clock: a connection on which nothing comes is ended too."""
        super().connection_made(transport)
        self._start_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the clocks."""
        self._stop_timer()
        self._stop_stall_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Count what belongs to a head that has not ended."""
        super().data_received(data)
        if self._in_head and not self.transport.is_closing():
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD:
                self._refuse(HEAD_TOO_LARGE, f"Request line and header fields may have {MAX_HEAD} bytes.")

    def on_message_begin(self) -> None:
        """Start the clock of this head, if it does not run since the connection was made."""
        super().on_message_begin()
        self._in_head = True
        self._head_bytes = 0
        if self._head_timer is None:
            self._start_timer()

    def on_headers_complete(self) -> None:
        """Stop the clock; what follows is the body's matter (see `api.body`)."""
        self._in_head = False
        self._stop_timer()
        super().on_headers_complete()

    def send_400_response(self, msg: str) -> None:
        """Say that this is not HTTP in the form in which everything else is said, and end the connection."""
        self._refuse(MALFORMED, "The request breaks the rules of HTTP/1.1; the connection ends.")

    def on_response_complete(self) -> None:
        """End the connection when the rest of the body was not wanted."""
        if self.cycle.more_body:
            self.transport.close()
        super().on_response_complete()

    def pause_writing(self) -> None:
        """Start the clock of a caller that does not take its answer; what waits for it is not kept for ever."""
        super().pause_writing()
        if self._stall_timer is None:
            self._start_stall_timer()

    def resume_writing(self) -> None:
        """Stop that clock: it has taken most of it."""
        self._stop_stall_timer()
        super().resume_writing()

    def _start_stall_timer(self) -> None:
        waiting = self.transport.get_write_buffer_size()
        self._stall_timer = self.loop.call_later(STALL_TIME, self._end_if_stalled, waiting)

    def _end_if_stalled(self, waiting: int) -> None:
        if self.transport.get_write_buffer_size() < waiting:
            self._start_stall_timer()
        else:
            self.transport.abort()

    def _stop_stall_timer(self) -> None:
        if self._stall_timer is not None:
            self._stall_timer.cancel()
            self._stall_timer = None

    def _start_timer(self) -> None:
        detail = f"The request's head was not complete after {HEAD_TIME:g} seconds."
        self._head_timer = self.loop.call_later(HEAD_TIME, self._refuse, HEAD_TIMEOUT, detail)

    def _stop_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _refuse(self, kind: Kind, detail: str) -> None:
        self._stop_timer()
        answering = self.cycle is not None and not self.cycle.response_complete
        unanswered = (
            answering and not self.cycle.response_started and self.cycle.more_body
        )  # its body is at fault
        if self.transport.is_closing() or (
            answering and not unanswered
        ):  # pipelined behind a request that waits
            self.transport.close()
            return
        body = bytes(ProblemError(kind, detail).response().body)
        head = (
            f"HTTP/1.1 {kind.status} {kind.title}\r\ncontent-type: {MEDIA_TYPE}\r\n"
            f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()
