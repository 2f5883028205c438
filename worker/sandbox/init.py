"""What runs inside a sandbox before the job: init (PID 1) and the task that becomes the job (PID 2).

init is made by ``clone3`` in fresh namespaces that real root owns, forks the second task, builds the file system,
and afterwards only reaps orphans and waits. The second task enters the step's cgroup ahead of demand (writing
``cgroup.procs`` now and then takes 15 ms), waits for its orders, gives up every privilege and calls execve.

    launcher, zygote             init (PID 1)                     job (PID 2)
       | clone3 ------------------> |  fork ------------------------> | join cgroups, cgroup namespace
       | build + tmpfs -----------> | mounts, pivot_root              | (waits)
       | run + stdio, files ------> | hostname, files                 |
       |                            | run + stdio ------------------> | rlimits, unshare(NEWUSER)
       |                            | uid_map, gid_map <--- "mapped?" |
       |                            | "go" -------------------------> | ids, capabilities, no_new_privs
       | <----------------------------------------- exec (time, CPU)  | seccomp, execve
       | <-------- exit (status) -- | waitpid                         x
       x <-- pidfd: all are dead -- x

Both write to the launcher on one packet socket. A failure of ours is ``{"s": "failed", ...}``; an execve that
the kernel refuses is ``{"s": "exec_errno", ...}`` and belongs to the job.
"""

from __future__ import annotations

import errno
import fcntl
import functools
import os
import resource
import signal
import socket
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

from worker.sandbox import mounts, plan, wire
from worker.sandbox import syscalls as sc
from worker.sandbox.errors import SandboxError

NAMESPACES = sc.CLONE_NEWNS | sc.CLONE_NEWPID | sc.CLONE_NEWNET | sc.CLONE_NEWIPC | sc.CLONE_NEWUTS
NEW_ROOT, STAGE = "/newroot", "stage"
_SIOCSIFFLAGS, _IFF_UP_RUNNING = 0x8914, 0x41
_FILE_HEADER = struct.Struct("<HIQ")
OOM_SCORE = b"500"


def _device_of_pipes() -> int:
    ends = os.pipe()
    try:
        return os.fstat(ends[0]).st_dev
    finally:
        wire.close_all(ends)


PIPES = _device_of_pipes()
"""``st_dev`` of anonymous pipes; a named FIFO of the host is never touched."""


@dataclass(frozen=True, slots=True)
class Birth:
    """What the two tasks inherit from the zygote: descriptors for one sandbox, and the filters by name."""

    control: int
    join: list[int]
    reset: list[int]
    cpu: int
    cgroup: int
    host_proc: int
    filters: dict[str, bytes]


def main(birth: Birth) -> NoReturn:
    """PID 1, from its first instruction to its last; never returns."""
    status = 70
    control = socket.socket(fileno=birth.control)
    try:
        # Should the launcher die between clone3 and here, the control socket reads end-of-file: nothing is missed.
        sc.prctl(sc.PR_SET_PDEATHSIG, signal.SIGKILL)
        sc.prctl(sc.PR_SET_DUMPABLE, 0)
        to_job, from_init = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        # First of all, while we have written to few pages: what we touch later the job's task never copies.
        pid, _ = sc.clone3(0, cgroup=birth.cgroup)
        if pid == 0:
            to_job.close()
            _job(birth, control, from_init)
        from_init.close()
        wire.close_all({*birth.join, *birth.reset, birth.cpu, birth.cgroup, birth.host_proc} - {-1})
        wire.prepare(to_job)
        sc.set_name("stockade-init")
        os.setsid()
        _loopback_up()
        order, fds = wire.receive(control)
        if order is not None:
            _build(order, *fds)
            packet, fds = wire.receive_packet(control)
            if packet:
                _hand_over(wire.decode(packet), packet, fds, to_job)
                status = _wait(control, to_job, pid)
    except SandboxError as problem:
        _report(control, problem)
    except OSError as problem:
        _report(control, SandboxError("init", problem.errno or 0, str(problem.filename or "")))
    finally:
        os._exit(status)


