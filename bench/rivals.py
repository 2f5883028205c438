"""The contenders that are programs: the floor in its variants, and other sandboxes where installed.

All of them are started and timed by floor.c, so none pays for the Python of this benchmark.
"""

import json
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import cgroups

SOURCE = Path(__file__).with_name("floor.c")
MEMORY, CPU_PERIOD, PIDS = 256 << 20, 100_000, 64
ROOT_LINKS = {"bin": "usr/bin", "sbin": "usr/sbin", "lib": "usr/lib", "lib64": "usr/lib64"}
BUBBLEWRAP = (
    "bwrap", "--unshare-all", "--die-with-parent", "--ro-bind", "/usr", "/usr",
    *(word for name, target in ROOT_LINKS.items() for word in ("--symlink", target, f"/{name}")),
    "--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp", "/bin/true",
)  # fmt: skip


@dataclass(frozen=True)
class Program:
    """A contender: a name and what to ask floor.c for."""

    name: str
    mode: str
    words: tuple[str, ...] = ()
    within: tuple[str, ...] = ()

    def round(self, floor: Path, runs: int, parallel: int) -> tuple[list[float], float, float]:
        """Run it; seconds of each run, of the round, of CPU."""
        command = [*self.within, str(floor), self.mode, str(runs), str(parallel), *self.words]
        done = subprocess.run(command, text=True, capture_output=True, check=False, timeout=600)
        if done.returncode:
            raise RuntimeError(f"{self.name}: {done.stderr.strip()[-500:]}")
        elapsed, cpu, *took = done.stdout.split()
        return [int(value) / 1e9 for value in took], float(elapsed), float(cpu)


def compiled(directory: Path) -> Path:
    """floor.c, compiled into a directory."""
    if not shutil.which("gcc"):
        raise RuntimeError("the floor is compiled on the spot: apt-get install gcc libc6-dev")
    target = directory / "floor"
    subprocess.run(["gcc", "-O2", "-Wall", "-o", target, SOURCE], check=True)
    return target


def programs(directory: Path, leaves: Sequence[str]) -> tuple[list[Program], list[str]]:
    """The contenders that are here, and a line about each that is not."""
    found = [
        Program("fork + exec", "plain"),
        Program("floor, C", "sandbox"),
        Program("floor, C, with cgroups", "limited", tuple(leaves)),
    ]
    absent = []
    rivals = {
        "bwrap": ("bubblewrap", "bubblewrap (no cgroups)"),
        "crun": ("crun", "crun"),
        "runc": ("runc", "runc"),
    }
    for command, (package, name) in rivals.items():
        if not shutil.which(command):
            absent.append(f"{package}: not installed: apt-get install {package}")
        elif command == "bwrap":
            found.append(Program(name, "command", BUBBLEWRAP))
        else:
            words = (command, "--root", str(directory / f"{command}-state"), "run",
                     "--bundle", str(bundle(directory, command)), "bench-%")  # fmt: skip
            found.append(Program(name, "command", words, without_hybrid()))
    return found, absent


def without_hybrid() -> tuple[str, ...]:
    """A command prefix that hides the v2 hierarchy of a hybrid host: crun refuses to run beside it."""
    mounted = cgroups.mounts()
    if "v2" not in mounted or "memory" not in mounted:
        return ()
    return ("unshare", "--mount", "sh", "-c", f'umount -l {mounted["v2"]} && exec "$@"', "sh")


def bundle(directory: Path, command: str) -> Path:
    """An OCI bundle of /bin/true over a read-only /usr with the limits that ours has."""
    home = directory / f"{command}-bundle"
    root = home / "rootfs"
    for name in ("usr", "proc", "dev", "tmp"):
        (root / name).mkdir(parents=True)
    for name, target in ROOT_LINKS.items():
        (root / name).symlink_to(target)
    for path in (directory, home, root):
        path.chmod(0o755)
    (home / "config.json").write_text(json.dumps(oci_config(), indent=1))
    return home


def oci_config() -> dict[str, Any]:
    """The runtime specification's config.json; a cgroup path is left to the runtime."""
    nothing = ["nosuid", "noexec", "nodev"]
    ids = [{"containerID": 0, "hostID": 200_000, "size": 65_536}]
    return {
        "ociVersion": "1.0.2",
        "process": {
            "terminal": False,
            "user": {"uid": 0, "gid": 0},
            "args": ["/bin/true"],
            "env": ["PATH=/usr/bin:/bin"],
            "cwd": "/",
            "noNewPrivileges": True,
            "capabilities": {"bounding": [], "effective": [], "permitted": []},
        },
        "root": {"path": "rootfs", "readonly": True},
        "hostname": "bench",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc", "options": nothing},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "size=64k"]},
            {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "size=64m"]},
            {"destination": "/usr", "type": "bind", "source": "/usr", "options": ["rbind", "ro"]},
        ],
        "linux": {
            "namespaces": [
                {"type": kind} for kind in ("pid", "network", "ipc", "uts", "mount", "cgroup", "user")
            ],
            "uidMappings": ids,
            "gidMappings": ids,
            "resources": {
                "memory": {"limit": MEMORY},
                "cpu": {"quota": CPU_PERIOD, "period": CPU_PERIOD},
                "pids": {"limit": PIDS},
            },
        },
    }
