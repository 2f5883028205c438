"""A child process of ours: started in a session of its own, with a log file, and surely ended.

Children are started through ``setpriv`` (util-linux): one tool both drops every
privilege and ties the child's life to ours (``PR_SET_PDEATHSIG``), without running
Python code between fork and exec.
"""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_UNPRIVILEGED = ("--clear-groups", "--inh-caps=-all", "--bounding-set=-all", "--no-new-privs")


class ChildDied(Exception):
    """A child ended, or did not get ready, although it was needed. The text says which and how."""


@dataclass
class Child:
    """One process: ``argv`` run as ``user`` (None: as ourselves), its output appended to ``log``."""

    name: str
    argv: list[str]
    log: Path
    user: str | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    pass_fds: tuple[int, ...] = ()
    _process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it: no standard input, working directory ``/``, nothing of our environment but ``env``."""
        drop = () if self.user is None else ("--reuid", self.user, "--regid", self.user, *_UNPRIVILEGED)
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "TERM", *drop, "--", *self.argv],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                env={"PATH": PATH, "LANG": "C.UTF-8", **self.env},
                start_new_session=True,
                pass_fds=self.pass_fds,
            )

    @property
    def pid(self) -> int | None:
        """Its process id, None before the first start."""
        return None if self._process is None else self._process.pid

    def status(self) -> str | None:
        """How it ended (``"status 1"``, ``"SIGKILL"``), or None while it runs or was never started."""
        code = None if self._process is None else self._process.poll()
        if code is None:
            return None
        return signal.Signals(-code).name if code < 0 else f"status {code}"

    def wait_until(
        self, ready: Callable[[], bool], timeout: float, pause: Callable[[float], None] = time.sleep
    ) -> None:
        """Return when ``ready()`` holds.

        Raises:
            ChildDied: the child ended, or ``timeout`` seconds passed.
        """
        deadline = time.monotonic() + timeout
        while not ready():
            if status := self.status():
                raise ChildDied(f"{self.name} ended with {status} while starting{self._last_words()}")
            if time.monotonic() > deadline:
                raise ChildDied(f"{self.name} was not ready after {timeout:g} s{self._last_words()}")
            pause(0.02)

    def stop(self, grace: float) -> bool:
        """Ask it to end (SIGTERM), after ``grace`` seconds make it; whether it went by itself. Idempotent."""
        process = self._process
        if process is None:
            return True
        process.terminate()
        try:
            process.wait(grace)
            clean = True
        except subprocess.TimeoutExpired:
            clean = False
        try:  # whatever it left in its process group, and itself when it did not listen
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        process.wait()
        return clean

    def _last_words(self) -> str:
        lines = self.log.read_text(errors="replace").splitlines()[-5:]
        return f"; the end of {self.log}:\n" + "\n".join(f"  {line}" for line in lines)