def _loopback_up() -> None:
    """SIOCSIFFLAGS on ``lo`` of the fresh network namespace (netdevice(7))."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        fcntl.ioctl(sock, _SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", _IFF_UP_RUNNING))


# --- init: the file system -------------------------------------------------------------------------------


def _build(order: dict[str, Any], tmpfs: int, userns: int) -> None:
    """The file system, up to the new root: needs no job yet, only its image, its id range and its tmpfs."""
    base, step = order["base"], order["step"]
    sc.attach(tmpfs, f"/{STAGE}")
    mounts.make_directory(f"/{STAGE}/up-{step}", 0o755, base)
    mounts.make_directory(f"/{STAGE}/ovl-{step}", 0o700)
    mounts.make_directory(f"/{STAGE}/shm-{step}", 0o1777, base)
    if step == 0:
        mounts.make_directory(f"/{STAGE}/work", 0o755, base)
    for number, layer in enumerate(order["layers"]):
        _attach_layer(layer, f"/l/{number}", userns)
    layers = [f"l/{number}" for number in range(len(order["layers"]))]
    hidden = mounts.masks(frozenset(order["proc"]).__contains__)
    mounts.apply(mounts.layout(layers, order["views"], STAGE, step, hidden), NEW_ROOT)
    _enter(NEW_ROOT)
    wire.close_all([tmpfs, userns])


def _hand_over(order: dict[str, Any], packet: bytes, fds: list[int], to_job: socket.socket) -> None:
    """What is particular to this job; then its own task gets the orders and the stdio."""
    sc.sethostname(order["hostname"])
    owner = order["base"] + order["user"]
    if order["step"] == 0 and order["user"]:
        os.chown("/work", owner, owner)
    if len(fds) > 3:
        _write_files(fds[3], owner)
    for fd in fds[:3]:
        # A pipe belongs to whoever made it; the job could not open /dev/stdout.
        if os.fstat(fd).st_dev == PIPES:
            os.fchown(fd, owner, owner)
    wire.send(to_job, packet, tuple(fds[:3]))
    wire.close_all(fds)


def _attach_layer(layer: str, target: str, userns: int) -> None:
    try:
        fd = sc.clone_mount(layer)
        try:
            sc.set_mount_attributes(fd, mounts.READ_ONLY, userns)
            sc.attach(fd, target)
        finally:
            os.close(fd)
    except OSError as problem:
        hint = "the state directory must be on a file system with idmapped mounts (ext4, xfs, btrfs)"
        raise SandboxError("layer", problem.errno or 0, os.path.basename(layer), hint) from problem


def _enter(new_root: str) -> None:
    """pivot_root(2) with the old root stacked under the new one, then detached."""
    try:
        os.chdir(new_root)
        sc.pivot_root(".", ".")
        sc.umount(".")
        os.chdir("/")
    except OSError as problem:
        raise SandboxError("pivot_root", problem.errno or 0) from problem


def _write_files(source: int, owner: int) -> None:
    """Put the request's files into the workspace, before any program of the job has run."""
    work = os.open("/work", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with open(source, "rb", closefd=False) as stream:
            stream.seek(0)
            while header := stream.read(_FILE_HEADER.size):
                length, mode, size = _FILE_HEADER.unpack(header)
                path = stream.read(length).decode("utf-8", "surrogateescape")
                _write_file(work, path, mode & 0o777, stream.read(size), owner)
    except OSError as problem:
        hint = "the files must fit into the step's disk and disk_inodes limits"
        raise SandboxError("files", problem.errno or 0, "/work", hint) from problem
    finally:
        os.close(work)


def _write_file(work: int, path: str, mode: int, content: bytes, owner: int) -> None:
    resolve = sc.RESOLVE_BENEATH | sc.RESOLVE_NO_SYMLINKS
    *parents, _ = path.split("/")
    for depth in range(1, len(parents) + 1):
        directory = "/".join(parents[:depth])
        try:
            os.mkdir(directory, 0o755, dir_fd=work)
        except FileExistsError:
            continue
        os.chown(directory, owner, owner, dir_fd=work, follow_symlinks=False)
    fd = sc.openat2(work, path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, resolve, 0o600)
    try:
        view = memoryview(content)
        while view:
            view = view[os.write(fd, view) :]
        os.fchown(fd, owner, owner)
        os.fchmod(fd, mode)
    finally:
        os.close(fd)


# --- init: the wait --------------------------------------------------------------------------------------


def _wait(control: socket.socket, to_job: socket.socket, job: int) -> int:
    """Map the job's user namespace, then reap until the job itself is gone; its orphans die with us."""
    message, _ = wire.receive(to_job)
    if message is not None:
        base = message["base"]
        for name in ("uid_map", "gid_map"):
            _write(f"/proc/{job}/{name}", f"0 {base} {plan.IDS}".encode())
        wire.send(to_job, {"s": "go"})
    to_job.close()
    # What is left to do needs no privilege; credentials changed, so the death signal is set once more.
    sc.limit_capabilities(frozenset())
    sc.set_capabilities(frozenset())
    sc.prctl(sc.PR_SET_NO_NEW_PRIVS, 1)
    sc.prctl(sc.PR_SET_PDEATHSIG, signal.SIGKILL)
    while True:
        pid, status = os.waitpid(-1, 0)
        if pid == job:
            break
    wire.send(control, {"s": "exit", "t": time.monotonic(), "status": status})
    return 0


def _write(path: str, data: bytes) -> None:
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, data)
        finally:
            os.close(fd)
    except OSError as problem:
        raise SandboxError("userns", problem.errno or 0, path) from problem


