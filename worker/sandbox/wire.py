"""JSON packets with descriptors over a Unix SOCK_SEQPACKET socket (unix(7)): one packet, one message."""

from __future__ import annotations

import array
import contextlib
import json
import os
import socket
from typing import Any

MAX_MESSAGE = 400 * 1024
MAX_FDS = 16
_FD_SPACE = socket.CMSG_SPACE(MAX_FDS * 4)


class WireError(Exception):
    """A packet that is not one whole JSON object of ours."""


def prepare(sock: socket.socket) -> socket.socket:
    """Give the socket room for the largest message (the kernel doubles the figure, socket(7))."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 212992)
    return sock


def encode(message: dict[str, Any]) -> bytes:
    """The packet of a message; raises ``WireError`` when it is too long."""
    text = json.dumps(message, ensure_ascii=False, separators=(",", ":"))
    try:
        packet = text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as problem:
        raise WireError(f"message is not text: {problem}") from None
    if len(packet) > MAX_MESSAGE:
        raise WireError(f"message of {len(packet)} bytes, at most {MAX_MESSAGE} are allowed")
    return packet


def send(
    sock: socket.socket, message: dict[str, Any] | bytes, fds: tuple[int, ...] = (), flags: int = 0
) -> None:
    """Send one message with descriptors; ``OSError`` as sendmsg(2)."""
    packet = message if isinstance(message, bytes) else encode(message)
    if fds:
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))]
        sock.sendmsg([packet], ancillary, flags | socket.MSG_NOSIGNAL)
    else:
        sock.send(packet, flags | socket.MSG_NOSIGNAL)


def receive_packet(sock: socket.socket, flags: int = 0) -> tuple[bytes, list[int]]:
    """One packet and its descriptors (close-on-exec). Empty bytes: the peer is gone."""
    packet, ancillary, message_flags, _ = sock.recvmsg(
        MAX_MESSAGE + 1, _FD_SPACE, flags | socket.MSG_CMSG_CLOEXEC
    )
    fds = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(data[: len(data) - len(data) % 4])
    if message_flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
        close_all(fds)
        raise WireError("message too long or with too many descriptors")
    return packet, list(fds)


def decode(packet: bytes) -> dict[str, Any]:
    """The message of a packet; raises ``WireError``."""
    try:
        message = json.loads(packet.decode("utf-8", "surrogateescape"))
    except (ValueError, RecursionError) as problem:
        raise WireError(f"not JSON: {problem}") from None
    if not isinstance(message, dict):
        raise WireError("not a JSON object")
    return message


def receive(sock: socket.socket, flags: int = 0) -> tuple[dict[str, Any] | None, list[int]]:
    """One message and its descriptors; ``None`` when the peer is gone."""
    packet, fds = receive_packet(sock, flags)
    if not packet:
        close_all(fds)
        return None, []
    try:
        return decode(packet), fds
    except WireError:
        close_all(fds)
        raise


def close_all(fds: Any) -> None:
    """Close each descriptor, whatever the others say."""
    for fd in fds:
        with contextlib.suppress(OSError):
            os.close(fd)
