"""The audit log: newest first, page by page, bounded, without secrets."""

import json
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from redis import Redis

from jobs import audit, keys, tenants
from jobs.audit import ENTRIES, CursorError, key_actor, page, record


def fill(redis: Redis, *actions: str, tenant: str = "tenant_a") -> None:
    """One entry for each action, in this order."""
    for number, action in enumerate(actions):
        record(redis, tenant, audit.OPERATOR, action, number=number)


def numbers(found: audit.Page) -> list[Any]:
    """Which entries a page has."""
    return [entry.about["number"] for entry in found.entries]


def test_what_is_recorded_is_read(redis: Redis) -> None:
    """Time by the server's clock, actor, action and particulars; in that tenant's log and no other."""
    record(redis, "tenant_a", key_actor("0123"), "job.refused", rules=["image"], count=2, deep={"a": None})
    [entry] = page(redis, "tenant_a", limit=10).entries
    assert (entry.actor, entry.action) == ("key:0123", "job.refused")
    assert entry.about == {"rules": ["image"], "count": 2, "deep": "an object of 1 keys"} | {
        "deep": {"a": None}
    }
    assert abs(datetime.now(UTC) - entry.at) < timedelta(minutes=1)
    assert page(redis, "tenant_b", limit=10).entries == ()


def test_pages_follow_each_other_without_gap_or_repeat(redis: Redis) -> None:
    """Newest first, to the end, whatever comes in meanwhile."""
    fill(redis, *["job.admitted"] * 7)
    time.sleep(0.002)  # of one millisecond, jobs and others alternate
    seen, cursor = [], None
    while True:
        found = page(redis, "tenant_a", limit=3, cursor=cursor)
        seen += numbers(found)
        cursor = found.next_cursor
        if cursor is None:
            break
        fill(redis, "key.created")
    assert seen == [6, 5, 4, 3, 2, 1, 0]


def test_a_full_last_page_is_the_last(redis: Redis) -> None:
    """No cursor leads to an empty page."""
    fill(redis, *["job.admitted"] * 3)
    assert page(redis, "tenant_a", limit=3).next_cursor is None


