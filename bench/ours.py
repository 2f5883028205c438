"""Our sandbox by itself: a launcher, spoken to as the worker does, without queue and HTTP."""

import contextlib
import os
import selectors
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import processes
from jobs.settings import Settings
from stockade.children import Child
from stockade.up import accepts, launcher_command
from worker.sandbox.client import Session

LIMITS = {
    "cpus": 1.0,
    "memory": 256 << 20,
    "pids": 64,
    "cpu_time": 10.0,
    "wall_time": 600.0,
    "disk": 64 << 20,
    "disk_inodes": 16384,
    "open_files": 256,
    "file_size": 64 << 20,
    "stack": 8 << 20,
}


def plan(*argv: str, image: str = "host") -> dict[str, Any]:
    """A step with every limit, as the worker would ask for it."""
    return {
        "image": image,
        "argv": list(argv),
        "env": {"PATH": "/usr/bin:/bin"},
        "cwd": "/work",
        "user": 0,
        "hostname": "sandbox",
        "syscalls": "default",
        "capabilities": [],
        "limits": LIMITS,
    }


class Run:
    """One session with one step, from connecting to the end of teardown."""

    def __init__(self, launcher: Path, nothing: int, *argv: str, image: str = "host") -> None:
        self.begun = time.perf_counter()
        self.session = Session(str(launcher))
        self.session.run(plan(*argv, image=image), nothing, nothing, nothing, None)

    def finish(self) -> float:
        """Take the end of the step and close; seconds since the beginning."""
        ended = self.session.receive()
        self.session.close()
        if ended.get("op") != "ended" or ended.get("exit_code") != 0 or ended.get("teardown") != "clean":
            raise RuntimeError(f"ours: {ended}")
        return time.perf_counter() - self.begun


@dataclass(frozen=True)
class Launcher:
    """A running launcher: its process, its socket and its images."""

    pid: int
    path: Path
    images: Path

    def round(self, runs: int, parallel: int, image: str = "host") -> tuple[list[float], float, float]:
        """Run /bin/true; seconds of each run, of the round, of CPU in launcher, sandboxes and this client."""
        nothing = os.open("/dev/null", os.O_RDWR)
        took: list[float] = []
        cpu = self._cpu()
        begun = time.perf_counter()
        with selectors.DefaultSelector() as selector:
            started = 0
            while len(took) < runs:
                while started < runs and started - len(took) < parallel:
                    run = Run(self.path, nothing, "/bin/true", image=image)
                    selector.register(run.session.fileno(), selectors.EVENT_READ, run)
                    started += 1
                for key, _ in selector.select():
                    selector.unregister(key.fd)
                    took.append(key.data.finish())
        elapsed = time.perf_counter() - begun
        os.close(nothing)
        return took, elapsed, self._cpu() - cpu

    def _cpu(self) -> float:
        return processes.cpu_seconds({self.pid}) + time.process_time()

    def idle_memory(self, count: int) -> tuple[float, float]:
        """Private bytes per sandbox in which a program sleeps: with the launcher's growth; the program's."""
        nothing = os.open("/dev/null", os.O_RDWR)
        idle = {pid: processes.private_bytes(pid) for pid in processes.tree(self.pid)}
        with contextlib.ExitStack() as stack:
            for _ in range(count):
                run = Run(self.path, nothing, "/bin/sleep", "60")
                stack.callback(run.session.close)
            time.sleep(2)
            busy = {pid: processes.private_bytes(pid) for pid in processes.tree(self.pid)}
            names = {pid: (processes.PROC / str(pid) / "comm").read_text().strip() for pid in busy}
        os.close(nothing)
        programs = [size for pid, size in busy.items() if names[pid] == "sleep"]
        if len(programs) != count:
            raise RuntimeError(f"ours: {len(programs)} of {count} sandboxes are running")
        return (sum(busy.values()) - sum(idle.values())) / count, sum(programs) / count


@contextlib.contextmanager
def launcher() -> Iterator[Launcher]:
    """Start a launcher to itself, by the command that `stockade up` uses."""
    home = Path(tempfile.mkdtemp(prefix="stockade-bench-"))
    settings = Settings(state=home, launcher=home / "launcher.sock")
    child = Child("launcher", launcher_command(settings, home, home / "images"), home / "log")
    try:
        child.start()
        child.wait_until(lambda: accepts(settings.launcher), timeout=30)
        assert child.pid is not None
        yield Launcher(child.pid, settings.launcher, home / "images")
    finally:
        child.stop(grace=10)
        shutil.rmtree(home)
