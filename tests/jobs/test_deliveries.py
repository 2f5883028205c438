"""Deliveries: made once for each event, taken in turns, settled once, and bounded."""

import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from redis import Redis
from redis.connection import AbstractConnection

from jobs import deliveries, events
from jobs.deliveries import Deliveries, DeliveryState, Message, Try
from jobs.events import EventType
from jobs.settings import Settings
from jobs.store import connect
from jobs.webhooks import Webhooks

TENANT = "tenant_a"


@pytest.fixture
def redis(redis_url: str) -> Iterator[Redis]:
    """A client of an empty database that no application which is still served looks at."""
    with connect(Settings(redis=f"{redis_url}?db=1")) as client:
        yield client


@pytest.fixture
def store(redis: Redis) -> Deliveries:
    """Deliveries with two tries, the second at once."""
    return Deliveries(redis, schedule=(0.0,))


def hook(redis: Redis) -> str:
    """The id of a new webhook."""
    made = Webhooks(redis).create(TENANT, "https://hooks.example/", [EventType.FINISHED], "")
    assert made is not None
    return made[0].id


def put(store: Deliveries, webhook: str, *names: str) -> None:
    """Make deliveries of these names."""
    for name in names:
        assert store.create(Message(webhook, name, "job.finished", "job_1", b"{}"))


def tried(status: int | None) -> Try:
    """A try with this answer."""
    return Try(at=datetime.now(UTC), milliseconds=1, status=status, error=None, response="")


def test_an_event_that_is_handled_twice_is_one_delivery(redis: Redis, store: Deliveries) -> None:
    """The id comes from webhook and event; making it again changes nothing, whatever became of it."""
    webhook = hook(redis)
    name = deliveries.delivery_id(webhook, "1-1")
    assert name == deliveries.delivery_id(webhook, "1-1") != deliveries.delivery_id(webhook, "1-2")
    put(store, webhook, name)
    (claim,), _ = store.claim(10)
    store.settle(claim, tried(204))
    put(store, webhook, name)
    assert [each.state for each in store.page(webhook, 10)[0]] == [DeliveryState.DELIVERED]
    assert store.claim(10) == ([], None)


def test_webhooks_take_turns(redis: Redis, store: Deliveries) -> None:
    """One with many deliveries does not go before one that waits with a single one."""
    many, one = hook(redis), hook(redis)
    put(store, many, *(f"many_{number}" for number in range(20)))
    put(store, one, "one")
    time.sleep(0.002)  # turns are told apart by the millisecond
    first = store.claim(1)[0][0].delivery
    assert {first, store.claim(1)[0][0].delivery} == {"many_0", "one"}
    assert [claim.webhook for claim in store.claim(10)[0]] == [many]
    assert store.claim(10, [many])[0] == []


def test_what_is_claimed_is_not_claimed_again_before_its_lease_ends(redis: Redis) -> None:
    """A second process gets nothing; when the lease has ended it gets the same delivery, as its next try."""
    webhook = hook(redis)
    put(Deliveries(redis), webhook, "msg")
    (first,), _ = Deliveries(redis, lease=0.05).claim(10)
    assert Deliveries(redis).claim(10)[0] == []
    time.sleep(0.06)
    (second,), _ = Deliveries(redis).claim(10)
    assert (first.delivery, first.number, second.delivery, second.number) == ("msg", 1, "msg", 2)
    store = Deliveries(redis)
    assert store.settle(first, tried(500)) == ""
    assert store.settle(second, tried(200)) == "active"
    assert store.settle(first, tried(200)) == ""
    (delivery,) = store.page(webhook, 10)[0]
    assert (delivery.state, [each.status for each in delivery.log]) == (DeliveryState.DELIVERED, [200])


def test_a_delivery_whose_every_try_is_cut_off_is_dead(redis: Redis) -> None:
    """A message that kills its sender each time does not do so for ever."""
    webhook, store = hook(redis), Deliveries(redis, schedule=(0.0,), lease=0.0)
    put(store, webhook, "msg")
    assert [len(store.claim(10)[0]) for _ in range(4)] == [1, 1, 0, 0]
    assert store.page(webhook, 10)[0][0].state is DeliveryState.DEAD


def dropped(redis: Redis, webhook: str) -> int:
    """How many messages of a webhook were never made."""
    found = Webhooks(redis).get(webhook, TENANT)
    assert found is not None
    return found.dropped


def waiting(redis: Redis) -> dict[bytes, bytes]:
    """What the project's account of what waits has."""
    found: dict[bytes, bytes] = redis.hgetall(f"stockade:webhook_waiting:{TENANT}")
    return found


@pytest.mark.parametrize(("bound", "most"), [("PENDING_MAX", 3), ("PENDING_BYTES", 7)])
def test_what_waits_is_bounded_and_what_is_not_told_is_counted(
    redis: Redis, store: Deliveries, monkeypatch: pytest.MonkeyPatch, bound: str, most: int
) -> None:
    """Receivers that are away for long cost a project so much memory and no more, and their owner sees that."""
    monkeypatch.setattr(deliveries, bound, most)
    monkeypatch.setattr(deliveries, "PENDING_SHARE", 1)
    away, other = hook(redis), hook(redis)
    put(store, away, "a", "b", "c")
    more = [Message(away, name, "job.finished", "job_1", b"{}") for name in ("a", "d", "e")]
    assert store.create_all(more) == [True, False, False]
    put(store, other, "f")  # one that is away does not silence the others
    assert not store.create(Message(other, "g", "job.finished", "job_1", b"{}"))
    assert (dropped(redis, away), dropped(redis, other)) == (2, 1)
    for _ in range(2):
        for claim in store.claim(10)[0]:
            store.settle(claim, tried(200))
    put(store, other, "h")


