"""Images that this host has, as the launcher sees them: layers, and read-only views of host directories.

The built-in image ``host`` shows the machine's own toolchain: its ``/usr`` (and ``/bin``, ``/lib`` ... where
they are no symlinks into it) read-only, and a small generated ``/etc``. It is never idmapped: the job's root stays
a stranger to the host's files and reads only what everybody may read.
"""

from __future__ import annotations

import os
import shutil
import stat
from dataclasses import dataclass

HOST = "host"
SKELETON = "skeleton"
HOST_NOTE = "the machine's own toolchain, read-only"

_TOP = ("usr", "bin", "sbin", "lib", "lib32", "lib64", "libx32")
_ETC = (
    "alternatives ca-certificates ca-certificates.conf fonts inputrc ld.so.cache ld.so.conf ld.so.conf.d "
    "localtime mime.types nsswitch.conf perl protocols rpc services ssl/certs ssl/openssl.cnf terminfo"
).split()
_ETC_PREFIXES = ("java-", "python3", "gcc", "clang", "node")
_MAX_FILE = 1 << 20
_FILES = {
    "passwd": "root:x:0:0:root:/work:/bin/sh\nuser:x:1000:1000:user:/work:/bin/sh\n"
    "nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n",
    "group": "root:x:0:\ntty:x:5:\nuser:x:1000:\nnogroup:x:65534:\n",
    "hosts": "127.0.0.1 localhost\n::1 localhost\n",
    "resolv.conf": "",
    "machine-id": "",
}


@dataclass(frozen=True, slots=True)
class Rootfs:
    """mounts: directories, shown idmapped at ``l/0``, ``l/1`` ... lowers: the layers in them, topmost first.
    views: (source, target) directories of the host."""

    mounts: tuple[str, ...]
    lowers: tuple[str, ...]
    views: tuple[tuple[str, str], ...] = ()
    note: str = ""


def host_views() -> tuple[str, ...]:
    """The host's top directories that hold its programs and are no symlinks."""
    return tuple(name for name in _TOP if os.path.isdir(f"/{name}") and not os.path.islink(f"/{name}"))


def make_host_layer(directory: str) -> None:
    """Write the one layer of the ``host`` image into a new ``directory``; only root may have written there."""
    temporary = f"{directory}.new"
    for stale in (temporary, directory):
        shutil.rmtree(stale, ignore_errors=True)
    os.makedirs(temporary, 0o755)
    for name in _TOP:
        if os.path.islink(f"/{name}"):
            os.symlink(os.readlink(f"/{name}").lstrip("/"), f"{temporary}/{name}")
        elif os.path.isdir(f"/{name}"):
            os.mkdir(f"{temporary}/{name}", 0o755)
    for name, mode in (
        ("dev", 0o755),
        ("etc", 0o755),
        ("home", 0o755),
        ("proc", 0o555),
        ("root", 0o700),
        ("run", 0o755),
        ("tmp", 0o1777),
        ("var", 0o755),
        ("var/tmp", 0o1777),
        ("work", 0o755),
    ):
        os.mkdir(f"{temporary}/{name}")
        os.chmod(f"{temporary}/{name}", mode)
    for name, text in _FILES.items():
        with open(f"{temporary}/etc/{name}", "w") as file:
            file.write(text)
        os.chmod(f"{temporary}/etc/{name}", 0o644)
    for name in sorted(os.listdir("/etc")):
        if name.startswith(_ETC_PREFIXES):
            _copy(f"/etc/{name}", f"{temporary}/etc/{name}")
    for name in _ETC:
        _copy(f"/etc/{name}", f"{temporary}/etc/{name}")
    os.rename(temporary, directory)


def make_skeleton(directory: str) -> None:
    """Write the topmost layer of every image: the directories that a sandbox mounts upon, and a /tmp.

    Over what the image has there, so that an image without them, or with something else in their place, works too.
    """
    shutil.rmtree(directory, ignore_errors=True)
    os.mkdir(directory, 0o755)
    for name, mode in (("dev", 0o755), ("proc", 0o555), ("tmp", 0o1777), ("work", 0o755)):
        os.mkdir(f"{directory}/{name}")
        os.chmod(f"{directory}/{name}", mode)


def _copy(source: str, target: str) -> None:
    """Copy what everybody may read: symlinks as such, directories, and files up to 1 MiB; nothing else."""
    try:
        status = os.lstat(source)
    except OSError:
        return
    os.makedirs(os.path.dirname(target), 0o755, exist_ok=True)
    if stat.S_ISLNK(status.st_mode):
        os.symlink(os.readlink(source), target)
    elif stat.S_ISDIR(status.st_mode) and status.st_mode & 0o005 == 0o005:
        os.makedirs(target, 0o755, exist_ok=True)
        for name in os.listdir(source):
            _copy(f"{source}/{name}", f"{target}/{name}")
    elif stat.S_ISREG(status.st_mode) and status.st_mode & 0o004 and status.st_size <= _MAX_FILE:
        shutil.copyfile(source, target)
        os.chmod(target, 0o644 | (status.st_mode & 0o111))
