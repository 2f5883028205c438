"""The process that sandboxes are forked from; the launcher itself never forks for a job.

After a fork every page that parent or child writes is copied once more, and an interpreter writes to hundreds
of them (reference counts). So the zygote is a fresh interpreter that has imported little (`init` and below, C
modules), and it does next to nothing between two forks. What a child inherits is only what the launcher sent
along for it: no descriptor of another job.

The children are made with CLONE_PARENT: their parent is the launcher, which waits for them.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import _socket
import gc
import os
import sys

from worker.sandbox import init, packets
from worker.sandbox import syscalls as sc

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

    from worker.sandbox.cgroups import Leaf

_ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
_START = "import sys; sys.path.insert(0, sys.argv[1]); from worker.sandbox import zygote; zygote.main()"


class Zygote:
    """The launcher's end: ``ask`` for a sandbox's init, ``answer`` when ``socket`` is readable; first asked,
    first answered."""

    def __init__(self) -> None:
        """Start the process; it serves once it was told ``begin``."""
        self.socket, theirs = packets.pair()
        os.set_inheritable(theirs.fileno(), True)
        arguments = [sys.executable, "-I", "-S", "-c", _START, _ROOT, str(theirs.fileno())]
        # Not posix_spawn(3): glibc's leaves two signals ignored in the child, and a job would inherit that.
        self.pid, _ = sc.clone3(0)
        if self.pid == 0:
            try:
                # Symbols bound at the start (ld.so(8)), once, and not in each child at their first use.
                os.execve(sys.executable, arguments, {"LC_ALL": "C.UTF-8", "LD_BIND_NOW": "1"})
            finally:
                os._exit(127)
        theirs.close()

    def begin(
        self, mount_namespace: int, host_proc: int, filters: dict[str, bytes], usual: list[tuple[Any, ...]]
    ) -> None:
        """Move it into the launcher's mount namespace and give it what every sandbox needs.

        usual: the operations for a first step of the usual image, which `Sandbox.build` need not send then.
        """
        packets.send(self.socket, (filters, usual), (mount_namespace, host_proc))

    def ask(self, leaf: Leaf, control: _socket.socket) -> None:
        """Have an init made for this leaf, with ``control`` as its end of the control socket."""
        fds = [control.fileno(), leaf.cpu, *leaf.join, *leaf.reset]
        if leaf.birth >= 0:
            fds.append(leaf.birth)
        packets.send(self.socket, {"join": len(leaf.join), "reset": len(leaf.reset)}, fds)

    def answer(self) -> int:
        """The pidfd of the oldest init that was asked for; ``OSError`` when it could not be made."""
        number, fds = packets.receive(self.socket)
        if number is None:
            raise ConnectionResetError(104, "the zygote is gone")
        if number:
            raise OSError(number, os.strerror(number))
        return fds[0]

    def close(self) -> None:
        """Let it end, and wait for that."""
        self.socket.close()
        os.waitpid(self.pid, 0)


def main() -> NoReturn:
    """The process itself."""
    sc.prctl(sc.PR_SET_PDEATHSIG, _signal.SIGKILL)
    sc.set_name("stockade-zygote")
    # What every sandbox's tasks need, and keep over fork, is done here once.
    sc.prctl(sc.PR_SET_DUMPABLE, 0)
    os.setsid()
    sock = _socket.socket(fileno=int(sys.argv[2]))
    os.set_inheritable(sock.fileno(), False)
    os.closerange(3, sock.fileno())
    os.closerange(sock.fileno() + 1, 2**31 - 1)
    # Signals that an init must find at their defaults are set here once: fork keeps them (fork(2)).
    for number in _signal.valid_signals() - {_signal.SIGKILL, _signal.SIGSTOP}:
        _signal.signal(number, _signal.SIG_DFL)
    sc.reset_internal_signals()
    _signal.pthread_sigmask(_signal.SIG_SETMASK, ())
    os.umask(0)
    start, fds = packets.receive(sock)
    if start is None:
        os._exit(0)
    mount_namespace, host_proc = fds
    common = init.Common(*start)
    sc.setns(mount_namespace, sc.CLONE_NEWNS)
    os.close(mount_namespace)
    gc.disable()
    gc.freeze()
    while True:
        head, fds = packets.receive(sock)
        if head is None:
            os._exit(0)
        number, answer, birth = 0, [], None
        try:
            birth = init.Birth(head, fds, host_proc, common, sock.fileno())
            pid, pidfd = sc.clone3(init.NAMESPACES | sc.CLONE_PARENT, exit_signal=0, pidfd=True)
            if pid == 0:
                init.main(birth)
            answer = [pidfd]
        except OSError as problem:
            number = problem.errno or 0
        packets.send(sock, number, answer)
        if birth:
            birth.close()
        else:
            packets.close_all(fds)
        packets.close_all(answer)
