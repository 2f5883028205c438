"""The queue sends one kind of message, and its door lets in no other."""

import base64
import json
from typing import Any

import pytest
from redis import Redis

from jobs import broker, queue
from jobs.settings import Settings
from tests.jobs.conftest import Submit


@pytest.fixture
def message(redis: Redis, submit: Submit) -> dict[str, Any]:
    """The message for a job's first attempt, as the store puts it into the queue."""
    job = submit()
    raw = redis.lrange(queue.PREFIX + "default", 0, -1)
    assert len(raw) == 1
    found: dict[str, Any] = json.loads(raw[0])
    assert json.loads(found["body"])[0] == [job.id, 1]
    return found


body = json.dumps


def test_message_carries_names_and_nothing_else(message: dict[str, Any], redis: Redis) -> None:
    """What is sent is a job's id and an attempt's number; every key in Redis is below stockade:."""
    (job_id, attempt), options, embedded = json.loads(message["body"])
    assert job_id.startswith("job_")
    assert attempt == 1
    assert options == {}
    assert not any(embedded.values())
    assert message["content-type"] == "application/json"
    assert message["headers"]["task"] == "stockade.run_job"
    assert all(key.startswith(b"stockade:") for key in redis.scan_iter())


def test_our_message_is_admitted(message: dict[str, Any]) -> None:
    """The message that we send is let in, built anew: no header but ours survives."""
    message["headers"] |= {
        "eta": "2999-01-01T00:00:00",
        "timelimit": [1, 1],
        "stamps": {"a": "b"},
        "shadow": "x\n",
    }
    message["properties"]["reply_to"] = "someone"
    admitted = broker.admit(message, "bigmem")
    assert set(admitted["headers"]) == {"lang", "task", "id", "redelivered"}
    assert "reply_to" not in admitted["properties"]
    assert admitted["properties"]["delivery_info"]["routing_key"] == "bigmem"
    assert admitted["body"] == message["body"].replace(",", ", ").replace("  ", " ")
    assert broker.admit(admitted, "bigmem") == admitted  # as it comes back from a worker that stops


FORGED = {
    "another task": {"headers": {"task": "celery.backend_cleanup"}},
    "a task that is a list": {"headers": {"task": ["stockade.run_job"]}},
    "no headers": {"headers": None},
    "pickle": {"content-type": "application/x-python-serialize"},
    "base64": {"body": base64.b64encode(b'[["job_1",1],{},{}]').decode()},
    "no delivery tag": {"properties": {}},
    "a huge delivery tag": {"properties": {"delivery_tag": "t" * 129}},
    "a body that is a list": {"body": [1]},
    "a body that is not JSON": {"body": "\x80\x04."},
    "a deep body": {"body": "[" * 1000},
    "a huge body": {"body": body([["j" * 4000, 1], {}, {}])},
    "keyword arguments": {"body": body([["job_1", 1], {"policy": "none"}, {}])},
    "a callback": {"body": body([["job_1", 1], {}, {"callbacks": [{"task": "celery.map"}]}])},
    "a chain": {"body": body([["job_1", 1], {}, {"chain": [{"task": "stockade.run_job"}]}])},
    "one argument": {"body": body([["job_1"], {}, {}])},
    "three arguments": {"body": body([["job_1", 1, {"limits": {"memory": 1}}], {}, {}])},
    "an id with a colon": {"body": body([["job:1", 1], {}, {}])},
    "an id with a line end": {"body": body([["job_1\n", 1], {}, {}])},
    "a number for an id": {"body": body([[1, 1], {}, {}])},
    "a text for an attempt": {"body": body([["job_1", "1"], {}, {}])},
    "true for an attempt": {"body": body([["job_1", True], {}, {}])},
    "attempt zero": {"body": body([["job_1", 0], {}, {}])},
    "a huge attempt": {"body": body([["job_1", 10**400], {}, {}])},
}


@pytest.mark.parametrize("change", FORGED.values(), ids=FORGED)
def test_forged_message_is_refused(message: dict[str, Any], change: dict[str, Any]) -> None:
    """A message that differs from ours in any way that matters is not let in."""
    with pytest.raises(broker.ForgedMessageError):
        broker.admit(message | change, "default")


@pytest.mark.parametrize("raw", [None, 7, "text", [], {}, [[]], {"body": {}}], ids=repr)
def test_what_is_no_message_is_refused(raw: object) -> None:
    """Any JSON value that is no message is refused, none raises anything else."""
    with pytest.raises(broker.ForgedMessageError):
        broker.admit(raw, "default")


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("redis://u:p@host:1234/5", "stockade://u:p@host:1234/5"),
        ("rediss://host/0", "stockade://host/0"),
        ("unix:///run/valkey.sock", "stockade+socket:///run/valkey.sock"),
        ("redis+socket:///run/valkey.sock", "stockade+socket:///run/valkey.sock"),
    ],
)
def test_one_address_serves_celery_too(address: str, expected: str) -> None:
    """The one setting for Redis, in each of its forms, is what Celery connects to."""
    assert queue.broker_url(Settings(redis=address)) == expected


def test_tls_checks_the_servers_certificate() -> None:
    """A rediss:// address never means TLS without a check of who answers."""
    app = queue.celery_app(Settings(redis="rediss://host/0"))
    assert app.conf.broker_use_ssl == {"ssl_cert_reqs": "required"}


def test_nothing_but_json_and_no_remote_control() -> None:
    """The application accepts JSON alone, takes no remote commands, and keeps no results."""
    conf = queue.celery_app(Settings()).conf
    assert conf.accept_content == ["json"]
    assert conf.worker_enable_remote_control is False
    assert conf.result_backend is None
    assert conf.task_ignore_result is True
    assert conf.task_acks_late is True
    assert conf.worker_prefetch_multiplier == 1


def test_worker_takes_from_the_queues_of_its_pools() -> None:
    """A worker's Celery queues are its pools, and no other one is made by a name."""
    conf = queue.celery_app(Settings(pools="bigmem, default")).conf
    assert [each.name for each in conf.task_queues] == ["bigmem", "default"]
    assert conf.task_create_missing_queues is False
