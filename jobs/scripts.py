"""Scripts: the Lua files of `jobs/lua`, each of them one change that happens completely or not at all.

A script's first line, `-- needs: NAME …`, names the libraries (`lua/lib/NAME.lua`, local functions) that are put
before it. Headers of scripts and libraries list every key, its type and its meaning.
"""

from functools import cache
from pathlib import Path

from redis import Redis
from redis.commands.core import Script

_LUA = Path(__file__).parent / "lua"
_NEEDS = "-- needs: "


@cache
def _source(name: str) -> str:
    """The whole text of a script: its libraries, then itself."""
    text = (_LUA / f"{name}.lua").read_text()
    first = text.partition("\n")[0]
    libraries = first.removeprefix(_NEEDS).split() if first.startswith(_NEEDS) else []
    return "\n".join([*((_LUA / "lib" / f"{each}.lua").read_text() for each in libraries), text])


def script(redis: Redis, name: str) -> Script:
    """The script of `jobs/lua/NAME.lua`, to be called with its keys and arguments."""
    return redis.register_script(_source(name))
