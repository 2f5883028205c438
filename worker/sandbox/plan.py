"""What a peer may ask of the launcher: one fixed schema, checked against the host's own ceilings.

The peer has already checked the tenant's policy; the launcher trusts neither and holds the request to what
this *host* allows, whoever asks.
"""

from __future__ import annotations

import math
import os
import re
import resource
from dataclasses import dataclass, fields
from typing import Any

from worker.sandbox.errors import SandboxError
from worker.sandbox.init import GRANTABLE, IDS
from worker.sandbox.syscalls import CAPABILITIES

_HOSTNAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,62})")


@dataclass(frozen=True, slots=True)
class StepLimits:
    """The caps of one step: bytes, seconds, counts."""

    cpus: float
    memory: int
    pids: int
    cpu_time: float
    wall_time: float
    disk: int
    disk_inodes: int
    open_files: int
    file_size: int
    stack: int


@dataclass(frozen=True, slots=True)
class Ceilings:
    """What this host gives to one step at the most; ``floor`` is the least that can work."""

    cpus: float = 256.0
    memory: int = 1 << 40
    pids: int = 32768
    cpu_time: float = 7 * 86400.0
    wall_time: float = 7 * 86400.0
    disk: int = 1 << 40
    disk_inodes: int = 1 << 24
    open_files: int = 1 << 20
    file_size: int = 1 << 40
    stack: int = 1 << 40
    arguments: int = 256 * 1024
    capabilities: frozenset[str] = frozenset(CAPABILITIES[number] for number in GRANTABLE)


FLOORS = {
    "cpus": 0.01,
    "memory": 4 << 20,
    "pids": 1,
    "cpu_time": 0.01,
    "wall_time": 0.01,
    "disk": 64 << 10,
    "disk_inodes": 16,
    "open_files": 8,
    "file_size": 0,
    "stack": 64 << 10,
}


@dataclass(frozen=True, slots=True)
class Plan:
    """One checked step. ``user`` and ``group`` are ids inside the sandbox; ``keep``: another step follows."""

    image: str
    argv: tuple[str, ...]
    env: dict[str, str]
    cwd: str
    user: int
    group: int
    hostname: str
    syscalls: str
    capabilities: tuple[str, ...]
    limits: StepLimits
    keep: bool = False


def _refuse(subject: str, hint: str) -> SandboxError:
    return SandboxError("plan", subject=subject, hint=hint)


def text(message: dict[str, Any], key: str) -> str:
    """A field that must be a string without NUL."""
    value = message.get(key)
    if not isinstance(value, str) or "\0" in value:
        raise _refuse(key, "must be a string without NUL")
    return value


def _limits(value: object, ceilings: Ceilings) -> StepLimits:
    names = [each.name for each in fields(StepLimits)]
    if not isinstance(value, dict) or value.keys() != set(names):
        raise _refuse("limits", "must have exactly the fields " + ", ".join(names))
    for name in names:
        got, ceiling, floor = value[name], getattr(ceilings, name), FLOORS[name]
        kinds = (int, float) if isinstance(ceiling, float) else (int,)
        if isinstance(got, bool) or not isinstance(got, kinds) or not math.isfinite(got):
            raise _refuse(f"limits.{name}", f"must be a finite number, got {got!r}")
        if not floor <= got <= ceiling:
            raise _refuse(f"limits.{name}", f"{got} is outside of this host's {floor} to {ceiling}")
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if hard != resource.RLIM_INFINITY and value["open_files"] > hard:
        raise _refuse("limits.open_files", f"{value['open_files']} is over the launcher's own limit {hard}")
    return StepLimits(**value)


