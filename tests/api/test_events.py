"""Events over HTTP: prompt, in order, resumable, bounded, and only for the job's owner."""

import json
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
import redis

from api import connection
from jobs import keys, tenants
from jobs.job import Attempt, JobResult, Tenant
from jobs.job_event import Stream
from jobs.live import LiveOutput, Piece, Pieces
from jobs.outcome import OutcomeKind, Output
from jobs.settings import Settings
from jobs.store import Store, connect
from tests.api.conftest import Served, Worker, step_result
from tests.dispatch import open_window

TRUE = {"command": ["true"]}
BUSY = 20.0  # seconds that something may take on a busy machine


@dataclass
class Event:
    """An event as a client reads it."""

    id: str
    name: str
    data: dict[str, Any]


def parsed(lines: Iterator[str]) -> Iterator[Event]:
    """The events of a stream, as the HTML standard reads it."""
    fields: dict[str, str] = {}
    for line in lines:
        if not line and "data" in fields:
            yield Event(fields["id"], fields["event"], json.loads(fields["data"]))
        name, _, value = line.partition(": ")
        fields = {**fields, name: value} if line else {}


@contextmanager
def following(client: httpx.Client, job_id: str, after: str | None = None) -> Iterator[Iterator[Event]]:
    """The events of a job."""
    headers = {"Last-Event-ID": after} if after else {}
    with client.stream("GET", f"/v1/jobs/{job_id}/events", headers=headers, timeout=BUSY) as answer:
        assert answer.status_code == 200, answer.read()
        yield parsed(answer.iter_lines())


def all_events(client: httpx.Client, job_id: str, after: str | None = None) -> list[Event]:
    """The events of a job up to the end of the stream."""
    with following(client, job_id, after) as events:
        return list(events)


def submitted(client: httpx.Client) -> str:
    """The id of a new job."""
    return str(client.post("/v1/jobs", json=TRUE).json()["id"])


def stdout(events: list[Event]) -> str:
    """What events tell of the first step's standard output, which must follow each other."""
    text = ""
    for event in events:
        if event.name == "output" and event.data["stream"] == "stdout":
            assert event.data["offset"] == len(text.encode())
            text += event.data["text"]
    return text


@pytest.fixture
def output(redis_client: redis.Redis) -> LiveOutput:
    """The worker's way to publish."""
    return LiveOutput(redis_client)


@dataclass
class Running:
    """A job that runs, and a worker that publishes what it writes."""

    attempt: Attempt
    output: LiveOutput
    store: Store
    written: bytes = b""

    @property
    def id(self) -> str:
        """The job's id."""
        return self.attempt.job.id

    def write(self, data: bytes) -> None:
        """The job writes to its standard output."""
        piece = Piece(self.attempt.number, 0, Stream.STDOUT, len(self.written), data)
        self.written += data
        self.output.publish([Pieces(self.id, False, 60, [piece])])

    def finish(self) -> None:
        """The job ends."""
        step = step_result(Output.of(self.written), Output.of(b""))
        assert self.store.finish(self.attempt, JobResult(outcome=step.outcome, steps=(step,)))


@pytest.fixture
def job(client: httpx.Client, worker: Worker, output: LiveOutput, store: Store) -> Running:
    """A running job."""
    return Running(worker.claim(submitted(client)), output, store)


