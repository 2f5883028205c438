"""`python -m worker` as a process: what keeps it from starting."""

import os
import subprocess
import sys

from redis import Redis


def test_a_redis_that_drops_jobs_is_refused(redis_url: str) -> None:
    """Exit status 2, with the remedy in one sentence."""
    with Redis.from_url(redis_url) as redis:
        redis.config_set("maxmemory-policy", "allkeys-lfu")
        try:
            ended = subprocess.run(
                [sys.executable, "-m", "worker"],
                env=os.environ | {"STOCKADE_REDIS": redis_url},
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )
        finally:
            redis.config_set("maxmemory-policy", "noeviction")
    assert ended.returncode == 2
    assert "config set maxmemory-policy noeviction" in ended.stderr
    assert "Traceback" not in ended.stderr
