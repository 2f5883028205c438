"""The process that sandboxes are forked from; the launcher itself never forks for a job.

After a fork every page that parent or child writes is copied once more, and an interpreter writes to hundreds
of them (reference counts). The zygote does next to nothing between two forks, so hardly any of its pages is
copied; and what a child inherits is only what the launcher sent along for it: no descriptor of another job.

The children are made with CLONE_PARENT: their parent is the launcher, which waits for them.
"""

from __future__ import annotations

import gc
import os
import signal
import socket
from typing import Any, NoReturn

from worker.sandbox import init, wire
from worker.sandbox import syscalls as sc
from worker.sandbox.cgroups import Leaf


class Zygote:
    """The launcher's end: ``ask`` for a sandbox's init, ``answer`` when ``socket`` is readable; first asked,
    first answered."""

    def __init__(self, programs: dict[str, bytes], host_proc: int) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.pid, self.pidfd = sc.clone3(0, pidfd=True)
        if self.pid == 0:
            _serve(theirs, programs, host_proc)
        theirs.close()
        self.socket = ours

    def ask(self, leaf: Leaf, control: socket.socket) -> None:
        """Have an init made for this leaf, with ``control`` as its end of the control socket."""
        fds = [control.fileno(), leaf.cpu, *leaf.join, *leaf.reset]
        head = {"join": len(leaf.join), "reset": len(leaf.reset)}
        if leaf.birth >= 0:
            fds.append(leaf.birth)
        wire.send(self.socket, head, tuple(fds))

    def close(self) -> None:
        """Let it end, and wait for that."""
        self.socket.close()
        os.waitid(os.P_PIDFD, self.pidfd, os.WEXITED)
        os.close(self.pidfd)

    def answer(self) -> int:
        """The pidfd of the oldest init that was asked for; ``OSError`` when it could not be made."""
        message, fds = wire.receive(self.socket)
        if message is None:
            raise ConnectionResetError(104, "the zygote is gone")
        if message["errno"]:
            raise OSError(message["errno"], os.strerror(message["errno"]))
        return fds[0]


def _serve(sock: socket.socket, programs: dict[str, bytes], host_proc: int) -> NoReturn:
    sc.prctl(sc.PR_SET_PDEATHSIG, signal.SIGKILL)
    sc.set_name("stockade-zygote")
    # Signals that an init must find at their defaults are set here once: fork keeps them (fork(2)).
    signal.set_wakeup_fd(-1)
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    os.umask(0)
    keep = sorted({sock.fileno(), host_proc})
    for low, high in zip([2, *keep], [*keep, 2**31 - 1], strict=True):
        os.closerange(low + 1, high)
    gc.disable()
    gc.freeze()
    while True:
        message, fds = wire.receive(sock)
        if message is None:
            os._exit(0)
        _fork(sock, message, fds, programs, host_proc)


def _fork(
    sock: socket.socket, message: dict[str, Any], fds: list[int], programs: Any, host_proc: int
) -> None:
    joins, resets = message["join"], message["reset"]
    control, cpu, *rest = fds
    number = 0
    answer: tuple[int, ...] = ()
    try:
        pid, pidfd = sc.clone3(init.NAMESPACES | sc.CLONE_PARENT, exit_signal=0, pidfd=True)
        if pid == 0:
            sock.close()
            join, reset, birth = rest[:joins], rest[joins : joins + resets], rest[joins + resets :]
            cgroup = birth[0] if birth else -1
            init.main(init.Birth(control, join, reset, cpu, cgroup, host_proc, programs))
        answer = (pidfd,)
    except OSError as problem:
        number = problem.errno or 0
    wire.send(sock, {"errno": number}, answer)
    wire.close_all([*fds, *answer])