def test_what_waits_no_more_makes_room(redis: Redis, store: Deliveries) -> None:
    """However it ends: delivered, dead, expired, cut off or with its webhook; and once however often it is begun."""
    webhook, other = hook(redis), hook(redis)
    put(store, webhook, "a", "b")
    put(store, other, "c")
    assert waiting(redis) == {b"a": b"2", b"b": b"2", b"c": b"2", b"total": b"6"}
    redis.delete("stockade:delivery:b")
    for claim in store.claim(10)[0]:
        store.settle(claim, tried(200))
    assert store.claim(10)[0] == []
    assert waiting(redis) == {}
    for _ in range(2):
        assert store.redeliver(webhook, "a", TENANT)
    assert waiting(redis) == {b"a": b"2", b"total": b"2"}
    assert [len(Deliveries(redis, schedule=(), lease=0.0).claim(10)[0]) for _ in range(2)] == [1, 0]
    assert waiting(redis) == {}
    put(store, other, "d")
    assert Webhooks(redis).delete(other, TENANT)
    assert waiting(redis) == {}


def test_many_are_made_in_one_exchange(
    redis: Redis, store: Deliveries, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not in one for each: nobody else's wait for so many round trips."""
    webhook = hook(redis)
    sent: list[int] = []
    send = AbstractConnection.send_packed_command

    def counted(*args: Any, **more: Any) -> None:
        sent.append(1)
        send(*args, **more)

    monkeypatch.setattr(AbstractConnection, "send_packed_command", counted)
    made = store.create_all(Message(webhook, f"m{n}", "job.finished", "j", b"{}") for n in range(50))
    assert made == [True] * 50
    assert 1 <= len(sent) <= 3  # whether the script is known, its text, and the fifty


def test_the_log_is_bounded(redis: Redis, store: Deliveries, monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest of what was delivered goes, and nothing of it stays; everything goes after its retention."""
    monkeypatch.setattr(deliveries, "LOG_MAX", 2)
    webhook = hook(redis)
    put(store, webhook, "a", "b", "c")
    for _ in range(3):
        (claim,), _ = store.claim(1)
        store.settle(claim, tried(200))
    assert [each.id for each in store.page(webhook, 10)[0]] == ["c", "b"]
    assert {key.decode() for key in redis.keys("stockade:delivery:*")} == {
        "stockade:delivery:b",
        "stockade:delivery:c",
    }
    assert 0 < redis.ttl("stockade:delivery:b") <= deliveries.RETENTION


def test_an_expired_delivery_is_forgotten(redis: Redis, store: Deliveries) -> None:
    """What waited for longer than it is kept is neither sent nor listed."""
    webhook = hook(redis)
    put(store, webhook, "a", "b")
    redis.delete("stockade:delivery:a")
    assert [each.delivery for each in store.claim(10)[0]] == ["b"]
    assert [each.id for each in store.page(webhook, 10)[0]] == ["b"]
    assert redis.zcard(f"stockade:webhook:{webhook}:due") == 1


def test_a_webhook_that_is_deleted_while_it_is_told_stays_gone(redis: Redis, store: Deliveries) -> None:
    """What comes of the request is not written down anywhere."""
    webhook = hook(redis)
    put(store, webhook, "a")
    (claim,), _ = store.claim(10)
    assert Webhooks(redis).delete(webhook, TENANT)
    before = redis.keys("*")
    assert store.settle(claim, tried(500)) == ""
    assert Webhooks(redis).change(webhook, TENANT, {"state": "active"}) is None
    assert sorted(redis.keys("*")) == sorted(before)


def test_secrets_are_not_in_what_is_shown(redis: Redis, store: Deliveries) -> None:
    """A claim that gets into a log does not carry the secret there."""
    webhook = hook(redis)
    put(store, webhook, "a")
    (claim,), _ = store.claim(10)
    assert claim.secrets[0].startswith("whsec_")
    assert "whsec_" not in repr(claim)


def test_the_claim_says_when_to_come_back(redis: Redis) -> None:
    """Nobody has to ask in a loop: the time until something is due is in the answer."""
    store = Deliveries(redis, schedule=(100.0,))
    assert store.claim(10) == ([], None)
    webhook = hook(redis)
    put(store, webhook, "a")
    (claim,), _ = store.claim(10)
    store.settle(claim, tried(500))
    claimed, wait = store.claim(10)
    assert claimed == []
    assert wait is not None and wait == pytest.approx(100, rel=deliveries.JITTER + 0.1)


def test_an_event_is_read_as_it_was_written() -> None:
    """An entry of the stream is an event; one that lacks something, or has a state that is none, is an error."""
    fields = {
        b"job": b"j",
        b"tenant": b"t",
        b"state": b"finished",
        b"outcome": b"",
        b"attempt": b"2",
        b"at": b"1000",
    }
    event = events.read(b"1-0", fields)
    assert (event.type, event.job, event.outcome, event.attempt) == (EventType.FINISHED, "j", None, 2)
    assert event.at == datetime(1970, 1, 1, 0, 0, 1, tzinfo=UTC)
    for wrong in ({b"state": b"dreaming"}, {b"attempt": b"x"}):
        with pytest.raises(ValueError):
            events.read(b"1-0", fields | wrong)
    with pytest.raises(ValueError, match="no field"):
        events.read(b"1-0", {})
