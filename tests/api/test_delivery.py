"""Webhooks are told: signed, at least once whatever dies, and nobody waits for another's slow receiver."""

import asyncio
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from standardwebhooks import WebhookVerificationError

from api.delivery import AT_ONCE
from jobs import deliveries
from jobs.deliveries import DeliveryState, Message
from jobs.events import EventType, news_keys
from jobs.news import BATCH, Batch, News
from jobs.settings import Settings
from jobs.store import connect
from jobs.webhooks import WebhookState
from tests.api.receiver import TENANT, Hub, Receiver, receivers, until
from tests.news import announce

MakeReceiver = Callable[..., Receiver]


@pytest.fixture
def hub(redis_url: str) -> Iterator[Hub]:
    """Webhooks in a database of their own: the served application dispatches those of the first."""
    settings = Settings(redis=f"{redis_url}?db=1", webhook_allow="127.0.0.0/8")
    with connect(settings) as redis:
        yield Hub(settings, redis)


@pytest.fixture
def receiver() -> Iterator[MakeReceiver]:
    """Makes receivers that answer with these statuses, then with 200."""
    yield from receivers()


def test_a_message_is_verified_by_the_receivers_library(hub: Hub, receiver: MakeReceiver) -> None:
    """The end of a job is told as Standard Webhooks has it: body, headers and a signature that verifies."""
    told = receiver()
    hook, secret = hub.hook(told.url)
    hub.redis.hset(
        "stockade:job:job_1", mapping={"labels": '{"course":"c1"}', "created": 1000, "started": 2000}
    )
    hub.emit("job_1")
    hub.dispatch_until(lambda: hub.log(hook) and hub.log(hook)[0].state is DeliveryState.DELIVERED)
    (request,) = told.requests
    assert request.path == "/hook"
    assert request.headers["host"] == f"127.0.0.1:{told.port}"
    assert request.headers["content-type"] == "application/json"
    message = request.verified(secret)
    assert message["type"] == "job.finished"
    assert message["data"] == {
        "id": "job_1",
        "state": "finished",
        "outcome": "exited",
        "labels": {"course": "c1"},
        "attempt": 1,
        "created_at": "1970-01-01T00:00:01+00:00",
        "started_at": "1970-01-01T00:00:02+00:00",
        "finished_at": message["timestamp"],
    }
    with pytest.raises(WebhookVerificationError):
        request.verified("whsec_" + "A" * 43 + "=")
    (delivery,) = hub.log(hook)
    assert (delivery.id, delivery.job, delivery.tries) == (request.id, "job_1", 1)
    assert (delivery.log[0].status, delivery.log[0].response, delivery.log[0].error) == (200, "ok", None)


