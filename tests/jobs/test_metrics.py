"""Metrics: counted in memory, summed in Redis, whatever becomes of it."""

import threading
import time
from pathlib import Path

import pytest
from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.retry import Retry

from jobs.measures import COUNTED, MEASURES, Kind
from jobs.metrics import KEY, OTHER, SERIES_MAX, Metrics, stored
from jobs.metrics_reference import reference

PAGE = Path(__file__).parents[2] / "docs" / "metrics.md"
FINISHED = MEASURES["jobs_finished_total"]
WAIT = MEASURES["queue_wait_seconds"]


def test_the_page_is_what_the_measures_say() -> None:
    """docs/metrics.md is fresh: make it again by `python -m jobs.metrics_reference`."""
    assert PAGE.read_text() == reference()


@pytest.mark.parametrize("measure", MEASURES.values(), ids=MEASURES)
def test_names_keep_to_the_conventions(measure: object) -> None:
    """Counters end in _total, histograms in their unit, buckets rise, and no label can name a tenant."""
    assert measure.name.endswith("_total") == (measure.kind is Kind.COUNTER)
    assert measure.name.endswith("_seconds") == (measure.kind is Kind.HISTOGRAM)
    assert bool(measure.buckets) == (measure.kind is Kind.HISTOGRAM)
    assert list(measure.buckets) == sorted(set(measure.buckets))
    assert measure.help.endswith(".") or measure.kind is Kind.GAUGE
    assert not {"tenant", "key", "job", "name"} & set(measure.labels)


def test_processes_add_up(redis: Redis) -> None:
    """What several processes count is one sum; flushing again adds nothing."""
    for _ in range(2):
        process = Metrics()
        process.count("jobs_finished_total", outcome="exited", pool="default")
        process.count("jobs_finished_total", 2, outcome="cancelled", pool="default")
        assert process.flush(redis)
        assert process.flush(redis)
    assert stored(redis)[FINISHED] == {("exited", "default"): {"": 2.0}, ("cancelled", "default"): {"": 4.0}}


def test_a_histogram_counts_each_value_in_its_bucket(redis: Redis) -> None:
    """A value on a bound belongs to it, one above all to +Inf; nothing is below zero, and NaN is no value."""
    process = Metrics()
    for value in (0.5, 0.50001, 1e9, -3.0, float("nan"), float("inf")):
        process.observe("queue_wait_seconds", value, pool="default")
    process.flush(redis)
    parts = dict(stored(redis)[WAIT]["default",])
    assert parts.pop("sum") == pytest.approx(1e9 + 1.00001)
    assert parts == {"0.5": 1, "1": 1, "+Inf": 1, "0.001": 1}


def test_time_is_measured_even_of_what_fails(redis: Redis) -> None:
    """A phase that raises has taken its time."""
    process = Metrics()
    with pytest.raises(ValueError), process.timed("release_seconds"):
        time.sleep(0.002)
        raise ValueError
    process.flush(redis)
    assert stored(redis)[MEASURES["release_seconds"]][()]["sum"] > 0.001


def test_without_redis_nothing_is_lost(redis: Redis) -> None:
    """A flush that fails raises nothing and keeps all; the next one that succeeds brings it, once."""
    process = Metrics()
    gone = Redis(unix_socket_path="/nonexistent/redis.sock", retry=Retry(NoBackoff(), 0))
    process.count("jobs_finished_total", outcome="exited", pool="default")
    assert process.flush(gone) is False
    process.count("jobs_finished_total", outcome="exited", pool="default")
    assert process.flush(gone) is False
    assert process.flush(redis)
    assert process.flush(redis)
    assert stored(redis)[FINISHED]["exited", "default"] == {"": 2.0}


