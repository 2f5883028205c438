"""A receiver of webhooks on the loopback interface, and the pieces that tell it of events."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from redis import Redis
from standardwebhooks import Webhook as Verifier

from api.delivery import Dispatcher
from api.egress import Egress
from jobs.deliveries import Deliveries, Delivery
from jobs.events import EventType
from jobs.settings import Settings
from jobs.webhooks import Webhook, Webhooks
from tests.news import announce

PATIENCE = 20.0  # seconds after which what was to come counts as missing, on a busy machine
TENANT = "tenant_a"


@dataclass
class Request:
    """One request that came in."""

    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def id(self) -> str:
        """The id of its message."""
        return self.headers["webhook-id"]

    def verified(self, secret: str) -> Any:
        """Its message; raises standardwebhooks.WebhookVerificationError when the signature is not good."""
        return Verifier(secret).verify(self.body, self.headers)


@dataclass
class Receiver:
    """An HTTP server that answers with one status after the other, then with 200."""

    statuses: list[int] = field(default_factory=list)
    headers: dict[str, str] = field(default_factory=dict)
    content: bytes = b"ok"
    requests: list[Request] = field(default_factory=list)
    open: threading.Event = field(default_factory=threading.Event)
    """Answers wait until this is set, as it is from the start."""
    at_once: int = 0
    most_at_once: int = 0

    def __post_init__(self) -> None:
        self.open.set()
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self._server.server_address[1])

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.port}/hook"

    def close(self) -> None:
        """Stop."""
        self.open.set()
        self._server.shutdown()
        self._server.server_close()

    def _take(self, request: Request) -> int:
        with self._lock:
            self.requests.append(request)
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
            status = self.statuses.pop(0) if self.statuses else 200
        self.open.wait(PATIENCE)
        with self._lock:
            self.at_once -= 1
        return status

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                headers = {name.lower(): value for name, value in self.headers.items()}
                status = receiver._take(Request(self.path, headers, body))
                try:
                    self.send_response(status)
                    for name, value in receiver.headers.items():
                        self.send_header(name, value)
                    self.send_header("content-length", str(len(receiver.content)))
                    self.end_headers()
                    self.wfile.write(receiver.content)
                except OSError:
                    pass  # whoever asked is gone

            def log_message(self, *_: object) -> None:
                pass

        return Handler


@dataclass
class Hub:
    """Webhooks and events on an empty Redis that no served application looks at."""

    settings: Settings
    redis: Redis
    schedule: Sequence[float] = (0.05, 0.05)
    lease: float = 30.0

    @property
    def webhooks(self) -> Webhooks:
        """Its webhooks."""
        return Webhooks(self.redis)

    @property
    def deliveries(self) -> Deliveries:
        """Its deliveries, tried again after moments."""
        return Deliveries(self.redis, schedule=self.schedule, lease=self.lease)

    def hook(self, url: str, *events: EventType, tenant: str = TENANT) -> tuple[Webhook, str]:
        """A webhook, and its secret; by default it is told of the ends of jobs."""
        made = self.webhooks.create(tenant, url, events or (EventType.FINISHED,), "")
        assert made is not None
        return made

    def emit(self, job: str, state: str = "finished", tenant: str = TENANT, **more: int) -> None:
        """An event, written by what the store's scripts write it with."""
        outcome = "exited" if state == "finished" else ""
        announce(self.redis, job, tenant, state, outcome=outcome, **more)

    def log(self, webhook: Webhook) -> list[Delivery]:
        """The webhook's deliveries, the latest first."""
        return self.deliveries.page(webhook.id, 1000)[0]

    @asynccontextmanager
    async def dispatching(self, **options: Any) -> AsyncIterator[Dispatcher]:
        """A running dispatcher."""
        egress = Egress(self.settings.webhook_networks)
        dispatcher = Dispatcher(self.settings.redis_py, self.redis, self.deliveries, egress, **options)
        async with dispatcher.dispatching():
            yield dispatcher

    def dispatch_until(self, done: Callable[[], Any], **options: Any) -> None:
        """Run a dispatcher until this holds."""

        async def run() -> None:
            async with self.dispatching(**options):
                await until(done)

        asyncio.run(run())


async def until(done: Callable[[], Any]) -> None:
    """Wait until this holds."""
    deadline = time.monotonic() + PATIENCE
    while not await asyncio.to_thread(done):
        assert time.monotonic() < deadline, "it did not come to pass"
        await asyncio.sleep(0.01)


def receivers() -> Iterator[Callable[..., Receiver]]:
    """Makes receivers, and stops them in the end: the body of a fixture."""
    made: list[Receiver] = []

    def make(*statuses: int, **options: Any) -> Receiver:
        made.append(Receiver(list(statuses), **options))
        return made[-1]

    yield make
    for each in made:
        each.close()
