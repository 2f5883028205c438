"""Workers say that they live; what they offer opens the window through which jobs are released."""

from redis import Redis

from jobs.workers import HostFacts, Workers, WorkerStatus


def status(name: str, **about: object) -> WorkerStatus:
    """What a worker of four slots says."""
    told = {"name": name, "slots": 4, "running": 1, "pools": ("default",), "launcher": None}
    return WorkerStatus.model_validate(told | about)


def window(redis: Redis) -> dict[str, int]:
    """The slots of each pool."""
    return {pool.decode(): int(slots) for pool, slots in redis.hgetall("stockade:slots").items()}


def test_workers_are_known_while_they_beat(redis: Redis) -> None:
    """A worker that said so lives, with what its launcher said; one that said farewell does not."""
    workers = Workers(redis)
    host = HostFacts(cgroup="v2", kernel="6.1.0")
    workers.heartbeat(status("w1", host=host))
    workers.heartbeat(status("w2", slots=2, launcher="connect: ENOENT"))
    found = {worker.name: worker for worker in workers.live()}
    assert (found["w1"].slots, found["w1"].running, found["w1"].launcher) == (4, 1, None)
    assert found["w1"].host == host
    assert found["w2"].launcher == "connect: ENOENT"
    workers.farewell("w1")
    assert [worker.name for worker in workers.live()] == ["w2"]


def test_slots_count_for_each_pool_that_a_worker_serves(redis: Redis) -> None:
    """The window of a pool is the slots of the live workers that take its jobs; it follows their leaving."""
    workers = Workers(redis)
    workers.heartbeat(status("w1", slots=4, pools=("default", "bigmem")))
    workers.heartbeat(status("w2", slots=2))
    assert window(redis) == {"default": 6, "bigmem": 4}
    workers.farewell("w1")
    assert window(redis) == {"default": 2}


def test_silent_worker_is_forgotten(redis: Redis) -> None:
    """A worker that has not been heard of for long counts no more, from the next heartbeat of any other on."""
    workers = Workers(redis)
    about = status("dead").model_dump_json(exclude={"name", "silent"})
    redis.hset("stockade:workers", "dead", f"1000 {about}")
    assert workers.live() == []
    workers.heartbeat(status("w1"))
    assert window(redis) == {"default": 4}
    assert redis.hkeys("stockade:workers") == [b"w1"]