@pytest.fixture
def only_woken(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """Streams look for news only when they are woken."""
    monkeypatch.setattr(served.services.live, "recheck", 10 * BUSY)
    monkeypatch.setattr(served.services.live, "keep_alive", 10 * BUSY)


@pytest.mark.usefixtures("only_woken")
def test_events_come_while_the_job_runs(client: httpx.Client, job: Running) -> None:
    """States first, each part of the output before the next is written, and the outcome at the end."""
    with following(client, job.id) as events:
        assert [next(events).data["state"] for _ in range(2)] == ["queued", "running"]
        for line in ("one\n", "two\n"):
            job.write(line.encode())
            event = next(events)
            assert (event.name, event.data["text"]) == ("output", line)
        job.finish()
        [last] = list(events)
    assert (last.name, last.data["state"], last.data["attempt"]) == ("finished", "finished", 1)
    assert last.data["outcome"]["kind"] == OutcomeKind.EXITED


def test_a_queued_job_is_seen_to_start(client: httpx.Client, worker: Worker) -> None:
    """Nobody announces that a job starts: it is told within a second or so all the same."""
    job_id = submitted(client)
    with following(client, job_id) as events:
        assert next(events).data["state"] == "queued"
        worker.claim(job_id)
        assert next(events).data["state"] == "running"


@pytest.mark.usefixtures("only_woken")
def test_a_cancelled_job_says_so_and_ends(client: httpx.Client, job: Running) -> None:
    """`cancelling` comes when it is asked for; a job that had not begun ends at once."""
    waiting = submitted(client)
    with following(client, job.id) as events, following(client, waiting) as others:
        assert [next(events).data["state"] for _ in range(2)] == ["queued", "running"]
        assert next(others).data["state"] == "queued"
        for job_id in (job.id, waiting):
            client.post(f"/v1/jobs/{job_id}:cancel")
        assert next(events).data["state"] == "cancelling"
        assert [event.data["outcome"]["kind"] for event in others] == ["cancelled"]


def test_a_finished_job_is_told_from_its_result(client: httpx.Client, worker: Worker) -> None:
    """What was kept, a gap where something was not, then the end; the live output is not needed."""
    job_id = submitted(client)
    worker.finish(job_id, stdout=Output.of(b"head", b"tail", 100), stderr=Output.of(b"\xff"))
    told = [(event.name, event.data) for event in all_events(client, job_id)]
    assert [name for name, _ in told] == ["state", "state", "output", "gap", "output", "output", "finished"]
    of = {"attempt": 1, "step": 0}
    assert told[2][1] == {**of, "stream": "stdout", "offset": 0, "bytes": 4, "text": "head", "base64": None}
    assert told[3][1] == {**of, "stream": "stdout", "offset": 4, "bytes": 92}
    assert told[4][1] == {**of, "stream": "stdout", "offset": 96, "bytes": 4, "text": "tail", "base64": None}
    assert told[5][1] == {**of, "stream": "stderr", "offset": 0, "bytes": 1, "text": None, "base64": "/w=="}


@pytest.mark.parametrize("expired", [False, True])
def test_whoever_comes_back_goes_on_where_he_was(
    client: httpx.Client, job: Running, redis_client: redis.Redis, expired: bool
) -> None:
    """From every event's id the rest is told, once, while the live output is there and when it is not."""
    for part in ("grüße ", "an ", "alle"):
        job.write(part.encode()[:4])
        job.write(part.encode()[4:])
    job.finish()
    whole = all_events(client, job.id)
    assert len(whole) > 5
    if expired:
        redis_client.delete(f"stockade:live:{job.id}")
    for cut, event in enumerate(whole[:-1], 1):
        rest = all_events(client, job.id, event.id)
        assert stdout(whole[:cut] + rest) == "grüße an alle"
        states = [each.data["state"] for each in whole[:cut] + rest if "state" in each.data]
        assert states == ["queued", "running", "finished"]
        assert rest[-1].id == whole[-1].id


def test_resumed_in_the_middle_of_a_running_job(client: httpx.Client, job: Running) -> None:
    """What was published while nobody listened comes first, what comes then follows."""
    job.write(b"a")
    with following(client, job.id) as events:
        last = [next(events) for _ in range(3)][-1]
    job.write(b"b")
    with following(client, job.id, last.id) as events:
        assert next(events).data["text"] == "b"
        job.write(b"c")
        assert next(events).data["text"] == "c"


def test_who_has_heard_the_end_is_sent_away(client: httpx.Client, worker: Worker) -> None:
    """204 tells an EventSource, which comes back by itself, to stay away."""
    job_id = submitted(client)
    worker.finish(job_id)
    last = all_events(client, job_id)[-1]
    answer = client.get(f"/v1/jobs/{job_id}/events", headers={"Last-Event-ID": last.id})
    assert (answer.status_code, answer.content) == (204, b"")


def test_another_tenants_job_has_no_events(served: Served, job: Running, other_key: str) -> None:
    """404, exactly as for a job that does not exist, and also with an id."""
    with served.client(other_key) as stranger:
        theirs = stranger.get(f"/v1/jobs/{job.id}/events")
        nobody = stranger.get("/v1/jobs/job_none/events")
        ended = stranger.get(f"/v1/jobs/{job.id}/events", headers={"Last-Event-ID": "1f-0-0-0"})
    assert theirs.status_code == nobody.status_code == ended.status_code == 404
    assert theirs.content == nobody.content == ended.content


def test_what_is_no_id_is_refused(client: httpx.Client, job: Running) -> None:
    """422 names the header; an empty one is none."""
    answer = client.get(f"/v1/jobs/{job.id}/events", headers={"Last-Event-ID": "yesterday"})
    assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, "Last-Event-ID")


