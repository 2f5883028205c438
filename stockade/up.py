"""``stockade up``: the whole service on one machine, under one state directory.

    up (root) ─┬─ valkey    user stockade, unix socket, append-only file
               ├─ launcher  root: the only process that makes sandboxes
               ├─ worker    user stockade
               └─ api       user stockade

Started in this order, each when the one before is ready, and stopped in the reverse.
A child that dies is named and started again; one that keeps dying stops everything.
The kernel sends the children SIGTERM when this process dies, however it dies.

State directory: ``lock``, ``dev-key``, ``address`` (of the API), ``logs/``, ``valkey/``, ``launcher/``, ``run/`` with
the launcher's socket, and the users of Valkey (:mod:`stockade.valkey_users`): worker and API each are one that can
do its work and no more. All that must outlive a restart is in ``valkey/``.
"""

import select
import shutil
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType, TracebackType

import click
import httpx

from jobs.settings import Settings
from stockade import host, valkey
from stockade.children import Child, ChildDied
from stockade.valkey_users import User, Users

_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_READY_TIMEOUT = 60.0  # s, for each child
_DEATHS_MAX, _DEATHS_WINDOW = 5, 60.0  # a child that dies more often within so many seconds stays dead


class Stopped(Exception):
    """Somebody asked this process to stop."""


class Signals:
    """Waiting that ends at once when a child dies or a stop signal comes. One instance at a time."""

    def __init__(self) -> None:
        self._stop: signal.Signals | None = None

    def __enter__(self) -> "Signals":
        self._read, self._write = socket.socketpair()
        self._read.setblocking(False)
        self._write.setblocking(False)
        self._old_fd = signal.set_wakeup_fd(self._write.fileno(), warn_on_full_buffer=False)
        self._old = {s: signal.signal(s, self._note) for s in (*_STOP_SIGNALS, signal.SIGCHLD)}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._old_fd)
        self._read.close()
        self._write.close()

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number != signal.SIGCHLD:
            self._stop = signal.Signals(number)

    def pause(self, seconds: float) -> None:
        """Sleep for at most ``seconds``; raises :class:`Stopped` when asked to stop before or meanwhile."""
        if self._stop is None and select.select([self._read], [], [], seconds)[0]:
            self._read.recv(4096)
        if self._stop is not None:
            raise Stopped(self._stop.name)


@dataclass(frozen=True)
class UpOptions:
    """What the command line of ``stockade up`` names."""

    state: Path
    listen: str = "127.0.0.1:8000"
    slots: int | None = None
    pools: tuple[str, ...] = ("default",)
    image_host: bool = True
    policies: Path | None = None
    metrics: str = "127.0.0.1:9464"
    webhook_allow: str = ""
    grace: float = 10.0
    images: Path | None = None


@dataclass
class Member:
    """A child and how to see that it is ready."""

    child: Child
    ready: Callable[[], bool]
    deaths: deque[float] = field(default_factory=lambda: deque(maxlen=_DEATHS_MAX))


