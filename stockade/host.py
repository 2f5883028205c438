"""What this machine must offer before anything of ours is started, each failure with its fix."""

import fcntl
import os
import pwd
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

Command = Callable[..., Any]

SERVICE_USER = "stockade"
IMAGES = "images"
"""The store of images, below the state directory."""
STATE = Path("/var/lib/stockade")
"""The state directory where none is named."""
_SOCKET_PATH_MAX = 107  # bytes, unix(7)


def state_option(what: str) -> Callable[[Command], Command]:
    """The option ``--state`` of a command, or ``STOCKADE_STATE``; ``what`` says what it is used for."""
    kind = click.Path(file_okay=False, path_type=Path)
    return click.option(
        "--state", type=kind, default=STATE, show_default=True, envvar="STOCKADE_STATE", help=what
    )


def require_root(command: str) -> None:
    """Refuse when not root: only root can make the namespaces and cgroups of a sandbox."""
    if os.geteuid() != 0:
        raise click.ClickException(
            f"`stockade {command}` must run as root: it makes namespaces and cgroups."
            f" Try: sudo stockade {command}"
        )


def require_service_user() -> pwd.struct_passwd:
    """The user that worker, API and Valkey run as."""
    try:
        return pwd.getpwnam(SERVICE_USER)
    except KeyError:
        raise click.ClickException(
            f"there is no user {SERVICE_USER!r}, which the unprivileged processes run as. Run: make setup"
        ) from None


def require_reachable(path: Path, what: str, fix: str) -> None:
    """Refuse when the service user cannot reach ``path`` (a directory above it is closed to others)."""
    user = require_service_user()
    probe = subprocess.run(
        ["test", "-x", str(path)], user=user.pw_uid, group=user.pw_gid, extra_groups=[], cwd="/", check=False
    )
    if probe.returncode != 0:
        closed = next((p for p in reversed(path.resolve().parents) if not p.stat().st_mode & 0o001), path)
        raise click.ClickException(
            f"the user {SERVICE_USER!r} cannot reach {what} {path}: {closed} is closed to others. {fix}"
        )


def require_installed() -> None:
    """Refuse when the service user cannot run this interpreter and import the installed packages."""
    fix = "Run: make setup, then the stockade of /opt/stockade/venv"
    require_reachable(Path(sys.executable), "the interpreter", fix)
    user = require_service_user()
    probe = subprocess.run(
        [sys.executable, "-I", "-c", "import api, jobs, policies, worker"],
        user=user.pw_uid,
        group=user.pw_gid,
        extra_groups=[],
        cwd="/",
        env={},
        capture_output=True,
        text=True,
        check=False,
    )
    if probe.returncode != 0:
        last = (probe.stderr.splitlines() or ["no message"])[-1]
        raise click.ClickException(
            f"the user {SERVICE_USER!r} cannot import the installed packages: {last}. {fix}"
        )


def require_short(path: Path) -> None:
    """Refuse a socket path that the kernel would cut."""
    if len(os.fsencode(path)) > _SOCKET_PATH_MAX:
        raise click.ClickException(
            f"the socket path {path} is longer than {_SOCKET_PATH_MAX} bytes. Choose a shorter --state"
        )


def require_free(listen: str) -> None:
    """Refuse an address that another process listens on, or that is none of this machine's."""
    host, port = split_listen(listen)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise click.ClickException(
                f"cannot listen on {listen}: {error.strerror}. Choose another with --listen"
            ) from None


def split_listen(listen: str) -> tuple[str, int]:
    """``"127.0.0.1:8000"`` or ``"[::1]:8000"`` as host and port."""
    host, colon, port = listen.rpartition(":")
    if not (colon and host and port.isdigit() and 0 < int(port) < 65536):
        raise click.ClickException(f"{listen!r} is no address: expected HOST:PORT, as in 127.0.0.1:8000")
    return host.strip("[]"), int(port)


@contextmanager
def locked(state: Path) -> Iterator[None]:
    """Hold ``state`` for ourselves; refuse while another process does. The kernel drops the lock with us."""
    fd = os.open(state / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(fd, 32).decode().strip() or "unknown"
            raise click.ClickException(
                f"another `stockade up` (process {holder}) runs on {state}. Stop it or choose another --state"
            ) from None
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(fd)
