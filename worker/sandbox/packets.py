"""Packets between the launcher, its zygote and the tasks of a sandbox, all of them ours: marshal, and descriptors.

Imports C modules only, like everything that the zygote loads: what a fork has to copy is what was imported.
"""

from __future__ import annotations

import _socket
import marshal
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

MAX_PACKET = 420 * 1024
_FD_SPACE = _socket.CMSG_SPACE(16 * 4)
_BUFFER = bytearray(MAX_PACKET)  # one for all: each process that uses it has one thread


def pair() -> tuple[_socket.socket, _socket.socket]:
    """A connected pair of SOCK_SEQPACKET sockets (unix(7)) with room for the largest packet."""
    ends = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
    for end in ends:
        end.setsockopt(_socket.SOL_SOCKET, _socket.SO_SNDBUF, 212992)
    return ends


def send(sock: _socket.socket, message: Any, fds: Iterable[int] = ()) -> None:
    """Send one message of plain Python values with descriptors; ``OSError`` as sendmsg(2)."""
    packet = message if isinstance(message, bytes) else marshal.dumps(message)
    if fds:
        data = b"".join([fd.to_bytes(4, "little") for fd in fds])
        ancillary = [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, data)]
        sock.sendmsg([packet], ancillary, _socket.MSG_NOSIGNAL)
    else:
        sock.send(packet, _socket.MSG_NOSIGNAL)


def receive_packet(sock: _socket.socket) -> tuple[bytes, list[int]]:
    """One packet, not yet loaded, and its descriptors (close-on-exec). Empty bytes: the other end is gone."""
    size, ancillary, _, _ = sock.recvmsg_into([_BUFFER], _FD_SPACE, _socket.MSG_CMSG_CLOEXEC)
    fds = []
    for _, _, data in ancillary:
        for at in range(0, len(data) - 3, 4):
            fds.append(int.from_bytes(data[at : at + 4], "little"))
    return bytes(memoryview(_BUFFER)[:size]), fds


def loads(packet: bytes) -> Any:
    """The message in a packet."""
    return marshal.loads(packet)  # noqa: S302 - both ends are root's own processes, on a private pair


def receive(sock: _socket.socket) -> tuple[Any, list[int]]:
    """One message and its descriptors; ``None`` when the other end is gone."""
    packet, fds = receive_packet(sock)
    return (loads(packet) if packet else None), fds


def close_all(fds: Iterable[int]) -> None:
    """Close each descriptor, whatever the others say."""
    for fd in fds:
        try:
            os.close(fd)
        except OSError:
            continue