class Stack:
    """The four processes of one state directory."""

    def __init__(self, options: UpOptions, say: Callable[[str], None] = click.echo) -> None:
        self.options = options
        self.state = options.state
        self.url = f"http://{options.listen}"
        self._users = Users.claim(self.state, host.require_service_user().pw_gid)
        self.redis = self._users.url(User.ADMIN)
        self.launcher_socket = self.state / "run" / "launcher.sock"
        self._say = say
        self._not_ready = ""
        self._members = self._make_members()

    def _make_members(self) -> list[Member]:
        settings = Settings(
            state=self.state,
            launcher=self.launcher_socket,
            listen=self.options.listen,
            policies=self.options.policies,
            metrics=self.options.metrics,
            pools=self.options.pools,
            webhook_allow=self.options.webhook_allow,
            image_host=self.options.image_host,
            drain=max(0.0, self.options.grace - 2),
            **({"slots": self.options.slots} if self.options.slots else {}),
        )
        python = [sys.executable, "-I", "-m"]
        images = self.options.images or self.state / host.IMAGES
        launcher = launcher_command(settings, self.state / "launcher", images)
        data = self.state / "valkey"
        server = valkey.command(data, durable=True, acl_file=self._users.acl_file)
        return [
            Member(self._child("valkey", server), lambda: valkey.answers(data, self.redis)),
            Member(self._child("launcher", launcher, user=None), lambda: accepts(self.launcher_socket)),
            Member(
                self._child("worker", [*python, "worker"], self._env(settings, User.WORKER)), lambda: True
            ),
            Member(self._child("api", [*python, "api"], self._env(settings, User.API)), self._serves),
        ]

    def _env(self, settings: Settings, user: User) -> dict[str, str]:
        """The environment of a child that is this user of Redis."""
        return settings.model_copy(update={"redis": self._users.url(user)}).environment()

    def _child(
        self,
        name: str,
        argv: list[str],
        env: dict[str, str] | None = None,
        user: str | None = host.SERVICE_USER,
    ) -> Child:
        return Child(name, argv, self.state / "logs" / f"{name}.log", user, env or {})

    def _serves(self) -> bool:
        """Whether the API answers; ``/readyz`` then says that worker and launcher are there too."""
        try:
            answer = httpx.get(f"{self.url}/readyz", timeout=5, trust_env=False)
        except httpx.TransportError:
            return False
        self._not_ready = "" if answer.status_code == 200 else f"\n  /readyz says: {answer.text}"
        return answer.status_code == 200

    def start(self, signals: Signals) -> None:
        """Start all in order; return when ``/readyz`` says yes. :class:`ChildDied` when one does not come."""
        prepare(self.state)
        for member in self._members:
            self._bring_up(member, signals)

    def _bring_up(self, member: Member, signals: Signals) -> None:
        member.child.start()
        try:
            member.child.wait_until(member.ready, _READY_TIMEOUT, signals.pause)
        except ChildDied as death:
            raise ChildDied(f"{death}{self._not_ready}") from None

    def watch(self, signals: Signals) -> None:
        """Keep all running until asked to stop (:class:`Stopped`) or one keeps dying (:class:`ChildDied`)."""
        while True:
            for member in self._members:
                if status := member.child.status():
                    self._restart(member, status, signals)
            signals.pause(1.0)

    def _restart(self, member: Member, status: str, signals: Signals) -> None:
        now, deaths = time.monotonic(), member.deaths
        child = member.child
        deaths.append(now)
        if len(deaths) == _DEATHS_MAX and now - deaths[0] < _DEATHS_WINDOW:
            raise ChildDied(
                f"{child.name} ended with {status}, the {len(deaths)}th time within a minute; see {child.log}"
            )
        self._say(f"{child.name} ended with {status}; starting it again (its log: {child.log})")
        child.stop(0)
        self._bring_up(member, signals)

    def stop(self) -> None:
        """Stop all in reverse order. Idempotent; leaves files only."""
        for member in reversed(self._members):
            if not member.child.stop(self.options.grace):
                self._say(f"{member.child.name} did not stop within {self.options.grace:g} s and was killed")
        self.launcher_socket.unlink(missing_ok=True)
        valkey.socket_path(self.state / "valkey").unlink(missing_ok=True)


def launcher_command(settings: Settings, state: Path, images: Path) -> list[str]:
    """The argument list of the privileged launcher that serves ``settings.launcher`` and keeps ``state``."""
    return [
        *(sys.executable, "-I", "-m", "worker.sandbox.launcher"),
        *("--socket", str(settings.launcher), "--group", host.SERVICE_USER, "--state", str(state)),
        *("--images", str(images)),
        *("--image-host", "on" if settings.image_host else "off"),
    ]


def accepts(path: Path) -> bool:
    """Whether a launcher takes connections at ``path``."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
    return True


def prepare(state: Path) -> None:
    """Make the directories of ``state``, each with the owner and mode that it needs."""
    owner = host.require_service_user()
    for name, uid, gid, mode in (
        ("logs", 0, 0, 0o700),
        ("launcher", 0, 0, 0o700),
        ("run", 0, owner.pw_gid, 0o750),
        ("valkey", owner.pw_uid, owner.pw_gid, 0o700),
    ):
        directory = state / name
        directory.mkdir(exist_ok=True)
        shutil.chown(directory, uid, gid)
        directory.chmod(mode)


def claim_state(state: Path) -> Path:
    """``state`` as an absolute path, made when missing, reachable for the service user and nobody else."""
    state = state.absolute()
    host.require_short(valkey.socket_path(state / "valkey"))
    host.require_short(state / "run" / "launcher.sock")
    try:
        state.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise click.ClickException(f"cannot make the state directory {state}: {error.strerror}") from None
    shutil.chown(state, 0, host.require_service_user().pw_gid)
    state.chmod(0o750)
    fix = "Choose another --state, for example /var/lib/stockade"
    host.require_reachable(state, "the state directory", fix)
    return state
