"""Events, written as the store's scripts write them."""

from importlib.resources import files

from redis import Redis

_LIBRARIES = ("clock", "budget", "release", "ending")
_CALL = """
for n = 1, ARGV[1] do announce(ARGV[2], ARGV[3], ARGV[4], ARGV[5], 1, ARGV[6] == '' and clock() or ARGV[6]) end
"""


def announce(
    redis: Redis,
    job: str,
    project: str,
    state: str,
    *,
    outcome: str = "",
    at: int | None = None,
    times: int = 1,
) -> None:
    """Announce a change of the job's state: now, or at that moment (ms); so many times."""
    lua = files("jobs") / "lua" / "lib"
    source = "\n".join((lua / f"{name}.lua").read_text() for name in _LIBRARIES)
    redis.eval(source + _CALL, 0, times, job, project, state, outcome, "" if at is None else at)
