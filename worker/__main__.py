"""`python -m worker`: one worker, set up by the environment (see `jobs.settings`)."""

import gc
import sys

from jobs.settings import Settings, SettingsError
from policies.finding import PolicyError
from worker.app import Worker, configure_logging


def main() -> int:
    """Run a worker until it is told to stop; 2 when the environment or a policy cannot be used."""
    configure_logging()
    try:
        worker = Worker(Settings.from_env())
    except (SettingsError, PolicyError) as error:
        print(f"worker: {error}", file=sys.stderr)  # noqa: T201 - for whoever starts it
        return 2
    gc.freeze()  # what is here now stays: the collector need not look at it again
    return worker.run()


if __name__ == "__main__":
    sys.exit(main())