def test_headers_let_the_events_through(client: httpx.Client, worker: Worker) -> None:
    """No cache and no proxy keeps them back, and the client is told when to come back."""
    job_id = submitted(client)
    worker.finish(job_id)
    answer = client.get(f"/v1/jobs/{job_id}/events")
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["x-accel-buffering"] == "no"
    assert answer.text.startswith("retry: 1000\n\n")


def test_what_a_program_prints_cannot_forge_an_event(client: httpx.Client, worker: Worker) -> None:
    """Line ends of every kind, escapes and NULs stay within the one line of data, which is ASCII."""
    nasty = "\n\nevent: finished\ndata: {}\n\n\r\r\x0b\x0c\x1b[2J\x00\x85\u2028\u2029é"
    job_id = submitted(client)
    worker.finish(job_id, stdout=Output.of(nasty.encode()))
    text = client.get(f"/v1/jobs/{job_id}/events").text
    assert text.isascii()
    assert text.count("\nevent: finished\n") == 1
    assert not set(text) & set(map(chr, [*range(10), *range(11, 32)]))
    assert stdout(all_events(client, job_id)) == nasty


def test_many_watch_one_job(
    client: httpx.Client, job: Running, served: Served, redis_client: redis.Redis
) -> None:
    """Twenty watchers get the same story, over one subscription, and leave nothing behind."""
    live = served.services.live
    with ThreadPoolExecutor(20) as pool:
        watching = [pool.submit(all_events, client, job.id) for _ in range(20)]
        until(lambda: live.places.taken == 20)
        for n in range(10):
            job.write(b"%d\n" % n)
        job.finish()
        stories = [each.result(BUSY) for each in watching]
    assert {stdout(story) for story in stories} == {"".join(f"{n}\n" for n in range(10))}
    until(lambda: live.places.taken == 0)
    assert live._watchers == {}
    until(lambda: redis_client.pubsub_channels("stockade:live:*") == [])


def test_who_hangs_up_frees_the_place(client: httpx.Client, job: Running, served: Served) -> None:
    """A watcher that leaves in the middle is noticed, with nothing being said meanwhile."""
    live = served.services.live
    with following(client, job.id) as events:
        next(events)
        assert live.places.taken == 1
    until(lambda: live.places.taken == 0)
    assert live._watchers == {}


