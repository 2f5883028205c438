"""Whatever is sent, the API does as its description says: schemathesis makes thousands of requests from it.

The exceptions, with their reasons, are in `schemathesis.toml`. `make fuzz` does the same at random and for longer.
"""

import json
import math
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from api.egress import CheckedBackend, EgressError
from jobs import keys, tenants, webhooks
from jobs.events import STREAM
from jobs.keys import Scope
from jobs.outcome import Output
from jobs.settings import Settings
from jobs.store import Store, connect
from jobs.workers import Workers
from tests.api.conftest import Served, Worker
from tests.dispatch import worker_status

SCHEMATHESIS = Path(sys.executable).with_name("schemathesis")
CONFIG = Path(__file__).with_name("schemathesis.toml")
SECONDS = int(os.environ.get("STOCKADE_FUZZ_SECONDS", "0"))
"""For how long to try at random; 0: always the same requests, about a minute of them at most."""
BOUNDED = ["--generation-deterministic", "--max-examples", "10"]
STREAM_SECONDS = 0.1


@pytest.fixture
def played_worker(settings: Settings) -> Iterator[None]:
    """A worker that ends every job soon after it was handed in, with some output and a file."""
    stop = threading.Event()

    def play(client: redis.Redis) -> None:
        worker, seen = Worker(Store(client)), b"0"
        ready = worker_status("w").model_copy(update={"slots": 1000})
        while not stop.wait(0.02):
            Workers(client).heartbeat(ready)
            worker.store.sweep(lost_after=60)  # ends what waited longer than it would
            found: Any = client.xread({STREAM: seen}, count=1000)
            for number, entry in (each for _, entries in found for each in entries):
                seen = number
                attempt = worker.store.claim(entry[b"job"].decode(), 1, "w")
                if attempt is not None:  # it has not been cancelled, nor begun
                    worker.end(
                        attempt, stdout=Output.of(b"text"), stderr=Output.of(b"\xff"), files={"a": b"1"}
                    )

    with connect(settings) as client:
        thread = threading.Thread(target=play, args=(client,))
        thread.start()
        yield
        stop.set()
        thread.join()


@pytest.fixture
def identities(redis_client: redis.Redis, served: Served, tmp_path: Path) -> Iterator[Path]:
    """Keys of two projects in the form of Web Fuzzing Commons; they stay good, although they can revoke themselves."""
    users = []
    for name in ("first", "second"):
        project = tenants.create_tenant(redis_client, name)
        key = keys.create_key(redis_client, project, scopes=Scope)
        with served.client(key) as client:
            client.get("/v1/policies").raise_for_status()
        users.append({"name": name, "fixedHeaders": [{"name": "Authorization", "value": f"Bearer {key}"}]})
    known = served.services.authenticator._known
    for digest, (_, identity) in list(known.items()):
        known[digest] = (math.inf, identity)
    path = tmp_path / "keys.json"
    path.write_text(json.dumps({"auth": users}))
    yield path
    known.clear()


@pytest.fixture
def confined(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """The application as it is, but no webhook is sent, streams end soon, and no number of things is too many."""

    async def refused(*_: object) -> list[str]:
        raise EgressError("Nothing leaves this machine.")

    monkeypatch.setattr(CheckedBackend, "_checked", refused)
    monkeypatch.setattr(served.services.live, "lasts", STREAM_SECONDS)
    monkeypatch.setattr(keys, "KEYS_MAX", 10**6)
    monkeypatch.setattr(webhooks, "WEBHOOKS_MAX", 10**6)


@pytest.mark.slow
@pytest.mark.usefixtures("played_worker", "confined")
def test_whatever_is_sent_the_api_does_as_it_is_described(served: Served, identities: Path) -> None:
    """No failure of any check of schemathesis: examples, edges of the schema, random values, sequences of calls."""
    amount = ["--max-time", str(SECONDS)] if SECONDS else BOUNDED
    command = [
        SCHEMATHESIS,
        "--config-file",
        CONFIG,
        "run",
        f"{served.url}/openapi.json",
        "--no-color",
        *amount,
    ]
    environment = os.environ | {"STOCKADE_FUZZ_KEYS": str(identities)}
    with tempfile.TemporaryDirectory() as directory:  # it keeps notes where it runs
        done = subprocess.run(
            command, cwd=directory, env=environment, capture_output=True, text=True, check=False
        )
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
