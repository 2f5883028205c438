"""What runs inside a sandbox before the job: init (PID 1) and the task that becomes the job (PID 2).

init is made by ``clone3`` in fresh namespaces that real root owns, forks the second task, builds the file system,
and afterwards only reaps orphans and waits. The second task enters the step's cgroup ahead of demand (writing
``cgroup.procs`` now and then takes 15 ms), waits for its orders, gives up every privilege and calls execve.

    launcher, zygote             init (PID 1)                     job (PID 2)
       | clone3 ------------------> |  fork ------------------------> | join cgroups, cgroup namespace
       | build + tmpfs -----------> | mounts, pivot_root              | (waits)
       |                            | first id ---------------------> | unshare(NEWUSER)
       |                            | uid_map, gid_map <------- "map" |
       |                            | "go" -------------------------> | no_new_privs, (waits)
       | run + stdio, files ------> | hostname, files                 |
       |                            | run + stdio ------------------> | ids, capabilities, rlimits
       | <----------------------------------------- exec (time, CPU)  | seccomp, execve
       | <-------- exit (status) -- | waitpid                         x
       x <-- pidfd: all are dead -- x

Both write to the launcher on one packet socket. A failure of ours is ``{"s": "failed", ...}``; an execve that
the kernel refuses is ``{"s": "exec_errno", ...}`` and belongs to the job.
"""

from __future__ import annotations

import _socket
import errno
import fcntl
import os
import resource
import struct
import time

from worker.sandbox import mounts, packets
from worker.sandbox import syscalls as sc
from worker.sandbox.errors import SandboxError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NoReturn

NAMESPACES = sc.CLONE_NEWNS | sc.CLONE_NEWPID | sc.CLONE_NEWNET | sc.CLONE_NEWIPC | sc.CLONE_NEWUTS
IDS = 65536
"""Size of a sandbox's id range."""

ALL_CAPABILITIES = frozenset(range(sc.CAP_LAST + 1))
_NO_CAPABILITY = sc.capability_sets(frozenset())
_ONLY_SYS_ADMIN = sc.capability_sets(frozenset({sc.CAP_SYS_ADMIN}))
GRANTABLE = frozenset(
    sc.CAPABILITIES.index(name)
    for name in "CHOWN DAC_OVERRIDE FOWNER FSETID KILL SETGID SETUID NET_BIND_SERVICE SYS_PTRACE SETFCAP".split()
)
"""Capabilities that a job may be given, in its own user namespace; whatever a policy says, no other."""
_NEVER_GRANTED = tuple(ALL_CAPABILITIES - GRANTABLE)

_SIGKILL = 9
_NEW_ROOT = "/newroot"
_SIOCSIFFLAGS, _IFF_UP_RUNNING = 0x8914, 0x41
_LOOPBACK_UP = struct.pack("16sH14x", b"lo", _IFF_UP_RUNNING)
_FILE_HEADER = struct.Struct("<HIQ")
_OOM_SCORE = b"500"
_LAYER = sc.MOUNT_ATTR_RDONLY | sc.MOUNT_ATTR_NOSUID | sc.MOUNT_ATTR_NODEV


def _device_of_pipes() -> int:
    ends = os.pipe()
    try:
        return os.fstat(ends[0]).st_dev
    finally:
        packets.close_all(ends)


_PIPES = _device_of_pipes()  # st_dev of anonymous pipes; a named FIFO of the host is never touched


class Common:
    """What the zygote was given once for all sandboxes: the filters by name, the mounts of the usual image."""

    def __init__(self, filters: dict[str, bytes], usual: list[tuple[Any, ...]]) -> None:
        self.filters = {name: sc.Filter(bpf) for name, bpf in filters.items()}
        self.usual = usual


class Birth:
    """What the two tasks inherit from the zygote: descriptors for one sandbox, and what is common to all.

    Made before the first of them is: what the zygote writes to it pays for once, what they write both copy.
    """

    def __init__(
        self, head: dict[str, int], fds: list[int], host_proc: int, common: Common, zygote: int
    ) -> None:
        self.to_job, self.from_init = packets.pair()
        joins, resets = head["join"], head["reset"]
        self.control = _socket.socket(fileno=fds[0])
        self.cpu = fds[1]
        self.join, self.reset = fds[2 : 2 + joins], fds[2 + joins : 2 + joins + resets]
        self.cgroup = fds[-1] if len(fds) > 2 + joins + resets else -1
        self.host_proc, self.common, self.zygote = host_proc, common, zygote
        self.leaf = fds[1:]

    def close(self) -> None:
        """The zygote's copies of what is the sandbox's alone."""
        self.control.close()
        self.to_job.close()
        self.from_init.close()
        packets.close_all(self.leaf)


