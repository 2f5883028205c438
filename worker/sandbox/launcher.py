"""The launcher: the one root process. Single-threaded, standard library only.

    python -m worker.sandbox.launcher --socket PATH --group GROUP --state DIR
    python -m worker.sandbox.launcher --connection FD --state DIR     (one private peer, for ``stockade run``)

It listens on a Unix SOCK_SEQPACKET socket. One connection is one job; when it closes, everything of that job is
killed and released. SIGTERM and SIGINT kill every job and leave nothing behind.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import gc
import grp
import json
import os
import resource
import select
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from worker.sandbox import cgroups, confined, host, layout, seccomp, wire
from worker.sandbox.errors import SandboxError
from worker.sandbox.host import SLOTS, IdRange
from worker.sandbox.images import Images
from worker.sandbox.janitor import Janitor
from worker.sandbox.plan import Ceilings
from worker.sandbox.pool import Pool
from worker.sandbox.sandbox import Host, Room, Sandbox, operations
from worker.sandbox.session import Session
from worker.sandbox.workspace import Depot, Workspace
from worker.sandbox.zygote import Zygote

_MANY_BYTES, _MANY_INODES = 64 << 20, 5000
_OWN_DESCRIPTORS, _DESCRIPTORS_EACH = 100, 20
PROFILES = Path(__file__).parents[2] / "policies" / "syscalls"


class Launcher:
    """The poll loop and what all sessions share."""

    def __init__(self, shared: Host, images: Images, number: host.Number, prepared: int) -> None:
        self.host, self.images, self.ceilings = shared, images, Ceilings()
        self.depot = Depot(shared.host_proc)
        self._number = number
        self._poll = select.epoll()
        self._on: dict[int, Callable[[], None]] = {}
        self._pool = Pool(self, prepared)
        self._running: dict[Sandbox, Session] = {}
        self._sessions: set[Session] = set()
        self._free_ids: list[IdRange] = []
        self._slots_used = self._serial = self._most_sessions = 0
        self._listener: socket.socket | None = None
        self._peer_gid: int | None = None
        self.stopping = False
        self.watch(shared.zygote.socket.fileno(), self._pool.on_born)

    # --- the poll set

    def watch(self, fd: int, handler: Callable[[], None], once: bool = False) -> None:
        """Call ``handler`` whenever ``fd`` is readable or its other end is gone, or only the first time."""
        self._on[fd] = handler
        self._poll.register(fd, select.EPOLLIN | (select.EPOLLONESHOT if once else 0))

    def unwatch(self, fd: int) -> None:
        """Take ``fd`` out of the poll set, before it is closed."""
        self._poll.unregister(fd)
        del self._on[fd]

    def run(self) -> None:
        """Serve until told to stop and until every sandbox is gone."""
        while not (self.stopping and not self._running):
            idle = not self.stopping and self._pool.hungry
            events = self._poll.poll(0 if idle else self._timeout())
            for fd, _ in events:
                handler = self._on.get(fd)
                if handler:
                    handler()
            self._tick()
            if idle and not events:
                self._pool.refill()

    @property
    def about(self) -> dict[str, Any]:
        """What a peer may know of this host."""
        return {
            "cgroup": self.host.driver.version,
            "kernel": os.uname().release,
            "images": {name: name for name in self.images} | self.images.names(),
        }

    @property
    def busy(self) -> bool:
        """Whether a job is running."""
        return bool(self._running)

    def _timeout(self) -> float:
        wake = min((box.wake for box in self._running), default=float("inf"))
        return -1 if wake == float("inf") else max(0.0, wake - time.monotonic())

    def _tick(self) -> None:
        now = time.monotonic()
        for box in [box for box in self._running if box.wake <= now]:
            if box.tick(now):
                self._end(box, stuck=True)

    # --- sandboxes

    def new_name(self) -> str:
        """A name for a cgroup or a workspace, used once."""
        self._serial += 1
        return str(self._serial)

    def want(self, session: Session, image: str, room: Room | None) -> None:
        """Give the session a sandbox that no job has been in, now or as soon as there is one.

        Without a room of its own the job gets one with the sandbox, built ahead where the image allows.
        """
        self._pool.want(session, image, room)

    def begin(self, box: Sandbox, session: Session) -> None:
        """The sandbox is the session's; from now on its end is watched."""
        self._running[box] = session
        self.watch(box.pidfd, lambda: self._end(box))
        # Once: after the first news ("exec", or what went wrong) comes only the end, which the pidfd tells. A
        # control socket whose other ends are gone would stay readable all the time that the kernel takes for it.
        self.watch(box.control.fileno(), box.read_control, once=True)
        if box.leaf.oom >= 0:
            self.watch(box.leaf.oom, box.read_oom)
        session.on_sandbox(box)

    def _end(self, box: Sandbox, stuck: bool = False) -> None:
        if box in self._running:
            self._running[box].on_sandbox_end(stuck)

    def drop_sandbox(self, box: Sandbox) -> None:
        """Give back what a used sandbox had."""
        del self._running[box]
        for fd in {box.pidfd, box.control.fileno(), box.leaf.oom} - {-1}:
            self.unwatch(fd)
        box.close()

    # --- rooms

    def make_room(self, image: str, keep: bool) -> Room:
        """A workspace and an id range of its own for one job."""
        if self._free_ids:
            ids = self._free_ids.pop()
        elif self._slots_used < SLOTS:
            ids = IdRange(self._number.base(self._slots_used), self.host.host_proc)
            self._slots_used += 1
        else:
            hint = f"all {SLOTS} slots of this launcher are taken; try again later"
            raise SandboxError("slot", errno.EAGAIN, hint=hint)
        with contextlib.ExitStack() as undo:
            undo.callback(self._free_ids.append, ids)
            rootfs = self.images.take(image)
            undo.callback(self.images.drop, image)
            try:
                room = Room(image, rootfs, Workspace(self.depot, self.new_name(), keep), ids)
            except OSError as problem:
                raise SandboxError("workspace", problem.errno or 0, "tmpfs") from problem
            undo.pop_all()
            return room

    def drop_room(self, room: Room, quarantine: bool = False) -> None:
        """Take a room back; an id range whose processes may still be alive is never used again."""
        size, inodes, _, _ = room.workspace.used()
        if size > _MANY_BYTES or inodes > _MANY_INODES:
            with contextlib.suppress(OSError):
                self._drop_later(room.workspace.directory)
        room.workspace.close()
        self.images.drop(room.image)
        if quarantine:
            log("slot_quarantined", base=room.ids.base)
            os.close(room.ids.userns)
        else:
            self._free_ids.append(room.ids)

    def _drop_later(self, directory: int) -> None:
        # Freeing a large tmpfs takes its time: the last reference to it goes with this child.
        _, pidfd = confined.fork(directory, 65534, None, lambda: time.sleep(0.05))

        def reap() -> None:
            self.unwatch(pidfd)
            os.waitid(os.P_PIDFD, pidfd, os.WEXITED)
            os.close(pidfd)

        self.watch(pidfd, reap)

    # --- peers

    def listen(self, listener: socket.socket, group: int | None) -> None:
        """Accept peers: root, and members of ``group`` (the socket's mode says the same)."""
        self._listener, self._peer_gid = listener, group
        most, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            most = hard
        self._most_sessions = min(2 * SLOTS, max(1, (most - _OWN_DESCRIPTORS) // _DESCRIPTORS_EACH))
        self.watch(listener.fileno(), self._accept)

    def _accept(self) -> None:
        assert self._listener is not None
        try:
            connection, _ = self._listener.accept()
        except OSError as problem:
            log("accept_failed", errno=problem.errno)
            return
        data = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        _, uid, gid = struct.unpack("3i", data)
        if uid != 0 and gid != self._peer_gid:
            log("peer_refused", uid=uid, gid=gid)
            connection.close()
            return
        if len(self._sessions) >= self._most_sessions:
            # Descriptors are for jobs that run; one that is missing there would end them.
            log("peer_refused", sessions=len(self._sessions))
            connection.close()
            return
        self.adopt(connection)

    def adopt(self, connection: socket.socket) -> Session:
        """Start a session on a connected socket."""
        session = Session(self, wire.prepare(connection))
        self._sessions.add(session)
        return session

    def forget(self, session: Session) -> None:
        """The session has given everything back."""
        self._sessions.discard(session)
        if self._listener is None:
            self.stopping = True

    def stop(self) -> None:
        """Kill every job; ``run`` returns when they are gone."""
        self.stopping = True
        if self._listener:
            self.unwatch(self._listener.fileno())
            self._listener.close()
        for session in list(self._sessions):
            session.close()

    def close(self) -> None:
        """Throw away what was prepared, and end the zygote and the janitor."""
        self._pool.close()
        self.host.zygote.close()
        self.host.janitor.close()


def log(event: str, **fields: object) -> None:
    """One JSON line on standard error."""
    sys.stderr.write(json.dumps({"event": event, **fields}) + "\n")
    sys.stderr.flush()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="stockade-launcher", description=__doc__.split("\n")[0])
    peers = parser.add_mutually_exclusive_group(required=True)
    peers.add_argument("--socket", help="path of the Unix socket to listen on")
    peers.add_argument("--connection", type=int, help="descriptor of a connected socket: serve it, then exit")
    parser.add_argument("--group", help="group whose members may connect; without it only root may")
    parser.add_argument(
        "--state", required=True, help="directory for images, on a file system with idmapped mounts"
    )
    parser.add_argument("--images", help="the store of images (default: images, below the state)")
    parser.add_argument("--image-host", choices=("on", "off"), default="on", help="the built-in image `host`")
    parser.add_argument("--prepared", type=int, default=4, help="sandboxes to keep ready")
    parser.add_argument("--slowdown", type=float, default=1.0, help="factor on our own time-outs")
    return parser.parse_args()


def _listener(path: str, group: int | None) -> tuple[socket.socket, Callable[[], None]]:
    directory = os.open(os.path.dirname(os.path.abspath(path)), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    name = os.path.basename(path)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(name, dir_fd=directory)
    os.umask(0o177)
    listener.bind(path)
    os.umask(0o022)
    if group is not None:
        os.chown(path, 0, group)
        os.chmod(path, 0o660)
    listener.listen(128)

    def remove() -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=directory)
        os.close(directory)

    return listener, remove


def _open_to_all(host_proc: int) -> frozenset[str]:
    """Entries of /proc that others than root may use at all; a job can't even open the rest."""
    names = (name for name in os.listdir(host_proc) if not name.isdigit())
    return frozenset(name for name in names if os.lstat(name, dir_fd=host_proc).st_mode & 0o007)


def serve(arguments: argparse.Namespace) -> None:
    """Everything from the checked command line to the clean end."""
    if os.geteuid() != 0:
        raise SandboxError("launcher", 1, hint="must be started by root")
    group = grp.getgrnam(arguments.group).gr_gid if arguments.group else None
    programs = seccomp.load_profiles(PROFILES)
    with contextlib.ExitStack() as stack:
        number = host.Number()
        stack.callback(number.release)
        driver = cgroups.detect(f"stockade-{number.value}")
        stack.callback(driver.remove)
        store = arguments.images or os.path.join(arguments.state, "images")
        images = host.images(arguments.state, store, arguments.image_host == "on")
        janitor = Janitor(driver)
        host_proc = os.open("/proc", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        listener, remove = None, None
        if arguments.socket:
            listener, remove = _listener(arguments.socket, group)
            stack.callback(remove)
        zygote = Zygote()
        host.enter_small_namespace(arguments.state, store)
        namespace = os.open("self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC, dir_fd=host_proc)
        hidden = tuple(layout.hidden(_open_to_all(host_proc).__contains__))
        usual = next(iter(images), None)
        known = operations(images.take(usual), 0, hidden) if usual else []
        filters = {name: program.bpf for name, program in programs.items()}
        zygote.begin(namespace, host_proc, filters, known)
        os.close(namespace)
        shared = Host(driver, programs, zygote, janitor, host_proc, hidden, usual, arguments.slowdown)
        launcher = Launcher(shared, images, number, arguments.prepared)
        stack.callback(launcher.close)
        _signals(launcher)
        if listener:
            launcher.listen(listener, group)
        else:
            launcher.adopt(socket.socket(fileno=arguments.connection))
        gc.collect()
        gc.freeze()
        log("launcher_ready", cgroup=driver.version, number=number.value, images=sorted(images))
        launcher.run()


def _signals(launcher: Launcher) -> None:
    read_end, write_end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    signal.set_wakeup_fd(write_end)
    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, lambda *_: None)

    def stop() -> None:
        os.read(read_end, 64)
        launcher.stop()

    launcher.watch(read_end, stop)


def main() -> int:
    """The command; 0 after a clean stop, 1 when the host can't run jobs."""
    try:
        serve(_arguments())
    except SandboxError as problem:
        log("launcher_failed", problem=str(problem), **problem.as_message())
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