def test_an_action_is_found_by_its_beginning(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    """`job` is every action of jobs, over however many others; half a word is none."""
    monkeypatch.setattr(audit, "_BATCH", 2)
    fill(redis, "job.refused", *["key.created"] * 5, "job.admitted", "jobs.other")
    assert numbers(page(redis, "tenant_a", limit=10, action="job")) == [6, 0]
    assert numbers(page(redis, "tenant_a", limit=1, action="job")) == [6]
    assert page(redis, "tenant_a", limit=1, action="job").next_cursor is not None
    assert numbers(page(redis, "tenant_a", limit=10, action="job.refused")) == [0]
    assert numbers(page(redis, "tenant_a", limit=10, action="jo")) == []


def test_time_bounds_the_log(redis: Redis) -> None:
    """From inclusive, to exclusive; a cursor within them goes on."""
    start = datetime(2026, 11, 23, tzinfo=UTC)
    for number in range(4):
        entry = {"actor": "service", "action": "a.b", "about": json.dumps({"number": number})}
        redis.xadd("stockade:audit:tenant_a", entry, id=f"{int(start.timestamp() + number) * 1000}-0")
    second = timedelta(seconds=1)
    bounds = {"since": start + second, "until": start + 3 * second}
    assert numbers(page(redis, "tenant_a", limit=10, **bounds)) == [2, 1]
    first = page(redis, "tenant_a", limit=1, **bounds)
    assert numbers(page(redis, "tenant_a", limit=10, cursor=first.next_cursor, **bounds)) == [1]
    assert numbers(page(redis, "tenant_a", limit=10, until=datetime(1970, 1, 1, tzinfo=UTC))) == []


@pytest.mark.parametrize(
    "cursor",
    [
        "",
        "x",
        "1",
        "1-",
        "-1-1",
        "1-1-1",
        "0-0",
        f"{1 << 64}-0",
        "+",
        "(1-1",
        "1-1\n",
        "\N{ARABIC-INDIC DIGIT ONE}-0",
    ],
)
def test_a_made_up_cursor_is_refused(redis: Redis, cursor: str) -> None:
    """Nothing but an id gets into the command."""
    with pytest.raises(CursorError):
        page(redis, "tenant_a", limit=1, cursor=cursor)


def test_no_secret_gets_into_the_log(redis: Redis) -> None:
    """Keys of ours and signing secrets are struck out wherever they stand, also in lists and names."""
    key = keys.create_key(redis, tenants.create_tenant(redis, "acme"))
    secret = key.split("_", 2)[2]
    signing = "whsec_" + "c2VjcmV0" * 4
    texts = [key, f"it was {key}, and {signing}"]
    record(redis, "tenant_a", "service", "key.created", text=texts[1], many=texts, deep={key: [key]})
    stored = repr(redis.xrange("stockade:audit:tenant_a"))
    assert secret not in stored
    assert "c2VjcmV0" not in stored
    assert key.split("_")[1] in stored


def test_an_entry_is_small_whatever_is_said(redis: Redis) -> None:
    """Texts, lists, objects and the number of facts are cut; what is no JSON is named."""
    long = "x" * 100_000
    about = {f"fact{n}": [long] * 1000 for n in range(1000)}
    record(redis, "tenant_a", "service", "a.b", **about)
    record(redis, "tenant_a", "service", "a.b", what=object(), number=float("nan"), lone="\ud800")
    assert redis.memory_usage("stockade:audit:tenant_a") < 200_000
    entry = page(redis, "tenant_a", limit=1).entries[0]
    assert entry.about == {"what": "a value of type object", "number": "nan", "lone": "\\ud800"}


def test_a_log_keeps_the_latest_entries(redis: Redis) -> None:
    """The oldest go when there are too many."""
    with redis.pipeline(transaction=False) as pipe:
        for _ in range(ENTRIES + 500):
            pipe.xadd("stockade:audit:tenant_a", {"actor": "service", "action": "a.b", "about": "{}"})
        pipe.execute()
    fill(redis, "key.created")
    assert redis.xlen("stockade:audit:tenant_a") < ENTRIES + 200


@pytest.mark.parametrize(
    ("actor", "action"),
    [
        ("somebody", "job.refused"),
        ("key:", "job.refused"),
        ("key:a b", "job.refused"),
        ("service", "refused"),
        ("service", "job.Refused\n"),
    ],
)
def test_an_entry_has_an_actor_and_an_action(redis: Redis, actor: str, action: str) -> None:
    """What does not say who and what is a defect that says so at once."""
    with pytest.raises(ValueError, match="not an actor"):
        record(redis, "tenant_a", actor, action)


def test_news_come_after_what_is_known(redis: Redis) -> None:
    """Oldest first, so that they can be printed as they come."""
    fill(redis, "a.b", "a.b")
    known = audit.position(redis, "tenant_a")
    assert audit.after(redis, "tenant_a", known) == ([], known)
    fill(redis, "job.c", "a.c", "job.d")
    entries, reached = audit.after(redis, "tenant_a", known)
    assert {entry.action for entry in entries} == {"job.c", "a.c", "job.d"}
    assert [entry.at for entry in entries] == sorted(entry.at for entry in entries)
    assert audit.after(redis, "tenant_a", reached) == ([], reached)


def test_jobs_do_not_drive_out_what_was_done_with_keys(redis: Redis) -> None:
    """However many jobs somebody submits, what else was done stays, and is found among them."""
    fill(redis, "key.created")
    with redis.pipeline(transaction=False) as pipe:
        for number in range(ENTRIES + 500):
            fields = {"actor": "service", "action": "job.admitted", "about": json.dumps({"number": number})}
            pipe.xadd("stockade:audit:tenant_a:jobs", fields, maxlen=ENTRIES, approximate=True)
        pipe.execute()
    fill(redis, "webhook.created", "job.refused")
    assert [entry.action for entry in page(redis, "tenant_a", limit=10, action="key").entries] == [
        "key.created"
    ]
    newest = [entry.action for entry in page(redis, "tenant_a", limit=3).entries]
    assert sorted(newest) == ["job.admitted", "job.refused", "webhook.created"]


def test_both_streams_are_read_as_one(redis: Redis) -> None:
    """In the order of time, also of entries of one millisecond, each once and under an id of its own."""
    for moment in range(1, 5):
        for number in range(3):
            for key in ("stockade:audit:tenant_a", "stockade:audit:tenant_a:jobs"):
                entry = {
                    "actor": "service",
                    "action": "a.b",
                    "about": json.dumps({"number": [moment, number]}),
                }
                redis.xadd(key, entry, id=f"{moment}-{number}")
    seen: list[audit.Entry] = []
    cursor = None
    for _ in range(24):
        found = page(redis, "tenant_a", limit=1, cursor=cursor)
        seen += found.entries
        cursor = found.next_cursor
    assert cursor is None
    assert len({entry.id for entry in seen}) == 24
    assert [entry.about["number"] for entry in seen[::2]] == [[m, n] for m in (4, 3, 2, 1) for n in (2, 1, 0)]
    assert [entry.about for entry in seen[::2]] == [entry.about for entry in seen[1::2]]
    assert seen == list(page(redis, "tenant_a", limit=100).entries)


def test_a_search_that_finds_nothing_is_bounded(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page ends after so many entries, whatever they are; its cursor leads to what is before them."""
    monkeypatch.setattr(audit, "LOOKED_AT_MAX", 4)
    fill(redis, "key.made", *["key.created"] * 9)
    first = page(redis, "tenant_a", limit=5, action="key.made")
    assert first.entries == ()
    second = page(redis, "tenant_a", limit=5, action="key.made", cursor=first.next_cursor)
    assert second.entries == ()
    third = page(redis, "tenant_a", limit=5, action="key.made", cursor=second.next_cursor)
    assert (numbers(third), third.next_cursor) == ([0], None)