def main(birth: Birth) -> NoReturn:
    """PID 1, from its first instruction to its last; never returns."""
    status, control, to_job = 70, birth.control, birth.to_job
    try:
        # First of all: every page that we have written to by then is copied once more.
        pid, _ = sc.clone3(0, cgroup=birth.cgroup)
        if pid == 0:
            _job(birth)
        # Should the launcher die between clone3 and here, the control socket reads end-of-file.
        sc.prctl(sc.PR_SET_PDEATHSIG, _SIGKILL)
        os.close(birth.zygote)
        birth.from_init.close()
        packets.close_all(birth.leaf)
        os.close(birth.host_proc)
        sc.set_name("stockade-init")
        _loopback_up()
        order, fds = packets.receive(control)
        if order is not None:
            tmpfs, userns = fds
            _build(order, birth.common.usual, tmpfs, userns)
            _map_ids(to_job, pid, order["base"])
            packet, fds = packets.receive_packet(control)
            if packet:
                _hand_over(packet, fds, tmpfs, to_job)
                to_job.close()
                status = _wait(control, pid)
    except SandboxError as problem:
        _report(control, problem)
    except OSError as problem:
        _report(control, SandboxError("init", problem.errno or 0, str(problem.filename or "")))
    finally:
        os._exit(status)


def _loopback_up() -> None:
    """SIOCSIFFLAGS on ``lo`` of the fresh network namespace (netdevice(7))."""
    sock = _socket.socket(_socket.AF_INET, _socket.SOCK_DGRAM)
    fcntl.ioctl(sock, _SIOCSIFFLAGS, _LOOPBACK_UP)
    sock.close()


# --- init: the file system -------------------------------------------------------------------------------


def _build(order: dict[str, Any], usual: list[tuple[Any, ...]], tmpfs: int, userns: int) -> None:
    """The file system, up to the new root: needs no job yet, only its image, its id range and its tmpfs.

    Where the order brings no operations they are the ``usual`` ones.
    """
    sc.attach(tmpfs, order["stage"])
    for path, mode, owner in order["directories"]:
        os.mkdir(path, mode)
        os.chown(path, owner, owner)
    for number, layer in enumerate(order["layers"]):
        _attach_layer(layer, f"/l/{number}", userns)
    operations = order["operations"]
    mounts.apply(usual if operations is None else operations, _NEW_ROOT)
    _enter(_NEW_ROOT)
    os.close(userns)


def _hand_over(packet: bytes, fds: list[int], tmpfs: int, to_job: _socket.socket) -> None:
    """What is particular to this job; then its own task gets the orders and the stdio."""
    order = packets.loads(packet)
    _step("disk", sc.reconfigure, tmpfs, order["caps"])
    os.close(tmpfs)
    sc.sethostname(order["hostname"])
    owner, group = order["base"] + order["user"], order["base"] + order["group"]
    if order["step"] == 0 and order["user"]:
        os.chown("/work", owner, group)
    if len(fds) > 3:
        _write_files(fds[3], owner, group)
    for fd in fds[:3]:
        # A pipe belongs to whoever made it; the job could not open /dev/stdout.
        if os.fstat(fd).st_dev == _PIPES:
            os.fchown(fd, owner, group)
    packets.send(to_job, packet, fds[:3])
    packets.close_all(fds)


def _attach_layer(layer: str, target: str, userns: int) -> None:
    try:
        fd = sc.clone_mount(layer)
        try:
            sc.set_mount_attributes(fd, _LAYER, userns)
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


