"""One log line and a count for each request, a few headers on every answer, and a 500 for what nobody expected.

The line has the route's pattern instead of the address, so that nothing a caller writes into an address, a
header or a body gets into the log: no keys, no made-up lines.
"""

import secrets
from time import perf_counter

import structlog
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.problems import INTERNAL, ProblemError
from jobs.metrics import OTHER, metrics

HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"cache-control", b"no-store"),
)
METHODS = frozenset("GET HEAD POST PUT PATCH DELETE OPTIONS".split())  # others are counted as one
NO_ROUTE = "none"
CLIENT_CLOSED = 499  # never sent: what the log says when the caller hung up first

log = structlog.get_logger(__name__)


class AccessLog:
    """ASGI middleware, outermost. Uvicorn's own access log, which has whole addresses, is to be off."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = perf_counter()
        request_id = secrets.token_hex(8)
        status = 0

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                _add_headers(message, request_id)
            await send(message)

        try:
            await self._app(scope, receive, answer)
        except ClientDisconnect:
            status = CLIENT_CLOSED
        except Exception:
            log.exception("request_failed", request=request_id)
            if status:
                raise  # half an answer is out: only breaking the connection can tell the caller
            failure = ProblemError(INTERNAL, f"The log of the service has the reason under {request_id}.")
            await failure.response()(scope, receive, answer)
        finally:
            seconds = perf_counter() - started
            _count(scope, status, seconds)
            _write_line(scope, status, seconds, request_id)


def _add_headers(message: Message, request_id: str) -> None:
    headers = message["headers"]
    present = {name.lower() for name, _ in headers}
    headers.extend(header for header in HEADERS if header[0] not in present)
    headers.append((b"x-request-id", request_id.encode()))


def _count(scope: Scope, status: int, seconds: float) -> None:
    method = scope["method"] if scope["method"] in METHODS else OTHER
    route = getattr(scope.get("route"), "path", NO_ROUTE)
    metrics.count("http_requests_total", method=method, route=route, status=str(status))
    metrics.observe("http_request_seconds", seconds, method=method, route=route)


def _write_line(scope: Scope, status: int, seconds: float, request_id: str) -> None:
    route = scope.get("route")
    caller = scope.get("state", {}).get("caller")
    log.info(
        "request",
        method=scope["method"] if route else None,
        route=getattr(route, "path", None),
        status=status,
        tenant=getattr(caller, "id", None),
        key=getattr(caller, "key_id", None),
        milliseconds=round(seconds * 1000, 2),
        request=request_id,
    )