def _report(control: socket.socket, problem: SandboxError) -> None:
    message = problem.as_message() | {"s": "failed"}
    try:
        wire.send(control, message)
    except OSError:
        os._exit(71)


# --- the job's task --------------------------------------------------------------------------------------


def _job(birth: Birth, control: socket.socket, from_init: socket.socket) -> NoReturn:
    """PID 2, until execve."""
    try:
        _join(birth)
        order, stdio = wire.receive(from_init)
        if order is None:
            os._exit(0)
        _become(order, stdio, birth, from_init)
        _execute(order, birth, control)
    except SandboxError as problem:
        _report(control, problem)
    except OSError as problem:
        _report(control, SandboxError("job", problem.errno or 0, str(problem.filename or "")))
    finally:
        os._exit(127)


def _join(birth: Birth) -> None:
    for fd in birth.join:
        try:
            os.write(fd, b"0")
        except OSError as problem:
            raise SandboxError("cgroup", problem.errno or 0, "cgroup.procs") from problem
    # After joining, so that the job sees its own cgroup as the root (cgroup_namespaces(7)).
    sc.unshare(sc.CLONE_NEWCGROUP)
    fd = os.open("self/oom_score_adj", os.O_WRONLY | os.O_CLOEXEC, dir_fd=birth.host_proc)
    os.write(fd, OOM_SCORE)
    os.close(fd)
    os.setsid()


def _become(order: dict[str, Any], stdio: list[int], birth: Birth, from_init: socket.socket) -> None:
    """Stdio, limits, then the user namespace, ids and capabilities; each step gives up what the next needs not."""
    for target, fd in enumerate(stdio):
        os.dup2(fd, target)
    wire.close_all(stdio)
    for kind, value in order["rlimits"]:
        _step("rlimit", functools.partial(resource.setrlimit, kind, (value, value)))
    _own_user_namespace(order["base"])
    wire.send(from_init, {"base": order["base"]})
    answer, _ = wire.receive(from_init)
    if answer is None:
        os._exit(127)
    # Written inside the new namespace: nothing in it may make another user namespace, filter or not.
    fd = os.open("sys/user/max_user_namespaces", os.O_WRONLY | os.O_CLOEXEC, dir_fd=birth.host_proc)
    os.write(fd, b"0")
    os.close(fd)
    user = order["user"]
    keep = frozenset(order["capabilities"])
    _step("bounding set", lambda: sc.limit_capabilities(keep))
    _step("setresgid", lambda: os.setresgid(user, user, user))
    _step("setresuid", lambda: os.setresuid(user, user, user))
    if user == 0:
        _step("capset", lambda: sc.set_capabilities(keep))
    sc.prctl(sc.PR_SET_NO_NEW_PRIVS, 1)
    os.umask(0o022)


