"""News: kept for projects with webhooks alone, taken in turns, told at least once, bounded for each project."""

from collections.abc import Iterator

import pytest
from redis import Redis

from jobs.events import STREAM, EventType, news_keys
from jobs.news import CHANNEL, Batch, News
from jobs.settings import Settings
from jobs.store import connect
from jobs.webhooks import Webhooks
from tests.news import announce

MOST = 20_000  # events of one project that wait


@pytest.fixture
def redis(redis_url: str) -> Iterator[Redis]:
    """A client of an empty database that no application which is still served looks at."""
    with connect(Settings(redis=f"{redis_url}?db=1")) as client:
        yield client


def hook(redis: Redis, project: str, *events: EventType) -> str:
    """The id of a new webhook."""
    made = Webhooks(redis).create(project, "https://hooks.example/", events or (EventType.FINISHED,), "")
    assert made is not None
    return made[0].id


def taken(news: News) -> Batch:
    """The next batch, which is to be there."""
    batch = news.take()
    assert isinstance(batch, Batch)
    return batch


def test_what_nobody_is_told_of_is_not_news(redis: Redis) -> None:
    """Events of a project without webhooks are in the stream of all events alone."""
    announce(redis, "job_1", "a", "finished")
    assert News(redis).take() is None
    assert redis.keys("*") == [STREAM.encode()]
    webhook = hook(redis, "a")
    announce(redis, "job_2", "a", "finished")
    batch = taken(News(redis))
    assert (batch.project, [fields[b"job"] for _, fields in batch.entries]) == ("a", [b"job_2"])
    announce(redis, "job_3", "a", "finished")
    assert Webhooks(redis).delete(webhook, "a")
    assert redis.exists(*news_keys("a"), "stockade:told") == 0
    announce(redis, "job_4", "a", "finished")
    assert News(redis).take() is None
    assert redis.xlen(STREAM) == 4


def test_projects_take_turns(redis: Redis) -> None:
    """Whoever has much does not go before one that came later with little."""
    news = News(redis, batch=10)
    for project in "ab":
        hook(redis, project)
    announce(redis, "job_a", "a", "finished", times=25)
    announce(redis, "job_b", "b", "finished")
    order = []
    while isinstance(batch := news.take(), Batch):
        order.append((batch.project, len(batch.entries)))
        news.told(batch)
    assert sorted(order[:2]) == [("a", 10), ("b", 1)]
    assert order[2:] == [("a", 10), ("a", 5)]
    assert news.take() is None


def test_what_is_taken_is_not_taken_again_before_its_lease_ends(redis: Redis) -> None:
    """A second taker gets nothing but the time until then; what came meanwhile is not lost when the first is done."""
    hook(redis, "a")
    announce(redis, "job_1", "a", "finished")
    first = taken(News(redis))
    wait = News(redis).take()
    assert isinstance(wait, float) and 0 < wait <= 30
    announce(redis, "job_2", "a", "finished")
    assert isinstance(News(redis).take(), float)
    News(redis).told(first)
    assert [fields[b"job"] for _, fields in taken(News(redis, lease=0.0)).entries] == [b"job_2"]
    again = taken(News(redis))
    News(redis).told(again)
    News(redis).told(first)
    assert News(redis).take() is None


def test_news_are_announced_when_there_were_none(redis: Redis) -> None:
    """Whoever waits hears of the first, and not of each."""
    hook(redis, "a")
    with redis.pubsub() as channel:
        channel.subscribe(CHANNEL)
        assert channel.get_message(timeout=5)["type"] == "subscribe"
        announce(redis, "job_1", "a", "finished", times=3)
        assert channel.get_message(timeout=5)["data"] == b"a"
        assert channel.get_message() is None


def test_what_a_project_has_too_much_is_its_own_loss_and_counted_once(redis: Redis) -> None:
    """Beyond the bound events are not news; its webhooks that wanted them say so, and others' lose nothing."""
    ends, starts = hook(redis, "b"), hook(redis, "b", EventType.RUNNING)
    hook(redis, "a")
    announce(redis, "job_a", "a", "finished")
    announce(redis, "job_b", "b", "finished", times=MOST + 3)
    announce(redis, "job_b", "b", "running")
    news = News(redis, lease=0.0)
    first = taken(news)
    assert (first.project, len(first.entries), first.missed) == ("a", 1, {})
    news.told(first)
    batch = taken(news)
    assert batch.missed == {EventType.FINISHED: 3, EventType.RUNNING: 1}
    for _ in range(2):
        news.missed(batch, EventType.FINISHED, [ends])
    news.missed(batch, EventType.RUNNING, [starts])
    assert {each.id: each.dropped for each in Webhooks(redis).of("b")} == {ends: 3, starts: 1}
    assert taken(news).missed == {}
    assert redis.xlen(news_keys("b")[1]) == MOST
