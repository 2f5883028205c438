"""One sandbox as the launcher sees it: made ahead of demand, used for one step, thrown away.

The cgroup, the namespaces and both tasks of `init` are there before a job is; ``start`` gives them their orders.
A sandbox is never used twice.
"""

from __future__ import annotations

import contextlib
import os
import platform
import signal
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from worker.sandbox import packets
from worker.sandbox import syscalls as sc
from worker.sandbox.cgroups import Driver
from worker.sandbox.errors import SandboxError
from worker.sandbox.host import IdRange
from worker.sandbox.init import GRANTABLE, IDS
from worker.sandbox.janitor import Janitor
from worker.sandbox.layout import STAGE, Operation, layout, orders
from worker.sandbox.plan import Plan, capability_numbers, rlimits
from worker.sandbox.rootfs import Rootfs
from worker.sandbox.seccomp import Program
from worker.sandbox.workspace import Workspace
from worker.sandbox.zygote import Zygote

SETUP_SECONDS = 30.0
STUCK_SECONDS = 5.0
"""How long killed processes may take to be gone before the slot is given up (uninterruptible sleep)."""

KERNEL = platform.release()
_MIN_CPU_CHECK = 0.005
_OOM_SECONDS, _OOM_CHECK = 0.5, 0.002


@dataclass(frozen=True, slots=True)
class Host:
    """What all sandboxes of one launcher share."""

    driver: Driver
    programs: Mapping[str, Program]
    zygote: Zygote
    janitor: Janitor
    host_proc: int
    hidden: tuple[Operation, ...]
    usual: str | None
    """The image whose first step's operations the zygote knows."""
    slowdown: float = 1.0


@dataclass(frozen=True, slots=True)
class Room:
    """What a sandbox's file system is built from; it belongs to one job and may serve its steps in turn."""

    image: str
    rootfs: Rootfs
    workspace: Workspace
    ids: IdRange


@dataclass(slots=True)
class Facts:
    """What has been seen of the job: times of CLOCK_MONOTONIC, the wait status, why it was killed."""

    begun: float | None = None
    ended: float | None = None
    status: int | None = None
    exec_errno: int | None = None
    exec_call: str | None = None
    killed: str | None = None
    failed: dict[str, Any] | None = None
    cpu: float = 0.0


def operations(rootfs: Rootfs, step: int, hidden: Iterable[Operation]) -> list[tuple[object, ...]]:
    """The mounts of one step of an image, as init takes them."""
    return orders(layout(rootfs.lowers, rootfs.views, step, hidden))