def test_streams_are_bounded(
    client: httpx.Client, job: Running, served: Served, other_key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """429 when a project has its share, 503 when the process has all it takes; both say when to come back."""
    monkeypatch.setattr(served.services.live.places, "most_each", 1)
    monkeypatch.setattr(served.services.live.places, "most", 1)
    with following(client, job.id) as events, served.client(other_key) as other:
        next(events)
        mine = client.get(f"/v1/jobs/{job.id}/events")
        theirs = other.get(f"/v1/jobs/{submitted(other)}/events")
    assert (mine.status_code, mine.json()["type"]) == (429, "urn:stockade:problem:too-many-streams")
    assert (theirs.status_code, theirs.json()["component"]) == (503, "streams")
    assert mine.headers["retry-after"] == theirs.headers["retry-after"] == "1"


def test_silence_is_broken(
    client: httpx.Client, job: Running, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A comment comes when there has been nothing else for long."""
    monkeypatch.setattr(served.services.live, "keep_alive", 0.1)
    with client.stream("GET", f"/v1/jobs/{job.id}/events", timeout=BUSY) as answer:
        comments = (line for line in answer.iter_lines() if line.startswith(":"))
        assert [next(comments) for _ in range(2)] == [": keep-alive"] * 2


def test_a_stream_does_not_last_for_ever(
    client: httpx.Client, job: Running, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends without `finished`, and is to be resumed: so a key that was revoked stops working here too."""
    monkeypatch.setattr(served.services.live, "lasts", 0.2)
    told = all_events(client, job.id)
    assert [event.data["state"] for event in told] == ["queued", "running"]


def test_a_deleted_job_ends_its_streams(
    client: httpx.Client, job: Running, redis_client: redis.Redis
) -> None:
    """There is nothing more to tell; whoever comes back gets 404."""
    with following(client, job.id) as events:
        next(events)
        redis_client.delete(f"stockade:job:{job.id}")
        assert [event.name for event in events] == ["state"]


def test_streams_end_at_once_when_the_service_stops(
    settings: Settings, serving: Any, key: str, worker: Worker, output: LiveOutput, store: Store
) -> None:
    """A stop waits for no job; the client comes back to another process and goes on."""
    served = serving(settings)
    with served.client(key) as client:
        job = Running(worker.claim(submitted(client)), output, store)
        job.write(b"before ")
        with following(client, job.id) as events:
            first = [next(events) for _ in range(3)]
            begun = time.monotonic()
            stopping = threading.Thread(target=served.stop)
            stopping.start()
            assert list(events) == []
            stopping.join()
            assert time.monotonic() - begun < 4  # less than the grace that open requests get
    job.write(b"and after")
    job.finish()
    with serving(settings).client(key) as client:
        assert stdout(first + all_events(client, job.id, first[-1].id)) == "before and after"


@pytest.mark.usefixtures("only_woken")
def test_streams_outlive_a_lost_subscription(
    client: httpx.Client, job: Running, served: Served, redis_client: redis.Redis
) -> None:
    """Redis drops the connection: the stream goes on, and what was announced meanwhile is not missed."""
    with following(client, job.id) as events:
        for _ in range(2):
            next(events)
        redis_client.client_kill_filter(_type="pubsub")
        job.write(b"heard")
        assert next(events).data["text"] == "heard"
        until(lambda: served.services.live._announcements.subscribed)
        job.write(b" again")
        assert next(events).data["text"] == " again"


def test_streams_outlive_a_restart_of_redis(own_redis: Any, serving: Any) -> None:
    """Redis dies and comes back while a job is followed: the stream stays open and goes on."""
    settings = Settings(redis=own_redis.url)
    with connect(settings) as redis_client:
        open_window(redis_client)
        tenant = tenants.create_tenant(redis_client, "first")
        store, served = Store(redis_client), serving(settings)
        with served.client(keys.create_key(redis_client, tenant)) as client:
            output = LiveOutput(redis_client)
            job = Running(Worker(store).claim(submitted(client)), output, store)
            job.write(b"before ")
            with following(client, job.id) as events:
                told = [next(events) for _ in range(3)]
                own_redis.stop()
                time.sleep(1.2)  # long enough to have looked in vain
                own_redis.start()
                job.write(b"and after")
                job.finish()
                assert stdout(told + list(events)) == "before and after"


def test_who_does_not_read_is_dropped(
    served: Served, job: Running, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither buffered without end nor kept for ever: what a slow reader leaves waits, then it is cut off."""
    monkeypatch.setattr(connection, "STALL_TIME", 0.3)
    live = served.services.live
    port = int(served.url.rpartition(":")[2])
    with closing(socket.socket()) as reader:
        reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        reader.connect(("127.0.0.1", port))
        head = f"GET /v1/jobs/{job.id}/events HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\n\r\n"
        reader.sendall(head.encode())
        until(lambda: live.places.taken == 1)
        for _ in range(100):  # more than the kernel's buffers and the service's take
            job.write(b"x" * 160_000)
        until(lambda: live.places.taken == 0)


def test_places_are_counted_by_tenant(client: httpx.Client, tenant: Tenant, served: Served) -> None:
    """One that has no stream open any more is not remembered."""
    job_id = submitted(client)
    with following(client, job_id) as events:
        next(events)
        assert dict(served.services.live.places._taken) == {tenant.id: 1}
    until(lambda: dict(served.services.live.places._taken) == {})


def until(condition: Any) -> None:
    """Wait for it to become true."""
    deadline = time.monotonic() + BUSY
    while not condition():
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.01)
