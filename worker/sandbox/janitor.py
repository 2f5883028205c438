"""Removes the cgroups of ended steps, beside the launcher.

rmdir of a cgroup may wait for an RCU grace period (blkio of cgroup v1: 5 to 15 ms), and fails for as long as a
task is in it. Neither may hold up the launcher, so this process does it, and keeps at it.
"""

from __future__ import annotations

import _socket
import gc
import os
import select
import signal
import time
from typing import NoReturn

from worker.sandbox import packets
from worker.sandbox import syscalls as sc
from worker.sandbox.cgroups import Driver

_RETRY_MS, _LAST_SECONDS = 20, 3.0


class Janitor:
    """The launcher's end."""

    def __init__(self, driver: Driver) -> None:
        """Start the process."""
        self._driver = driver
        self._socket, theirs = packets.pair()
        self.pid, _ = sc.clone3(0)
        if self.pid == 0:
            self._socket.close()
            _serve(theirs, driver)
        theirs.close()

    def remove(self, name: str) -> None:
        """Have the cgroup of a step removed as soon as nothing is in it."""
        try:
            packets.send(self._socket, name)
        except OSError:
            # It is gone: then it is done here, once, and what is left by the next launcher's sweep.
            self._driver.discard(name)

    def close(self) -> None:
        """Let it finish what can be removed now, and end."""
        self._socket.close()
        os.waitpid(self.pid, 0)


def _serve(sock: _socket.socket, driver: Driver) -> NoReturn:
    sc.prctl(sc.PR_SET_PDEATHSIG, signal.SIGKILL)
    sc.set_name("stockade-janitor")
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    gc.freeze()
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    left: list[str] = []
    while True:
        if poll.poll(_RETRY_MS if left else None):
            name, _ = packets.receive(sock)
            if name is None:
                break
            left.append(name)
        left = [name for name in left if not driver.discard(name)]
    deadline = time.monotonic() + _LAST_SECONDS
    while left and time.monotonic() < deadline:
        time.sleep(_RETRY_MS / 1000)
        left = [name for name in left if not driver.discard(name)]
    os._exit(0)
