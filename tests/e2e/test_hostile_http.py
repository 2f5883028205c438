"""Group I of hostile input, against the whole service: what strangers and tenants send cannot fill it, stop it or
make it talk, and what was deleted is gone."""

import json
import re
import secrets
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import pytest
from redis import Redis

from jobs import keys, tenants
from jobs.job import Tenant
from jobs.keys import Scope
from jobs.settings import Settings
from jobs.store import connect
from stockade.valkey_users import User, Users
from tests import census
from tests.e2e.service import Service, shell
from tests.stack import until

pytestmark = [pytest.mark.kernel, pytest.mark.e2e]

CRAWLING = 200
"""Connections that send nothing worth it, at one time."""
GROWTH = 96 << 20
"""Bytes that the API may grow by; what is sent at it would be gigabytes."""
CHUNK = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
SENT_MAX = 1 << 30
"""Bytes after which an endless body is believed to be read without end."""


@pytest.fixture
def store(service: Service) -> Iterator[Redis]:
    """The service's Redis, as the operator has it."""
    with connect(Settings(redis=Users.load(service.up.state).url(User.ADMIN))) as redis:
        yield redis


@pytest.fixture
def tenant(store: Redis) -> Tenant:
    """A project of this test's own."""
    return tenants.create_tenant(store, f"hostile-{secrets.token_hex(4)}")


@pytest.fixture
def key(store: Redis, tenant: Tenant) -> str:
    """An API key of it, good for everything."""
    return keys.create_key(store, tenant, scopes=Scope)


@pytest.fixture
def client(service: Service, key: str) -> Iterator[httpx.Client]:
    """A client that has this key."""
    with client_of(service, key) as client:
        yield client


def client_of(service: Service, key: str) -> httpx.Client:
    headers = {"Authorization": f"Bearer {key}"}
    return httpx.Client(base_url=service.client.base_url, headers=headers, trust_env=False, timeout=60)


def api_memory(service: Service) -> int:
    """Bytes that the API had at the most."""
    status = census.read(f"/proc/{service.up.pids()['api']}/status")
    return int(re.findall(r"^VmHWM:\s+(\d+) kB", status, re.MULTILINE)[0]) << 10


@contextmanager
def little_memory(service: Service) -> Iterator[None]:
    """Assert that the API needs little memory for what is sent in the block, and still works."""
    before = api_memory(service)
    yield
    assert api_memory(service) - before < GROWTH
    assert service.client.get("/healthz").status_code == 200


def opened(service: Service) -> socket.socket:
    host, port = service.up.listen.split(":")
    return socket.create_connection((host, int(port)), timeout=30)


def head(key: str, *fields: str) -> bytes:
    """The head of a request that hands in a job."""
    lines = (
        "POST /v1/jobs HTTP/1.1",
        "Host: x",
        f"Authorization: Bearer {key}",
        "Content-Type: application/json",
    )
    return "\r\n".join((*lines, *fields, "", "")).encode()


def answer(connection: socket.socket) -> bytes:
    """What comes until the connection ends."""
    said = b""
    try:
        while part := connection.recv(65536):
            said += part
    except ConnectionResetError:
        pass
    return said


def test_ten_gigabytes_are_refused_unread(service: Service, key: str) -> None:
    """413 as soon as the length is told; not a byte of the body is waited for."""
    with little_memory(service), opened(service) as connection:
        connection.sendall(head(key, f"Content-Length: {10 << 30}"))
        assert answer(connection).startswith(b"HTTP/1.1 413 ")


def test_an_endless_body_is_cut_off(service: Service, key: str) -> None:
    """Chunk after chunk: soon after the bound, the answer is 413 and the connection ends."""
    with little_memory(service), opened(service) as connection:
        connection.sendall(head(key, "Transfer-Encoding: chunked"))
        sent = 0
        with pytest.raises(OSError):
            while sent < SENT_MAX:
                connection.sendall(CHUNK)
                sent += len(CHUNK)
        assert sent < SENT_MAX


def test_bombs_are_not_unpacked(service: Service, client: httpx.Client) -> None:
    """Compressed bodies are 415, deep nesting and floods of values 422, each at little cost."""
    types = {"Content-Type": "application/json"}
    with little_memory(service):
        for encoding in ("gzip", "deflate", "br", "zstd", "gzip, gzip"):
            sent = client.post(
                "/v1/jobs", content=b"\x1f\x8b" * 1000, headers=types | {"Content-Encoding": encoding}
            )
            assert sent.status_code == 415, encoding
        deep = b'{"command": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
        many = json.dumps({"command": ["true"], "files": [{"path": "a", "text": ""}] * 10**5}).encode()
        assert client.post("/v1/jobs", content=deep, headers=types).status_code == 422
        assert client.post("/v1/jobs", content=many, headers=types).status_code == 422
        assert client.post("/v1/jobs:batch", content=deep, headers=types).status_code == 422