def _write_files(source: int, owner: int, group: int) -> None:
    """Put the request's files into the workspace, before any program of the job has run."""
    work = os.open("/work", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with open(source, "rb", closefd=False) as stream:
            stream.seek(0)
            while header := stream.read(_FILE_HEADER.size):
                length, mode, size = _FILE_HEADER.unpack(header)
                path = stream.read(length).decode("utf-8", "surrogateescape")
                if not {"", ".", ".."}.isdisjoint(path.split("/")):
                    shown = path.encode("utf-8", "backslashreplace").decode()[:200]
                    raise SandboxError("files", errno.EINVAL, shown, "paths are relative and normalised")
                _write_file(work, path, mode & 0o777, stream.read(size), (owner, group))
    except OSError as problem:
        hint = "the files must fit into the step's disk and disk_inodes limits"
        raise SandboxError("files", problem.errno or 0, "/work", hint) from problem
    finally:
        os.close(work)


def _write_file(work: int, path: str, mode: int, content: bytes, owner: tuple[int, int]) -> None:
    resolve = sc.RESOLVE_BENEATH | sc.RESOLVE_NO_SYMLINKS
    *parents, _ = path.split("/")
    for depth in range(1, len(parents) + 1):
        directory = "/".join(parents[:depth])
        try:
            os.mkdir(directory, 0o755, dir_fd=work)
        except FileExistsError:
            continue
        os.chown(directory, *owner, dir_fd=work, follow_symlinks=False)
    fd = sc.openat2(work, path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, resolve, 0o600)
    try:
        view = memoryview(content)
        while view:
            view = view[os.write(fd, view) :]
        os.fchown(fd, *owner)
        os.fchmod(fd, mode)
    finally:
        os.close(fd)


# --- init: the wait --------------------------------------------------------------------------------------


def _map_ids(to_job: _socket.socket, job: int, base: int) -> None:
    """Have the job's task make its user namespace, and write its maps: only we may (user_namespaces(7))."""
    packets.send(to_job, base)
    if packets.receive(to_job)[0] is None:
        return
    for name in ("uid_map", "gid_map"):
        _write(f"/proc/{job}/{name}", f"0 {base} {IDS}".encode())
    packets.send(to_job, "go")


def _wait(control: _socket.socket, job: int) -> int:
    """Reap until the job itself is gone; its orphans die with us."""
    # What is left to do needs no privilege; credentials changed, so the death signal is set once more.
    sc.set_capabilities(_NO_CAPABILITY)
    sc.prctl(sc.PR_SET_NO_NEW_PRIVS, 1)
    sc.prctl(sc.PR_SET_PDEATHSIG, _SIGKILL)
    while True:
        pid, status = os.waitpid(-1, 0)
        if pid == job:
            break
    packets.send(control, {"s": "exit", "t": time.monotonic(), "status": status})
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


def _report(control: _socket.socket, problem: SandboxError) -> None:
    message = problem.as_message() | {"s": "failed"}
    try:
        packets.send(control, message)
    except OSError:
        os._exit(71)


# --- the job's task --------------------------------------------------------------------------------------


def _job(birth: Birth) -> NoReturn:
    """PID 2, until execve."""
    from_init = birth.from_init
    try:
        os.close(birth.zygote)
        birth.to_job.close()
        _join(birth)
        base, _ = packets.receive(from_init)
        if base is not None:
            _own_user_namespace(base, birth, from_init)
            _rehearse(birth)
            order, stdio = packets.receive(from_init)
            if order is not None:
                _become(order, stdio)
                _execute(order, birth)
    except SandboxError as problem:
        _report(birth.control, problem)
    except OSError as problem:
        _report(birth.control, SandboxError("job", problem.errno or 0, str(problem.filename or "")))
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
    os.write(fd, _OOM_SCORE)
    os.close(fd)
    os.setsid()


def _become(order: dict[str, Any], stdio: list[int]) -> None:
    """Stdio, ids and capabilities as this job has them."""
    for target, fd in enumerate(stdio):
        os.dup2(fd, target)
    packets.close_all(stdio)
    user, group = order["user"], order["group"]
    _step("bounding set", sc.drop_from_bounding_set, order["dropped"])
    _step("setresgid", os.setresgid, group, group, group)
    _step("setresuid", os.setresuid, user, user, user)
    if user == 0:
        _step("capset", sc.set_capabilities, order["kept"])


def _own_user_namespace(base: int, birth: Birth, from_init: _socket.socket) -> None:
    """unshare(CLONE_NEWUSER) as the first id of the range, not as root: the namespace's owner pays for what is
    counted per user on the whole host (inotify instances, pending signals, message queues)."""
    _step("setgroups", os.setgroups, [])
    _step("setresgid", os.setresgid, base, base, base)
    sc.prctl(sc.PR_SET_KEEPCAPS, 1)
    _step("setresuid", os.setresuid, base, base, base)
    # A host may keep user namespaces from those without CAP_SYS_ADMIN (Debian's unprivileged_userns_clone).
    _step("capset", sc.set_capabilities, _ONLY_SYS_ADMIN)
    _step("userns", sc.unshare, sc.CLONE_NEWUSER)
    packets.send(from_init, "map")
    if packets.receive(from_init)[0] is None:
        os._exit(127)
    # Written inside the new namespace: nothing in it may make another user namespace, filter or not.
    fd = os.open("sys/user/max_user_namespaces", os.O_WRONLY | os.O_CLOEXEC, dir_fd=birth.host_proc)
    os.write(fd, b"0")
    os.close(fd)
    _step("bounding set", sc.drop_from_bounding_set, _NEVER_GRANTED)
    _step("ambient set", sc.prctl, sc.PR_CAP_AMBIENT, sc.PR_CAP_AMBIENT_CLEAR_ALL)
    sc.prctl(sc.PR_SET_NO_NEW_PRIVS, 1)
    os.umask(0o022)


def _step(name: str, call: Callable[..., object], *arguments: object) -> None:
    try:
        call(*arguments)
    except (OSError, ValueError) as problem:
        raise SandboxError(name, getattr(problem, "errno", 0) or 0, str(problem)) from problem


def _execute(order: dict[str, Any], birth: Birth) -> None:
    """The last steps: into the directory, counters to zero, filter on, execve."""
    control = birth.control
    try:
        _change_directory(order["cwd"])
    except OSError as problem:
        packets.send(control, {"s": "exec_errno", "errno": problem.errno, "call": "chdir"})
        os._exit(127)
    argv, environment = order["argv"], order["env"]
    number, places = _executables(argv[0], environment.get(b"PATH", b""))
    # Only execve is left that needs a descriptor: with few open files allowed we could not open ours before.
    for kind, value in order["rlimits"]:
        _step("rlimit", resource.setrlimit, kind, (value, value))
    for fd in birth.reset:
        os.write(fd, b"0")
    cpu = os.pread(birth.cpu, 1024, 0).decode()
    packets.send(control, {"s": "exec", "t": time.monotonic(), "cpu": cpu})
    birth.common.filters[order["syscalls"]].install()
    for path in places:
        try:
            os.execve(path, argv, environment)
        except OSError as problem:
            number = problem.errno or 0
    packets.send(control, {"s": "exec_errno", "errno": number, "call": "execve"})
    os._exit(127)


def _rehearse(birth: Birth) -> None:
    """Do once, ahead of demand, what has no effect yet: the pages that it takes are copied by the time it counts."""
    _change_directory("/")
    os.pread(birth.cpu, 1024, 0).decode()


def _change_directory(path: str) -> None:
    fd = sc.openat2(sc.AT_FDCWD, path, os.O_PATH | os.O_DIRECTORY, sc.RESOLVE_NO_MAGICLINKS)
    os.fchdir(fd)
    os.close(fd)


def _executables(program: bytes, path: bytes) -> tuple[int, list[bytes]]:
    """Where execvp(3) would look and finds a file, and the errno to tell when none of them can be executed.

    Done here, and one by one: all places together may be as long as the name times the number of directories,
    and it is the job that pays. None is followed through a link of /proc to what only a descriptor holds
    (CVE-2019-5736).
    """
    number, found = errno.ENOENT, []
    directories = [b""] if b"/" in program else [(each or b".") + b"/" for each in path.split(b":")]
    for directory in directories:
        place = directory + program
        try:
            os.close(sc.openat2(sc.AT_FDCWD, place, os.O_PATH, sc.RESOLVE_NO_MAGICLINKS))
            found.append(place)
        except OSError as problem:
            if len(directories) == 1 or problem.errno not in (errno.ENOENT, errno.ENOTDIR):
                number = problem.errno or 0
    return number, found