def test_the_verification_that_the_documentation_shows_works(hub: Hub, receiver: MakeReceiver) -> None:
    """The lines of docs/webhooks.md take a message as it is, and refuse one that was changed or is old."""
    page = (Path(__file__).parents[2] / "docs" / "webhooks.md").read_text()
    (shown,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    names: dict[str, Any] = {}
    exec(shown, names)
    verified = names["verified"]
    told = receiver()
    _, secret = hub.hook(told.url)
    hub.emit("job_1")
    hub.dispatch_until(lambda: told.requests)
    request = told.requests[0]
    assert verified(secret, request.headers, request.body) == request.verified(secret)
    with pytest.raises(ValueError, match="not signed"):
        verified(secret, request.headers, request.body + b" ")
    with pytest.raises(ValueError, match="too old"):
        verified(secret, request.headers | {"webhook-timestamp": "1"}, request.body)


def test_a_webhook_is_told_of_what_it_asked_for(hub: Hub, receiver: MakeReceiver) -> None:
    """Neither other types of events, nor those of another project, nor those from before it was made."""
    told = receiver()
    hub.emit("job_before", "finished", at=1)
    hook, _ = hub.hook(told.url, EventType.RUNNING, EventType.DELETED)
    for state in ("queued", "running", "cancelling", "finished", "deleted"):
        hub.emit("job_mine", state)
        hub.emit("job_other", state, tenant="tenant_b")
    hub.emit("job_old", "running", at=1)
    hub.emit("job_last", "deleted")
    hub.dispatch_until(lambda: any(json.loads(r.body)["data"]["id"] == "job_last" for r in told.requests))
    seen = [(each.job, each.type) for each in hub.log(hook)]
    assert seen == [("job_last", "job.deleted"), ("job_mine", "job.deleted"), ("job_mine", "job.running")]


def test_anything_but_2xx_is_tried_again_under_the_same_id(hub: Hub, receiver: MakeReceiver) -> None:
    """An error and a redirect, which is not followed, are tries; the third, signed anew, succeeds."""
    inside = receiver()
    told = receiver(500, 302, headers={"location": inside.url})
    hook, secret = hub.hook(told.url)
    hub.emit("job_1")
    hub.dispatch_until(lambda: hub.log(hook) and hub.log(hook)[0].state is DeliveryState.DELIVERED)
    assert len({request.id for request in told.requests}) == 1
    assert [request.verified(secret)["data"]["id"] for request in told.requests] == ["job_1"] * 3
    assert [each.status for each in hub.log(hook)[0].log] == [500, 302, 200]
    assert inside.requests == []


def test_a_dead_letter_can_be_delivered_again(hub: Hub, receiver: MakeReceiver) -> None:
    """When the last try has failed the delivery is dead; redelivery gives it all its tries again, under its id."""
    told = receiver(500, 500, 500, 500)
    hook, _ = hub.hook(told.url)
    hub.emit("job_1")
    hub.dispatch_until(lambda: hub.log(hook) and hub.log(hook)[0].state is DeliveryState.DEAD)
    dead = hub.log(hook)[0]
    assert (dead.tries, dead.due_at) == (3, None)
    found = hub.webhooks.get(hook.id, TENANT)
    assert found is not None and found.failing_since is not None and found.waiting == 0
    assert hub.deliveries.redeliver(hook.id, dead.id, "tenant_b") is None
    assert hub.deliveries.redeliver(hook.id, dead.id, TENANT)
    hub.dispatch_until(lambda: hub.log(hook)[0].state is DeliveryState.DELIVERED)
    assert {request.id for request in told.requests} == {dead.id}
    assert [each.status for each in hub.log(hook)[0].log] == [500, 500, 500, 500, 200]
    found = hub.webhooks.get(hook.id, TENANT)
    assert found is not None and found.failing_since is None


def test_a_sender_that_dies_is_followed_by_another(hub: Hub, receiver: MakeReceiver) -> None:
    """Killed between sending and writing it down, the message is sent again under the same id, then written down."""
    hub.lease = 0.3
    told = receiver()
    told.open.clear()
    hook, _ = hub.hook(told.url)
    hub.emit("job_1")
    hub.dispatch_until(lambda: len(told.requests) == 1)  # ends while the receiver has not answered
    assert hub.log(hook)[0].state is DeliveryState.PENDING
    told.open.set()
    hub.dispatch_until(lambda: hub.log(hook)[0].state is DeliveryState.DELIVERED)
    first, *others = told.requests
    assert others and {each.id for each in others} == {first.id}


def test_an_event_that_a_dead_process_had_read_is_told(hub: Hub, receiver: MakeReceiver) -> None:
    """What it took and did not tell is taken by another when the lease ends, and told once."""
    told = receiver()
    hook, _ = hub.hook(told.url)
    hub.emit("job_1")
    assert isinstance(News(hub.redis, lease=0.1).take(), Batch)
    hub.dispatch_until(lambda: hub.log(hook) and hub.log(hook)[0].state is DeliveryState.DELIVERED)
    assert [each.job for each in hub.log(hook)] == ["job_1"]
    assert hub.redis.exists(news_keys(TENANT)[0]) == 0


def test_one_project_s_flood_delays_nobody_else(hub: Hub, receiver: MakeReceiver) -> None:
    """A thousand events of one, and many of one without webhooks, do not come before a single one of another."""
    told = receiver()
    hub.hook("https://nowhere.invalid/", *EventType, tenant="tenant_b")
    hook, _ = hub.hook(told.url)
    announce(hub.redis, "job_many", "tenant_b", "queued", times=1000)
    announce(hub.redis, "job_more", "tenant_c", "queued", times=1000)
    hub.emit("job_mine")
    hub.dispatch_until(lambda: hub.log(hook))
    number = hub.redis.hget(f"stockade:delivery:{hub.log(hook)[0].id}", "number")
    assert number is not None and int(number) <= BATCH + 1


def test_several_processes_send_each_message_once(hub: Hub, receiver: MakeReceiver) -> None:
    """Three dispatchers share the events and the sending: nothing is missing and nothing comes twice."""
    told = receiver()
    hook, _ = hub.hook(told.url)
    for number in range(60):
        hub.emit(f"job_{number}")

    async def run() -> None:
        async with hub.dispatching(), hub.dispatching(), hub.dispatching():
            await until(lambda: all(each.state is DeliveryState.DELIVERED for each in hub.log(hook)))
            await until(lambda: len(hub.log(hook)) == 60)
            await until(lambda: all(each.state is DeliveryState.DELIVERED for each in hub.log(hook)))

    asyncio.run(run())
    assert sorted(json.loads(request.body)["data"]["id"] for request in told.requests) == sorted(
        f"job_{number}" for number in range(60)
    )


def test_a_slow_receiver_holds_up_nobody(hub: Hub, receiver: MakeReceiver) -> None:
    """While one project's receiver answers nothing, another's gets all of its messages."""
    stuck, quick = receiver(), receiver()
    stuck.open.clear()
    hub.hook(stuck.url)
    hub.hook(quick.url, tenant="tenant_b")
    for number in range(150):
        hub.emit(f"job_{number}")
    for number in range(30):
        hub.emit(f"job_{number}", tenant="tenant_b")
    hub.dispatch_until(lambda: len(quick.requests) == 30)
    assert 1 <= stuck.most_at_once <= AT_ONCE
    assert len(stuck.requests) <= AT_ONCE


def test_a_receiver_that_fails_has_one_request_at_a_time(hub: Hub, receiver: MakeReceiver) -> None:
    """What is broken is not flooded: after a failure its tries come one after the other, until one succeeds."""
    told = receiver(500)
    hook, _ = hub.hook(told.url)
    hub.emit("job_first")
    hub.dispatch_until(lambda: hub.log(hook) and hub.log(hook)[0].log)
    told.open.clear()
    for number in range(10):
        hub.emit(f"job_{number}")

    async def run() -> None:
        async with hub.dispatching():
            await until(lambda: told.at_once == 1)
            await until(lambda: len(hub.log(hook)) == 11)
            assert told.at_once == 1
            told.open.set()
            await until(lambda: all(each.state is DeliveryState.DELIVERED for each in hub.log(hook)))

    asyncio.run(run())


def test_gone_pauses_the_webhook_and_what_waits_is_kept(hub: Hub, receiver: MakeReceiver) -> None:
    """410 says that no more is wanted: nothing is sent until the owner resumes, and that is told in words."""
    told = receiver(410)
    hook, _ = hub.hook(told.url)
    hub.emit("job_1")
    hub.dispatch_until(lambda: hub.log(hook) and hub.log(hook)[0].state is DeliveryState.DEAD)
    paused = hub.webhooks.get(hook.id, TENANT)
    assert paused is not None
    assert (paused.state, paused.reason) == (WebhookState.PAUSED, "It answered 410 Gone.")
    assert not hub.deliveries.create(Message(hook.id, "msg_x", "job.finished", "job_2", b"{}"))
    resumed = hub.webhooks.change(hook.id, TENANT, {"state": "active"})
    assert resumed is not None
    assert (resumed.state, resumed.reason, resumed.failing_since) == (WebhookState.ACTIVE, None, None)


def test_a_webhook_that_fails_for_long_is_paused(
    hub: Hub, receiver: MakeReceiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its state and reason say so; once it is resumed, what was waiting is sent."""
    monkeypatch.setattr(deliveries, "PAUSE_AFTER", 0)
    told = receiver(500, 500)
    hook, _ = hub.hook(told.url)
    hub.emit("job_1")

    def state() -> Any:
        found = hub.webhooks.get(hook.id, TENANT)
        assert found is not None
        return found.state

    hub.dispatch_until(lambda: state() is WebhookState.PAUSED)
    assert hub.log(hook)[0].state is DeliveryState.PENDING
    assert len(told.requests) == 2
    hub.webhooks.change(hook.id, TENANT, {"state": "active"})
    hub.dispatch_until(lambda: hub.log(hook)[0].state is DeliveryState.DELIVERED)


def test_after_a_rotation_both_secrets_verify(hub: Hub, receiver: MakeReceiver) -> None:
    """A receiver may change to the new secret at any time within the grace."""
    told = receiver()
    hook, old = hub.hook(told.url)
    new = hub.webhooks.rotate(hook.id, TENANT)
    assert new is not None and new != old
    hub.emit("job_1")
    hub.dispatch_until(lambda: told.requests)
    request = told.requests[0]
    assert request.verified(old) == request.verified(new)
    hub.redis.hset(f"stockade:webhook:{hook.id}", "old_until", 1)
    hub.emit("job_2")
    hub.dispatch_until(lambda: len(told.requests) == 2)
    told.requests[1].verified(new)
    with pytest.raises(WebhookVerificationError):
        told.requests[1].verified(old)


def test_the_answer_that_is_kept_is_small(hub: Hub, receiver: MakeReceiver) -> None:
    """A receiver that answers with megabytes, and not in UTF-8, leaves a kilobyte of text in the log."""
    told = receiver(content=b"\xff" * 3_000_000)
    hook, _ = hub.hook(told.url)
    hub.emit("job_1")
    hub.dispatch_until(lambda: hub.log(hook) and hub.log(hook)[0].state is DeliveryState.DELIVERED)
    assert hub.log(hook)[0].log[0].response == "\N{REPLACEMENT CHARACTER}" * 1024


def test_dispatching_survives_an_emptied_redis(hub: Hub, receiver: MakeReceiver) -> None:
    """What comes then is told."""
    told = receiver()

    async def run() -> None:
        async with hub.dispatching():
            hub.hook(told.url)
            hub.emit("job_0")
            await until(lambda: not hub.redis.exists(news_keys(TENANT)[0]))
            hub.redis.flushdb()
            hub.hook(told.url)
            hub.emit("job_1")
            await until(lambda: told.requests)

    asyncio.run(run())


def test_an_entry_that_is_no_event_is_passed_over(hub: Hub, receiver: MakeReceiver) -> None:
    """What nobody understands does not keep others from being told."""
    told = receiver()
    hub.hook(told.url)
    hub.redis.xadd(news_keys(TENANT)[1], {"nonsense": "1"})
    hub.emit("job_x", state="dreaming")
    hub.emit("job_1")
    hub.dispatch_until(lambda: told.requests)
    assert json.loads(told.requests[0].body)["data"]["id"] == "job_1"


def test_an_idle_dispatcher_writes_nothing(hub: Hub) -> None:
    """Where there are neither events nor webhooks, Redis is left as it is."""

    async def run() -> None:
        async with hub.dispatching() as dispatcher:
            dispatcher.wake()
            await asyncio.sleep(0.1)

    asyncio.run(run())
    assert hub.redis.keys("*") == []