def _strings(message: dict[str, Any]) -> tuple[tuple[str, ...], dict[str, str]]:
    argv, env = message.get("argv"), message.get("env")
    if not isinstance(argv, list) or not argv or not all(isinstance(each, str) for each in argv):
        raise _refuse("argv", "must be a non-empty list of strings")
    if not isinstance(env, dict) or not all(
        isinstance(value, str) and key and "=" not in key for key, value in env.items()
    ):
        raise _refuse("env", "must map names without '=' to strings")
    if not argv[0] or any("\0" in each for each in (*argv, *env, *env.values())):
        raise _refuse("argv", "must not be empty or contain NUL")
    return tuple(argv), env


def parse(message: dict[str, Any], ceilings: Ceilings, profiles: object, images: object) -> Plan:
    """The plan in a ``run`` message; ``SandboxError`` names the field that is wrong.

    profiles, images: containers of the names that exist on this host.
    """
    argv, env = _strings(message)
    try:
        size = sum(len(each.encode("utf-8", "surrogateescape")) + 1 for each in (*argv, *env, *env.values()))
    except UnicodeEncodeError:
        raise _refuse("argv", "argv and env must be text, or bytes as surrogateescape gives them") from None
    if size > ceilings.arguments:
        raise _refuse("argv", f"argv and env take {size} bytes, at most {ceilings.arguments} are allowed")
    cwd = text(message, "cwd")
    if not cwd.startswith("/") or os.path.normpath(cwd) != cwd or cwd.startswith("/proc"):
        raise _refuse("cwd", "must be a normalised absolute path outside of /proc")
    program = os.path.normpath(argv[0]) if argv[0].startswith("/") else argv[0]
    if program.startswith("/proc/"):
        raise _refuse("argv[0]", "a program below /proc is not run")
    user = _id(message, "user")
    hostname = text(message, "hostname")
    if not _HOSTNAME.fullmatch(hostname):
        raise _refuse("hostname", "must be 1 to 63 of a-z, 0-9 and -")
    capabilities = message.get("capabilities")
    if not isinstance(capabilities, list) or not set(map(str, capabilities)) <= ceilings.capabilities:
        raise _refuse("capabilities", "must be among " + ", ".join(sorted(ceilings.capabilities)))
    return Plan(
        image=_member(message, "image", images),
        argv=argv,
        env=env,
        cwd=cwd,
        user=user,
        group=_id(message, "group") if "group" in message else user,
        hostname=hostname,
        syscalls=_member(message, "syscalls", profiles),
        capabilities=tuple(capabilities),
        limits=_limits(message.get("limits"), ceilings),
        keep=message.get("keep") is True,
    )


def _id(message: dict[str, Any], key: str) -> int:
    value = message.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < IDS:
        raise _refuse(key, f"must be an id from 0 to {IDS - 1}")
    return value


def _member(message: dict[str, Any], key: str, known: Any) -> str:
    value = text(message, key)
    if value not in known:
        raise _refuse(key, f"{value!r} is not on this host, there is " + ", ".join(sorted(known)))
    return value


def capability_numbers(names: tuple[str, ...]) -> frozenset[int]:
    """Capability names as the kernel's numbers."""
    return frozenset(CAPABILITIES.index(name) for name in names)


def rlimits(limits: StepLimits) -> list[tuple[int, int]]:
    """setrlimit(2): hard = soft, so that a job can't raise one."""
    return [
        (resource.RLIMIT_NOFILE, limits.open_files),
        (resource.RLIMIT_FSIZE, limits.file_size),
        (resource.RLIMIT_STACK, limits.stack),
        # Not 0: only 1 keeps the kernel from starting the helper of a piped core_pattern, as root and outside of
        # every limit (fs/coredump.c). The syscall profiles keep a job from lowering it.
        (resource.RLIMIT_CORE, 1),
        (resource.RLIMIT_MEMLOCK, 64 << 10),
        (resource.RLIMIT_MSGQUEUE, 64 << 10),
        (resource.RLIMIT_SIGPENDING, 1024),
        (resource.RLIMIT_RTPRIO, 0),
        (resource.RLIMIT_NICE, 0),
    ]
