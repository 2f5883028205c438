"""A registry that does what it is told, on loopback: every answer is written by the test, byte by byte if need be."""

import http.server
import json
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from tests.registries.oci import OCI_MANIFEST, Layout


@dataclass(frozen=True)
class Asked:
    """One request that came."""

    method: str
    path: str
    headers: Mapping[str, str]


class Handler(http.server.BaseHTTPRequestHandler):
    """One request on its way to the test's answer."""

    protocol_version = "HTTP/1.1"
    server: "_Server"

    def do_GET(self) -> None:
        home = self.server.home
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.rfile.read(int(headers.get("content-length", "0")))
        asked = Asked(self.command, self.path, headers)
        home.asked.append(asked)
        answer = home.routes.get(urlsplit(self.path).path, nothing)
        try:
            answer(self, asked)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_POST(self) -> None:
        self.do_GET()

    def answer(self, body: bytes = b"", status: int = 200, length: int | None = None, **headers: str) -> None:
        """Send an answer; `length` is what is said of the body's."""
        self.send_response(status)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
        if length is not None and length != len(body):
            self.close_connection = True

    def log_message(self, *_: Any) -> None:
        """Be quiet."""


Answer = Callable[[Handler, Asked], None]


def nothing(handler: Handler, asked: Asked) -> None:
    """What is not there."""
    handler.answer(status=404)


class _Server(http.server.ThreadingHTTPServer):
    home: "Hostile"
    daemon_threads = True
    block_on_close = False


@dataclass
class Hostile:
    """The registry: what it answers by path, and what it was asked."""

    routes: dict[str, Answer] = field(default_factory=dict)
    asked: list[Asked] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._server = _Server(("127.0.0.1", 0), Handler)
        self._server.home = self
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def stop(self) -> None:
        """Close it."""
        self._server.shutdown()
        self._server.server_close()

    @property
    def host(self) -> str:
        """HOST:PORT."""
        return f"127.0.0.1:{self._server.server_address[1]}"

    def paths(self, method: str = "GET") -> list[str]:
        """The paths that were asked for."""
        return [each.path for each in self.asked if each.method == method]

    def serve(self, layout: Layout, top: Mapping[str, Any], name: str = "x", tag: str = "latest") -> str:
        """Serve an image as a good registry does; HOST/NAME."""
        for digest, content in layout.blobs.items():
            self.routes[f"/v2/{name}/blobs/{digest}"] = self.content(content)
            kind = json.loads(content).get("mediaType") if content.startswith(b"{") else None
            self.routes[f"/v2/{name}/manifests/{digest}"] = self.content(
                content, Content_Type=kind or OCI_MANIFEST
            )
        self.routes[f"/v2/{name}/manifests/{tag}"] = self.routes[f"/v2/{name}/manifests/{top['digest']}"]
        return f"{self.host}/{name}"

    @staticmethod
    def content(body: bytes, **headers: str) -> Answer:
        """The answer that is this body."""
        return lambda handler, asked: handler.answer(body, **headers)


def body_of(answer: Answer) -> bytes:
    """The body that an answer sends."""
    sent: list[bytes] = []

    class Taker:
        def answer(self, body: bytes, **_: Any) -> None:
            sent.append(body)

    answer(Taker(), Asked("GET", "", {}))  # type: ignore[arg-type]
    return sent[0]


def silent(handler: Handler, asked: Asked) -> None:
    """Nothing at all."""
    time.sleep(3)