def test_a_spoilt_field_spoils_itself_only(redis: Redis) -> None:
    """A field that holds no number is not counted up; all others are, once, flush after flush."""
    redis.hset(KEY, "jobs_finished_total|exited|default", "many")
    process = Metrics()
    process.count("jobs_finished_total", outcome="exited", pool="default")
    process.count("jobs_finished_total", outcome="cancelled", pool="default")
    assert process.flush(redis)
    assert process.flush(redis)
    assert redis.hget(KEY, "jobs_finished_total|cancelled|default") == b"1"
    assert stored(redis)[FINISHED] == {("cancelled", "default"): {"": 1.0}}


def test_what_no_measure_explains_is_left_out(redis: Redis) -> None:
    """Fields of another version, or of nobody, do not get into a scrape."""
    for field in ("old_total|a", "jobs_finished_total", "jobs_finished_total|a|b|c", "slots", b"\xff|x"):
        redis.hset(KEY, field, "1")
    assert stored(redis) == {}


@pytest.mark.parametrize(
    ("name", "labels"),
    [
        ("no_such_total", {}),
        ("jobs_finished_total", {}),
        ("jobs_finished_total", {"outcome": "exited", "pool": "default", "tenant": "acme"}),
        ("queue_wait_seconds", {"pool": "default"}),
        ("slots", {}),
    ],
)
def test_what_is_not_a_counter_is_not_counted(name: str, labels: dict[str, str]) -> None:
    """A wrong name, or other labels than its own, is a defect that says so at once."""
    with pytest.raises(ValueError, match=name):
        Metrics().count(name, **labels)


@pytest.mark.parametrize("value", ["", "a|b", "a b", "a\nb", 'a"b', "a" * 101, "ä"])
def test_a_label_is_a_plain_word(redis: Redis, value: str) -> None:
    """Text of a caller's does not become a series of its own, nor break the form of a field."""
    process = Metrics()
    process.count("jobs_submitted_total", result=value)
    process.flush(redis)
    assert list(stored(redis)[MEASURES["jobs_submitted_total"]]) == [(OTHER,)]


def test_the_number_of_series_is_bounded(redis: Redis) -> None:
    """However many values a label takes, memory and scrape stay small; what is one too many still counts."""
    process = Metrics()
    for n in range(SERIES_MAX + 500):
        process.count("jobs_submitted_total", result=f"r{n}")
    process.flush(redis)
    series = stored(redis)[MEASURES["jobs_submitted_total"]]
    assert len(series) == SERIES_MAX + 1
    assert series[(OTHER,)] == {"": 500.0}
    assert sum(parts[""] for parts in series.values()) == SERIES_MAX + 500


def test_threads_count_together(redis: Redis) -> None:
    """No count is lost between threads that count and flush at once."""
    process = Metrics()

    def work() -> None:
        for n in range(200):
            process.observe("release_seconds", 0.001)
            if n % 50 == 0:
                process.flush(redis)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    process.flush(redis)
    parts = stored(redis)[MEASURES["release_seconds"]][()]
    assert sum(count for bound, count in parts.items() if bound != "sum") == 800


def test_a_lost_answer_is_an_away_redis(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    """What may have arrived is sent again: rather too much for a moment than a failure that nobody sees."""
    process = Metrics()
    process.count("live_streams_opened_total")

    def lost(*_: object, **__: object) -> None:
        raise RedisConnectionError("reset")

    with monkeypatch.context() as patch:
        patch.setattr("redis.client.Pipeline.execute", lost)
        assert process.flush(redis) is False
    assert process.flush(redis)
    assert stored(redis)[MEASURES["live_streams_opened_total"]] == {(): {"": 1.0}}


def test_every_counted_measure_can_be_counted(redis: Redis) -> None:
    """Each definition works, from counting to reading."""
    process = Metrics()
    for measure in COUNTED:
        add = process.count if measure.kind is Kind.COUNTER else process.observe
        add(measure.name, 1.0, **dict.fromkeys(measure.labels, "x"))
    process.flush(redis)
    assert set(stored(redis)) == set(COUNTED)
