"""Depth: how many jobs wait and run in each pool."""

from redis import Redis

from jobs.depth import Depth, depths


def test_no_pool_no_depth(redis: Redis) -> None:
    """Before the first job there is nothing to tell."""
    assert depths(redis) == {}


def test_every_waiting_job_counts_once(redis: Redis) -> None:
    """Those of projects that have their turn, that are parked, and whose organisation is parked; by pool."""
    redis.sadd("stockade:pools", "default", "bigmem")
    redis.zadd("stockade:order:default", {"org_1": 0.5, "alone": 1})
    redis.zadd("stockade:order:default:org_1", {"project_1": 0.1, "project_2": 0.2})
    redis.zadd("stockade:order:default:alone", {"alone": 0})
    redis.zadd("stockade:order:default:org_2", {"project_3": 0})
    redis.zadd("stockade:parked", {"default|project_4": 1, "default|org_2": 1, "bigmem|project_5": 1})
    for pool, project, jobs in (
        ("default", "project_1", 3),
        ("default", "project_2", 1),
        ("default", "alone", 2),
        ("default", "project_3", 4),
        ("default", "project_4", 5),
        ("bigmem", "project_5", 7),
    ):
        redis.zadd(f"stockade:backlog:{pool}:{project}", {f"job_{n}": n for n in range(jobs)})
    redis.zadd("stockade:released:default", {"job_a": 1, "job_b": 1})
    redis.zadd("stockade:leases:bigmem", {"job_c": 1})
    assert depths(redis) == {"bigmem": Depth(7, 0, 1), "default": Depth(15, 2, 0)}