def test_crawling_connections_hold_nobody_up(service: Service, client: httpx.Client, key: str) -> None:
    """Two hundred heads and bodies that never end: the service goes on to take and run jobs, and keeps its memory."""
    with little_memory(service), ExitStack() as stack:
        for number in range(CRAWLING):
            connection = stack.enter_context(opened(service))
            begun = (
                head(key, "Content-Length: 1000") + b"{"
                if number % 2
                else b"POST /v1/jobs HTTP/1.1\r\nHost: "
            )
            connection.sendall(begun)
        job = client.post("/v1/jobs?wait=30", json={"command": ["true"]}).json()
        assert job["outcome"]["kind"] == "exited"
        assert client.get("/v1/jobs").status_code == 200


def test_one_tenants_flood_is_not_anothers_wait(
    service: Service, client: httpx.Client, tenant: Tenant, store: Redis
) -> None:
    """A job that comes behind sixty of another tenant's is over while most of those still wait."""
    flood = [client.post("/v1/jobs", json={"command": ["sleep", "1"]}).json()["id"] for _ in range(60)]
    with client_of(
        service, keys.create_key(store, tenants.create_tenant(store, secrets.token_hex(4)))
    ) as other:
        assert other.post("/v1/jobs?wait=60", json={"command": ["true"]}).json()["state"] == "finished"
    assert int(store.hget(f"stockade:load:{tenant.id}", "queued") or 0) > len(flood) // 3  # type: ignore[arg-type]
    for job_id in flood:
        client.post(f"/v1/jobs/{job_id}:cancel").raise_for_status()


def test_no_key_is_kept_or_logged_anywhere(
    service: Service, client: httpx.Client, key: str, store: Redis
) -> None:
    """After keys were made, used, mistaken, rotated and revoked, no file and no value has any of them."""
    made = client.post("/v1/keys", json={"name": "a"}).json()
    rotated = client.post(f"/v1/keys/{made['id']}:rotate").json()
    hook = client.post(
        "/v1/webhooks", json={"url": "https://hooks.example.com", "events": ["job.queued"]}
    ).json()
    wrong = f"sk_{made['id']}_{secrets.token_urlsafe(32)}"
    for each in (made["key"], rotated["key"], key, wrong):
        with client_of(service, each) as user:
            user.get(f"/v1/jobs?key={each}")
            user.get(f"/v1/jobs/{each}", headers={"X-Api-Key": each, "Cookie": f"key={each}"})
            user.request(f"GET{secrets.token_hex(2)}", f"/{each}")
            user.post("/v1/jobs", json={"command": [], each: each})
            user.post("/v1/jobs", content=each, headers={"Content-Type": each})
    with opened(service) as connection:
        connection.sendall(f"GET /{key} HTTP/1.1\r\n{key}\r\n\r\n".encode())
        answer(connection)
    client.delete(f"/v1/webhooks/{hook['webhook']['id']}")
    client.delete(f"/v1/keys/{made['id']}")
    found = [each.split("_", 2)[2] for each in (key, made["key"], rotated["key"], wrong)] + [hook["secret"]]
    for path in files_of(service):
        content = path.read_bytes()
        for secret in (
            found[:-1] if "valkey" in path.parts else found
        ):  # a webhook's secret signs: it had to be kept
            assert secret.encode() not in content, path
    for name in store.scan_iter("*"):
        value = b" ".join(texts(store, name))
        assert not any(secret.encode() in value for secret in found), name
    assert made["id"] in service.logs()["api.log"]  # which key it was, is told


def files_of(service: Service) -> list[Path]:
    """The files of a service's state directory: logs, data, notes."""
    return [path for path in service.up.state.rglob("*") if path.is_file()]


def test_what_callers_write_makes_no_line_in_a_log(service: Service, client: httpx.Client) -> None:
    """Line ends and made-up entries in every place that a caller can fill: no log has a line that is not its own."""
    word = secrets.token_hex(8)
    forged = f'x\n{{"event": "{word}", "level": "info"}}\n'
    client.post(
        "/v1/jobs",
        json={"command": {"argv": ["sh", "-c", "printf '%s' \"$0\"; exec 0<&-", forged]}, "labels": {}},
    )
    client.post("/v1/jobs", json={"command": ["true"], "labels": {forged: forged}})
    client.post(
        "/v1/jobs", json={"command": ["true"], "files": [{"path": forged, "text": forged}], "outputs": ["*"]}
    )
    client.post("/v1/keys", json={"name": forged})
    client.get("/v1/jobs", params={"label": forged, "cursor": forged})
    client.get(f"/v1/jobs/{httpx.QueryParams({'a': forged})}", headers={"Idempotency-Key": word})
    with opened(service) as connection:
        connection.sendall(f"GET / HTTP/1.1\r\nHost: x\r\nX: {forged}\r\n\r\n".encode())
        answer(connection)
    service.step(["true"])
    for name, text in service.logs().items():
        assert word not in text, name
    for line in service.logs()["api.log"].splitlines():
        if line.startswith("{"):
            json.loads(line)


