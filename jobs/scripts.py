"""Scripts: the Lua files of `jobs/lua`, each of them one change that happens completely or not at all."""

from functools import cache
from pathlib import Path

from redis import Redis
from redis.commands.core import Script


@cache
def _source(name: str) -> str:
    return (Path(__file__).parent / "lua" / f"{name}.lua").read_text()


def script(redis: Redis, name: str) -> Script:
    """The script of `jobs/lua/NAME.lua`, to be called with its keys and arguments."""
    return redis.register_script(_source(name))