class Sandbox:
    """Namespaces, cgroup and the two tasks; ``pidfd`` and ``control`` belong in the launcher's poll set."""

    def __init__(self, host: Host, name: str) -> None:
        """Make the cgroup and ask the zygote for the rest; it is there when ``born`` was called."""
        self._host, self.name, self.facts = host, name, Facts()
        self.leaf = host.driver.create(name)
        self.plan: Plan | None = None
        self.room: Room | None = None
        self.pidfd = -1
        self.deadline = self.next_cpu_check = float("inf")
        self.kill_sent: float | None = None
        self._oom_check = self._oom_until = float("inf")
        self.control, theirs = packets.pair()
        self.control.setblocking(False)
        host.zygote.ask(self.leaf, theirs)
        theirs.close()

    def born(self) -> None:
        """Take the zygote's answer; ``SandboxError`` when the namespaces could not be made."""
        try:
            self.pidfd = self._host.zygote.answer()
        except OSError as problem:
            self.close()
            raise SandboxError("clone3", problem.errno or 0, "namespaces") from problem

    # --- orders

    def build(self, room: Room, step: int) -> None:
        """Have init build the file system; it may be done before there is a job."""
        self.room = room
        base = room.ids.base
        known = step == 0 and room.image == self._host.usual
        directories = [
            (f"{STAGE}/up-{step}", 0o755, base),
            (f"{STAGE}/ovl-{step}", 0o700, 0),
            (f"{STAGE}/shm-{step}", 0o1777, base),
        ]
        if step == 0:
            directories.append((f"{STAGE}/work", 0o755, base))
        order = {
            "base": base,
            "stage": STAGE,
            "directories": directories,
            "layers": room.rootfs.mounts,
            "operations": None if known else operations(room.rootfs, step, self._host.hidden),
        }
        mount = room.workspace.mount()
        try:
            self._send(order, (mount, room.ids.userns))
        finally:
            os.close(mount)

    def start(self, plan: Plan, step: int, caps: dict[str, str | None], fds: list[int]) -> None:
        """Write the limits and send the orders; fds: stdin, stdout, stderr and perhaps the files."""
        assert self.room is not None
        self.plan = plan
        self.leaf.set_limits(plan.limits)
        kept = capability_numbers(plan.capabilities)
        order = {
            "argv": [_bytes(each) for each in plan.argv],
            "env": {_bytes(key): _bytes(value) for key, value in plan.env.items()},
            "cwd": plan.cwd,
            "user": plan.user,
            "group": plan.group,
            "hostname": plan.hostname,
            "syscalls": plan.syscalls,
            "dropped": tuple(GRANTABLE - kept),
            "kept": sc.capability_sets(kept),
            "rlimits": rlimits(plan.limits),
            "base": self.room.ids.base,
            "step": step,
            "caps": caps,
        }
        self._send(order, tuple(fds))
        self.deadline = time.monotonic() + SETUP_SECONDS * self._host.slowdown

    def _send(self, order: dict[str, Any], fds: tuple[int, ...]) -> None:
        try:
            packets.send(self.control, order, fds)
        except OSError as problem:
            raise SandboxError("order", problem.errno or 0, "init is gone") from problem

    def kill(self, reason: str | None) -> None:
        """SIGKILL to init: the kernel refuses further forks in its PID namespace and kills all in it."""
        if self.kill_sent is not None:
            return
        self.facts.killed = self.facts.killed or reason
        self.kill_sent = time.monotonic()
        self.deadline = self.kill_sent + STUCK_SECONDS * self._host.slowdown
        self.next_cpu_check = self._oom_check = float("inf")
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
        with contextlib.suppress(SandboxError):
            self.leaf.lift_quota()

    # --- events

    def read_control(self) -> None:
        """Take in what the two tasks have written."""
        while True:
            try:
                message, fds = packets.receive(self.control)
            except (BlockingIOError, ConnectionResetError):
                return
            packets.close_all(fds)
            if message is None:
                return
            self._note(message)

    def _note(self, message: dict[str, Any]) -> None:
        facts = self.facts
        match message["s"]:
            case "exec":
                assert self.plan is not None
                facts.begun = message["t"]
                self.leaf.set_baseline(message["cpu"])
                if self.kill_sent is None:
                    limits = self.plan.limits
                    self.deadline = message["t"] + limits.wall_time
                    self.next_cpu_check = message["t"] + limits.cpu_time / min(
                        limits.cpus, os.cpu_count() or 1
                    )
            case "exec_errno":
                facts.exec_errno, facts.exec_call = message["errno"], message["call"]
            case "exit":
                facts.ended, facts.status = message["t"], message["status"]
            case "failed":
                message.pop("s")
                # After our kill the two tasks may still trip over each other's end.
                facts.failed = facts.failed or (message if self.kill_sent is None else None)

    def read_oom(self) -> None:
        """v1: one process is about to be killed at the memory limit; the step dies as a whole, as on v2.

        The event comes before the kill: `tick` looks for the kill, which is the evidence, for a moment.
        """
        os.eventfd_read(self.leaf.oom)
        if self._oom_check == float("inf") and self.kill_sent is None:
            self._oom_check = time.monotonic()
            self._oom_until = self._oom_check + _OOM_SECONDS

    def tick(self, now: float) -> bool:
        """Enforce what time enforces; True when the sandbox is stuck and given up."""
        if self.kill_sent is not None:
            return now >= self.deadline
        if now >= self._oom_check:
            if self.leaf.oom_kills() or now >= self._oom_until:
                self.kill("memory")
                return False
            self._oom_check = now + _OOM_CHECK
        if now >= self.deadline:
            if self.facts.begun is None:
                self.facts.failed = SandboxError("setup", 0, f"not ready in {SETUP_SECONDS} s").as_message()
            self.kill("wall_time" if self.facts.begun is not None else None)
        elif now >= self.next_cpu_check and self.plan is not None:
            limits = self.plan.limits
            left = limits.cpu_time - self.leaf.cpu_time()
            if left <= 0:
                self.kill("cpu_time")
            else:
                wait = left / min(limits.cpus, os.cpu_count() or 1)
                self.next_cpu_check = now + max(_MIN_CPU_CHECK, wait)
        return False

    @property
    def wake(self) -> float:
        """When ``tick`` is due."""
        return min(self.deadline, self.next_cpu_check, self._oom_check)

    # --- the end

    def reap(self) -> None:
        """init is dead and with it every process of the sandbox."""
        self.read_control()
        os.waitid(os.P_PIDFD, self.pidfd, os.WEXITED)

    def result(self, stuck: bool) -> dict[str, Any]:
        """The ``ended`` message, or ``failed`` where it was us."""
        facts, plan, room = self.facts, self.plan, self.room
        assert plan is not None and room is not None
        if facts.failed:
            return facts.failed
        if facts.status is None and facts.killed is None:
            return SandboxError("init", 0, "died while it had a job").as_message()
        usage = self.leaf.usage()
        ended = facts.ended or time.monotonic()
        disk, inodes, free, free_inodes = room.workspace.used()
        usage |= {
            "wall_time": ended - facts.begun if facts.begun is not None else 0.0,
            "disk": disk,
            "disk_inodes": inodes,
        }
        evidence = self._evidence(usage, free, free_inodes)
        exited = facts.status is not None and facts.exec_errno is None
        status = facts.status or 0
        return {
            "op": "ended",
            "exit_code": os.WEXITSTATUS(status) if exited and os.WIFEXITED(status) else None,
            "signal": os.WTERMSIG(status) if exited and os.WIFSIGNALED(status) else None,
            "exec_errno": facts.exec_errno,
            "exec_call": facts.exec_call,
            "killed": facts.killed,
            "usage": usage,
            "evidence": evidence,
            "isolation": self._isolation(plan, room),
            "teardown": "stuck" if stuck else "clean",
        }

    def _evidence(self, usage: dict[str, Any], free: int, free_inodes: int) -> list[dict[str, Any]]:
        """Every limit that the job met, with what the kernel counted; also sets ``killed`` where only the final
        figures show that a limit was passed."""
        assert self.plan is not None
        limits, driver, facts = self.plan.limits, self._host.driver, self.facts
        found: list[dict[str, Any]] = []

        def add(limit: str, observed: float, where: str) -> None:
            found.append(
                {"limit": limit, "value": getattr(limits, limit), "observed": observed, "where": where}
            )

        kills = self.leaf.oom_kills()
        if kills:
            facts.killed = facts.killed or "memory"
            add("memory", kills, driver.oom_source)
        elif facts.killed == "memory":
            add("memory", usage["memory"], "memory.max_usage_in_bytes")
        if usage["cpu_time"] >= limits.cpu_time:
            facts.killed = facts.killed or "cpu_time"
            add("cpu_time", usage["cpu_time"], driver.cpu_source)
        if usage["wall_time"] >= limits.wall_time:
            facts.killed = facts.killed or "wall_time"
            add("wall_time", usage["wall_time"], "CLOCK_MONOTONIC")
        if usage["pids_refused"]:
            add("pids", usage["pids_refused"], driver.pids_source)
        if free < os.sysconf("SC_PAGE_SIZE"):
            add("disk", usage["disk"], "statfs f_blocks - f_bfree")
        if free_inodes == 0:
            add("disk_inodes", usage["disk_inodes"], "statfs f_files - f_ffree")
        return found

    def _isolation(self, plan: Plan, room: Room) -> dict[str, Any]:
        """What was applied to this step."""
        return {
            "cgroup": self._host.driver.version,
            "namespaces": ["mount", "pid", "net", "ipc", "uts", "cgroup", "user"],
            "user_namespace": {"base": room.ids.base, "size": IDS},
            "seccomp": {"profile": plan.syscalls, "sha256": self._host.programs[plan.syscalls].sha256},
            "capabilities": list(plan.capabilities),
            "no_new_privs": True,
            "image": plan.image,
            "image_note": room.rootfs.note or None,
            "kernel": KERNEL,
        }

    def close(self) -> None:
        """Give everything back; the cgroup goes when nothing is in it any more."""
        if self.pidfd >= 0:
            os.close(self.pidfd)
        self.control.close()
        self.leaf.close()
        self._host.janitor.remove(self.name)


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")