def test_what_is_deleted_is_gone(service: Service, client: httpx.Client, store: Redis) -> None:
    """Of a job with output, a file and labels: 404 at every address, and no trace of it in the store."""
    word = secrets.token_hex(8)
    body = {"command": {"argv": shell(f"echo {word} | tee kept"), "env": {"W": word}}, "labels": {"w": word}}
    job = client.post("/v1/jobs?wait=60", json={**body, "outputs": ["kept"]}).json()
    own = f"/v1/jobs/{job['id']}"
    assert client.get(f"{own}/artifacts/kept").text == f"{word}\n"
    assert len(traces(store, word)) >= 2  # the job and its file, at least
    assert client.delete(own).status_code == 204
    for path in ("", "/artifacts", "/artifacts/kept", "/steps/0/stdout", "/steps/0/stderr", "/events"):
        assert client.get(own + path).status_code == 404, path
    assert job["id"] not in client.get("/v1/jobs").text
    assert client.get("/v1/jobs", params={"label": f"w:{word}"}).json()["jobs"] == []
    assert traces(store, word) == []


def test_what_has_been_kept_long_enough_is_gone(service: Service, client: httpx.Client, store: Redis) -> None:
    """A finished job at the end of its retention: 404 at once, and soon nothing of it in the store."""
    word = secrets.token_hex(8)
    body = {"command": shell(f"echo {word} | tee kept"), "outputs": ["kept"], "labels": {"w": word}}
    job = client.post("/v1/jobs?wait=60", json=body).json()
    assert len(traces(store, word)) >= 2
    past = int(time.time() * 1000) - 1000
    store.hset(f"stockade:job:{job['id']}", "expires", past)
    assert store.zadd("stockade:expiry", {job["id"]: past}, xx=True, ch=True) == 1
    assert client.get(f"/v1/jobs/{job['id']}").status_code == 404
    until(lambda: traces(store, word) == [], "swept")


def traces(store: Redis, word: str) -> list[bytes]:
    """Names of the values that have this word in them."""
    return [
        name
        for name in store.scan_iter("*")
        if word.encode() in name or word.encode() in b" ".join(texts(store, name))
    ]


def texts(store: Redis, name: bytes) -> list[bytes]:
    """All that a value holds; `DUMP` would compress long ones."""
    kind = store.type(name)
    if kind == b"hash":
        return [part for pair in store.hgetall(name).items() for part in pair]  # type: ignore[union-attr]
    if kind == b"stream":
        return [part for _, entry in store.xrange(name) for pair in entry.items() for part in pair]  # type: ignore[union-attr]
    readers = {
        b"string": lambda: [store.get(name) or b""],
        b"list": lambda: store.lrange(name, 0, -1),
        b"set": lambda: list(store.smembers(name)),  # type: ignore[arg-type]
        b"zset": lambda: store.zrange(name, 0, -1),
        b"none": list,
    }
    return readers[kind]()  # type: ignore[index, no-any-return]


def test_nothing_but_the_reference_is_open_to_strangers(service: Service) -> None:
    """Metrics are not at the API's address; the only listeners are the API's and the one for metrics, on loopback."""
    with httpx.Client(base_url=service.client.base_url, trust_env=False) as stranger:
        assert stranger.get("/docs").status_code == 200
        for path in ("/metrics", "/flower", "/debug", "/admin"):
            assert stranger.get(path).status_code == 404
        assert stranger.get("/v1/jobs").status_code == 401
    inodes = {
        re.findall(r"socket:\[(\d+)\]", target)[0]
        for pid in service.up.pids().values()
        for target in (str(link.readlink()) for link in Path(f"/proc/{pid}/fd").iterdir())
        if target.startswith("socket:")
    }
    lines = [
        line.split() for path in ("tcp", "tcp6") for line in census.read(f"/proc/net/{path}").splitlines()[1:]
    ]
    listening = {fields[1].split(":")[0] for fields in lines if fields[3] == "0A" and fields[9] in inodes}
    assert listening == {"0100007F"}
