"""`python -m bench.load`: a closed loop of HTTP clients in one light process.

Reads from standard input {"port", "key", "clients", "jobs"}; each client sends its next job when the last
one has come back finished. Prints {"elapsed", "cpu", "took": [seconds, ...]}. Any other answer than a
finished job that exited ends the run. Plain keep-alive sockets: a full HTTP client would cost more than
the service it measures.
"""

import json
import selectors
import socket
import sys
import time
from dataclasses import dataclass

BODY = json.dumps({"command": ["/bin/true"]}).encode()


@dataclass
class Client:
    """One connection with at most one job under way."""

    sock: socket.socket
    sent: float = 0.0
    answer: bytes = b""

    def send(self, request: bytes) -> None:
        """Start a job."""
        self.answer = b""
        self.sent = time.perf_counter()
        self.sock.sendall(request)

    def finished(self) -> bool:
        """Take what has come; True when it was the rest of the answer."""
        data = self.sock.recv(65536)
        if not data:
            raise RuntimeError("the service closed the connection")
        self.answer += data
        head, separator, body = self.answer.partition(b"\r\n\r\n")
        return bool(separator) and len(body) >= content_length(head)

    def check(self) -> None:
        """Raise when the answer is not a finished job that exited."""
        head, _, body = self.answer.partition(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 201") or b'"finished"' not in body or b'"exited"' not in body:
            raise RuntimeError(f"not a finished job: {self.answer[:2000].decode(errors='replace')}")


def content_length(head: bytes) -> int:
    """The length of the body that the head announces."""
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return int(line.partition(b":")[2])
    raise RuntimeError(f"no Content-Length: {head!r}")


def request_bytes(port: int, key: str) -> bytes:
    """The request that is sent again and again."""
    head = (
        f"POST /v1/jobs?wait=30 HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nAuthorization: Bearer {key}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(BODY)}\r\n\r\n"
    )
    return head.encode() + BODY


def closed_loop(port: int, key: str, clients: int, jobs: int) -> tuple[float, list[float]]:
    """Run jobs; seconds in all and for each."""
    request = request_bytes(port, key)
    took: list[float] = []
    with selectors.DefaultSelector() as selector:
        for _ in range(clients):
            sock = socket.create_connection(("127.0.0.1", port), timeout=60)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            selector.register(sock, selectors.EVENT_READ, Client(sock))
        begun = time.perf_counter()
        started = 0
        for key_ in list(selector.get_map().values()):
            key_.data.send(request)
            started += 1
        while len(took) < jobs:
            ready = selector.select(timeout=60)
            if not ready:
                raise RuntimeError("no answer for 60 s")
            for key_, _ in ready:
                client: Client = key_.data
                if not client.finished():
                    continue
                took.append(time.perf_counter() - client.sent)
                client.check()
                if started < jobs:
                    client.send(request)
                    started += 1
        elapsed = time.perf_counter() - begun
        for key_ in list(selector.get_map().values()):
            key_.data.sock.close()
    return elapsed, took


def main() -> None:
    """Run once as told on standard input."""
    asked = json.load(sys.stdin)
    clients = min(asked["clients"], asked["jobs"])
    elapsed, took = closed_loop(asked["port"], asked["key"], clients, asked["jobs"])
    json.dump({"elapsed": elapsed, "cpu": time.process_time(), "took": took}, sys.stdout)


if __name__ == "__main__":
    main()