def _own_user_namespace(base: int) -> None:
    """unshare(CLONE_NEWUSER) as the first id of the range, not as root: the namespace's owner pays for what is
    counted per user on the whole host (inotify instances, pending signals, message queues)."""
    _step("setgroups", lambda: os.setgroups([]))
    _step("setresgid", lambda: os.setresgid(base, base, base))
    sc.prctl(sc.PR_SET_KEEPCAPS, 1)
    _step("setresuid", lambda: os.setresuid(base, base, base))
    # A host may keep user namespaces from those without CAP_SYS_ADMIN (Debian's unprivileged_userns_clone).
    _step("capset", lambda: sc.set_capabilities(frozenset({sc.CAP_SYS_ADMIN})))
    _step("userns", lambda: sc.unshare(sc.CLONE_NEWUSER))


def _step(name: str, call: Callable[[], object]) -> None:
    try:
        call()
    except (OSError, ValueError) as problem:
        raise SandboxError(name, getattr(problem, "errno", 0) or 0, str(problem)) from problem


def _execute(order: dict[str, Any], birth: Birth, control: socket.socket) -> None:
    """The last steps: into the directory, counters to zero, filter on, execve."""
    env = order["env"]
    try:
        _change_directory(order["cwd"])
    except OSError as problem:
        wire.send(control, {"s": "exec_errno", "errno": problem.errno, "subject": order["cwd"]})
        os._exit(127)
    number, candidates = _candidates(order["argv"][0], env.get("PATH", ""))
    argv = [each.encode("utf-8", "surrogateescape") for each in order["argv"]]
    environment = {
        key.encode("utf-8", "surrogateescape"): value.encode("utf-8", "surrogateescape")
        for key, value in env.items()
    }
    for fd in birth.reset:
        os.write(fd, b"0")
    cpu = os.pread(birth.cpu, 1024, 0).decode()
    wire.send(control, {"s": "exec", "t": time.monotonic(), "cpu": cpu})
    sc.install_filter(birth.filters[order["syscalls"]])
    for path in candidates:
        try:
            os.execve(path, argv, environment)
        except OSError as problem:
            number = problem.errno or 0
    wire.send(control, {"s": "exec_errno", "errno": number, "subject": order["argv"][0]})
    os._exit(127)


def _change_directory(path: str) -> None:
    fd = sc.openat2(sc.AT_FDCWD, path, os.O_PATH | os.O_DIRECTORY, sc.RESOLVE_NO_MAGICLINKS)
    os.fchdir(fd)
    os.close(fd)


def _candidates(program: str, path: str) -> tuple[int, list[str]]:
    """Where the program is: as execvp(3) looks, but not through a link of /proc to what only a descriptor
    holds (CVE-2019-5736). Also the errno to tell when none of them can be executed."""
    searched = "/" not in program
    places = [f"{directory or '.'}/{program}" for directory in path.split(":")] if searched else [program]
    number, found = errno.ENOENT, []
    for place in places:
        try:
            os.close(sc.openat2(sc.AT_FDCWD, place, os.O_PATH, sc.RESOLVE_NO_MAGICLINKS))
            found.append(place)
        except OSError as problem:
            if not searched or problem.errno not in (errno.ENOENT, errno.ENOTDIR):
                number = problem.errno or 0
    return number, found
