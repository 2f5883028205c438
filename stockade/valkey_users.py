"""The users of the embedded Valkey: one for each role, so that none can do more than its work.

Their rules are those of ``stockade.acl``, for a Redis of one's own too. Of a state directory's users,
``DIR/valkey-passwords`` (root alone) has the passwords, made anew when it is missing, and ``DIR/valkey.acl``, which
Valkey reads, their SHA-256. Each process gets the password of its own user, in its environment.
"""

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Mapping
from enum import StrEnum
from importlib.resources import files
from pathlib import Path

from stockade import valkey


class User(StrEnum):
    """A role."""

    API = "api"
    WORKER = "worker"
    ADMIN = "admin"
    """`stockade tenant`, `stockade key`, `stockade doctor`, and whoever repairs something by hand."""


class Users:
    """The users of one state directory."""

    def __init__(self, state: Path, passwords: Mapping[User, str]) -> None:
        self._data = state / "valkey"
        self.acl_file = state / "valkey.acl"
        """What Valkey is started with."""
        self._passwords = passwords

    @classmethod
    def load(cls, state: Path) -> "Users":
        """The users of a state directory that `claim` has made.

        Raises:
            OSError: there are none, or they are not for us to see.
        """
        stored = json.loads(_passwords_file(state).read_text())
        return cls(state, {user: stored[user] for user in User})

    @classmethod
    def claim(cls, state: Path, gid: int) -> "Users":
        """The same, made when missing; their rules, readable for the group `gid`, as this version has them."""
        path = _passwords_file(state)
        if not path.exists():
            made = {user: secrets.token_hex(32) for user in User}
            _write(path, json.dumps(made) + "\n", 0o600)
        users = cls.load(state)
        _write(users.acl_file, rules(users._passwords), 0o640, gid)
        return users

    def url(self, user: User) -> str:
        """The address of the server for this user, as ``STOCKADE_REDIS`` takes it."""
        return valkey.url(self._data, f"stockade-{user}:{self._passwords[user]}")


def rules(passwords: Mapping[User, str]) -> str:
    """The ACL file for these passwords, of which it has the SHA-256 alone."""
    text = (files("stockade") / "stockade.acl").read_text()
    for user, password in passwords.items():
        digest = hashlib.sha256(password.encode()).hexdigest()
        text = text.replace(f"SHA256_OF_{user.upper()}_PASSWORD", digest)
    return text


def _passwords_file(state: Path) -> Path:
    return state / "valkey-passwords"


def _write(path: Path, text: str, mode: int, gid: int = 0) -> None:
    """Write a file that is there completely or not at all, and never open to others."""
    new = path.with_name(path.name + ".new")
    new.unlink(missing_ok=True)
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    shutil.chown(new, 0, gid)
    new.chmod(mode)
    new.replace(path)
