"""The ``User`` of an image as numbers: names are looked up in the image's own /etc/passwd and /etc/group.

The files are read once, when the image comes into the store, out of its topmost layer that has them. They are text of a
stranger: opened beneath the layer without following a symlink, bounded, and only ever compared with the name.
"""

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from worker.images.errors import ImageError
from worker.images.hashes import BENEATH
from worker.images.tree import IDS
from worker.sandbox import syscalls as sc

_WORD = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}\$?"
_USER = re.compile(rf"({_WORD})(?::({_WORD}))?")
_FILE_MAX = 4 << 20


def resolve(user: str, trees: Sequence[Path]) -> tuple[int | None, int | None]:
    """(uid, gid) of ``user``, ``uid``, ``user:group``, ``uid:gid`` ...; (None, None) where nothing is said.

    trees: the image's layers, the lowest first. Where no group is named it is the user's of /etc/passwd, else 0.
    """
    if not user:
        return None, None
    match = _USER.fullmatch(user)
    if not match:
        raise ImageError(
            "config_invalid", f"User is {user[:100]!r}, expected a name or an id, perhaps :group"
        )
    name, group = match[1], match[2]
    entries = [fields for fields in _entries("etc/passwd", trees) if len(fields) >= 4]
    if name.isdigit():
        uid = _id(name)
        gid = next((fields[3] for fields in entries if fields[2] == str(uid)), "0")
    else:
        found = next((fields for fields in entries if fields[0] == name), None)
        if found is None:
            raise ImageError(
                "config_invalid", f"User is {name!r}, whom the image's /etc/passwd does not have"
            )
        uid, gid = _id(found[2]), found[3]
    if group is None:
        return uid, _id(gid)
    if group.isdigit():
        return uid, _id(group)
    for fields in _entries("etc/group", trees):
        if len(fields) >= 3 and fields[0] == group:
            return uid, _id(fields[2])
    raise ImageError(
        "config_invalid", f"User names the group {group!r}, which the image's /etc/group does not have"
    )


def _id(text: str) -> int:
    if not re.fullmatch("[0-9]{1,10}", text) or int(text) >= IDS:
        raise ImageError("config_invalid", f"User: the id {text[:20]!r} is not one of 0 to {IDS - 1}")
    return int(text)


def _entries(path: str, trees: Sequence[Path]) -> Iterator[list[str]]:
    for tree in reversed(trees):
        root = os.open(tree, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fd = sc.openat2(root, path, os.O_RDONLY | os.O_NONBLOCK, BENEATH)
        except OSError:
            continue
        finally:
            os.close(root)
        with open(fd, "rb") as file:
            for line in file.read(_FILE_MAX).decode("utf-8", "replace").splitlines():
                yield line.split(":")
        return
