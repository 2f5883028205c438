"""`python -m worker`: one worker, set up by the environment (see `jobs.settings`)."""

import gc
import sys
from contextlib import suppress

from redis.exceptions import RedisError

from jobs.eviction import EvictionError, require_no_eviction
from jobs.settings import Settings, SettingsError
from jobs.store import connect
from policies.finding import PolicyError
from worker.app import Worker, configure_logging


def main() -> int:
    """Run a worker until it is told to stop; 2 when the environment, a policy or Redis cannot be used."""
    configure_logging()
    try:
        settings = Settings.from_env()
        worker = Worker(settings)
        _refuse_eviction(settings)
    except (SettingsError, PolicyError, EvictionError) as error:
        print(f"worker: {error}", file=sys.stderr)  # noqa: T201 - for whoever starts it
        return 2
    gc.freeze()  # what is here now stays: the collector need not look at it again
    return worker.run()


def _refuse_eviction(settings: Settings) -> None:
    """Raise EvictionError when Redis may drop jobs. One that is not there yet is waited for, as ever."""
    with connect(settings) as redis, suppress(RedisError):
        require_no_eviction(redis)


if __name__ == "__main__":
    sys.exit(main())
