"""A client of the OCI distribution specification: the pulling half, one repository at one endpoint.

Nothing that comes is taken at its word. A manifest has at most 4 MiB and the digest that was asked for; a blob the
size that its manifest says, known before its first byte and held to with each one, and the digest; a redirect leads
to https or to the same host, and never takes our credential to another. A connection that breaks is made again and
goes on where it stopped (Range). Everything ends in time, whoever is on the other side.
"""

import email.utils
import hashlib
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import BinaryIO, Self, TypeVar

import httpcore

from worker.images.manifest import INDEXES, MANIFEST_MAX, MANIFESTS, Descriptor
from worker.images.remote.authorization import TOKEN_MAX, Authorization
from worker.images.remote.faults import Fault, RegistryError
from worker.images.remote.registries import Endpoint
from worker.images.remote.transport import BrokenError, Patience, Wire
from worker.images.remote.urls import Url
from worker.sandbox.images import DIGEST

REDIRECTS_MAX = 5
"""Redirects that one request follows."""
CONNECTIONS = 3
"""Blobs that are fetched at a time."""
_ACCEPT = ", ".join(MANIFESTS + INDEXES)
_REDIRECTS = (301, 302, 303, 307, 308)
_LATER = (408, 425, 429, 500, 502, 503, 504)
_MOVED_ENOUGH = 1 << 20
"""Bytes after which a connection that breaks does not count as a failure in a row."""

_Result = TypeVar("_Result")
Moved = Callable[[int], None]
"""Told how many bytes came; less than 0 when so many have to come again."""


class StoppedError(Exception):
    """Another thread's failure has ended what this belonged to."""


class _LaterError(Exception):
    """The registry asks to come back: after `seconds`, where it says when."""

    def __init__(self, status: int, seconds: float | None) -> None:
        self.seconds = seconds
        super().__init__(f"it answered {status}")


@dataclass(frozen=True)
class Document:
    """A manifest or index as it came."""

    body: bytes
    media_type: str
    digest: str


class Registry:
    """One repository at one endpoint; may be used by several threads."""

    def __init__(self, endpoint: Endpoint, patience: Patience) -> None:
        self._endpoint, self._patience = endpoint, patience
        self._stop = threading.Event()
        self._wire = Wire(endpoint, patience, CONNECTIONS)
        self._authorization = Authorization(endpoint, self._ask_token)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self._wire.close()

    def stop(self) -> None:
        """End what other threads have under way: they raise StoppedError."""
        self._stop.set()

    @property
    def name(self) -> str:
        """The image's name here, for messages."""
        return f"{self._endpoint.host}/{self._endpoint.repository}"

    def digest_of(self, tag: str) -> str:
        """The digest that a tag stands for now. One HEAD; a GET where the registry does not say it.

        Raises:
            RegistryError: the image is not there, not for us, or not to be had.
        """

        def ask(deadline: float) -> str | None:
            with self._answer("HEAD", f"manifests/{tag}", {"Accept": _ACCEPT}, deadline) as response:
                return _header(response, "docker-content-digest")

        digest = self._patiently(self._subject(tag), self._deadline(), ask)
        if digest is None:
            return self.manifest(tag).digest
        if not DIGEST.fullmatch(digest):
            raise self._refused(self._subject(tag), f"it says that its digest is {digest[:80]!r}")
        return digest

    def manifest(self, wanted: str) -> Document:
        """The manifest or index that a tag or digest names.

        Raises:
            RegistryError: it is not there, not for us, too large, or has another digest.
        """
        subject = self._subject(wanted)

        def ask(deadline: float) -> Document:
            with self._answer("GET", f"manifests/{wanted}", {"Accept": _ACCEPT}, deadline) as response:
                body = self._small(response, MANIFEST_MAX, subject)
                kind = (_header(response, "content-type") or "").partition(";")[0].strip().lower()
                return Document(body, kind, self._digest(wanted, body, response))

        return self._patiently(subject, self._deadline(), ask)

    def blob(self, blob: Descriptor, file: BinaryIO, moved: Moved) -> None:
        """Write a blob to an empty file, its size and digest checked as it comes.

        Raises:
            RegistryError: it is not there, or is not what the manifest says; the file's content is then worthless.
            StoppedError: `stop` was called.
        """
        fetch = _Fetch(blob, file, moved, self._stop)
        subject = f"{self.name}@{blob.digest}"

        def ask(deadline: float) -> None:
            wanted = {"Range": f"bytes={fetch.offset}-"} if fetch.offset else {}
            with self._answer("GET", f"blobs/{blob.digest}", wanted, deadline) as response:
                fetch.take(response, subject)

        self._patiently(subject, self._deadline(blob.size), ask, lambda: fetch.offset)
        fetch.check(subject)

    def _small(self, response: httpcore.Response, most: int, subject: str) -> bytes:
        """The body of an answer that has at most `most` bytes."""
        said = _length(response)
        if said is not None and said > most:
            raise self._refused(subject, f"the answer has {said} bytes, at most {most} are read")
        body = bytearray()
        for chunk in _chunks(response):
            body += chunk
            if len(body) > most:
                raise self._refused(subject, f"the answer has more than {most} bytes")
        return bytes(body)

    def _digest(self, wanted: str, body: bytes, response: httpcore.Response) -> str:
        """The digest of a manifest that came, which must be the one that was wanted or said."""
        said = wanted if DIGEST.fullmatch(wanted) else _header(response, "docker-content-digest")
        found = f"sha256:{hashlib.sha256(body).hexdigest()}"
        if said is None:
            return found
        if not DIGEST.fullmatch(said):
            raise self._refused(self._subject(wanted), f"it says that its digest is {said[:80]!r}")
        if said != found:
            raise self._refused(self._subject(wanted), f"its manifest has the digest {found}, not {said}")
        return said

    def _ask_token(self, method: str, url: Url, headers: dict[str, str], content: bytes | None) -> bytes:
        """One request of a token service: no redirects, which could carry the credential away."""
        subject = f"the token service {url} of {self._endpoint.host}"

        def ask(deadline: float) -> bytes:
            with self._wire.exchange(method, url, headers, deadline, content) as response:
                if response.status != 200:
                    self._failed(response, subject)
                return self._small(response, TOKEN_MAX, subject)

        return self._patiently(subject, self._deadline(), ask)

    @contextmanager
    def _answer(
        self, method: str, path: str, headers: Mapping[str, str], deadline: float
    ) -> Iterator[httpcore.Response]:
        """The good answer to one request, after redirects and with our authorization."""
        subject = f"{self.name} {path.partition('/')[2]}"
        home = self._endpoint.url.to(f"/v2/{self._endpoint.repository}/{path}")
        url, renewed = home, False
        for _ in range(REDIRECTS_MAX + 2):
            ours = self._authorization.value if url.origin == home.origin else None
            sent = {**headers, "Authorization": ours} if ours else headers
            with self._wire.exchange(method, url, sent, deadline) as response:
                if response.status in (200, 206):
                    yield response
                    return
                if response.status in _REDIRECTS:
                    url = self._next(url, _header(response, "location"), subject)
                    continue
                if response.status != 401 or url.origin != home.origin or renewed:
                    self._failed(response, subject)
                challenge = ", ".join(_headers(response, "www-authenticate"))
            renewed = True
            if not self._authorization.renew(ours, challenge):
                raise self._denied(subject)
        raise self._refused(subject, f"it leads through more than {REDIRECTS_MAX} redirects")

    def _next(self, url: Url, location: str | None, subject: str) -> Url:
        """Where a redirect leads: to https, or to the host that it comes from in the way that it came."""
        try:
            following = Url.parse(location or "", url)
        except ValueError:
            raise self._refused(subject, "it redirects to what is no http or https URL") from None
        if following.scheme != "https" and (following.scheme, following.host) != (url.scheme, url.host):
            raise self._refused(
                subject, f"it redirects to {following}, which is neither https nor the same host"
            )
        return following

    def _failed(self, response: httpcore.Response, subject: str) -> None:
        """Raise what an answer that is not good means."""
        status = response.status
        if status in _LATER:
            raise _LaterError(status, _retry_after(_header(response, "retry-after")))
        if status in (401, 403):
            raise self._denied(subject)
        if status in (404, 410):
            raise RegistryError(Fault.NOT_FOUND, subject, "the registry does not have it")
        raise self._refused(subject, f"the registry answered {status}")

    def _patiently(
        self,
        subject: str,
        deadline: float,
        ask: Callable[[float], _Result],
        offset: Callable[[], int] = lambda: 0,
    ) -> _Result:
        """Try until it works, fails for good, or patience ends. What brings bytes is not a failure in a row."""
        patience, failures = self._patience, 0
        while True:
            before = offset()
            try:
                return ask(deadline)
            except (BrokenError, _LaterError) as error:
                failures = 1 if offset() - before >= _MOVED_ENOUGH else failures + 1
                said = error.seconds if isinstance(error, _LaterError) else None
                pause = self._pause(failures) if said is None else said
                if failures >= patience.tries or time.monotonic() + pause > deadline:
                    tries = f"{failures} tries" if failures > 1 else "one try"
                    wait = f", and asks for {said:g} s" if said else ""
                    raise RegistryError(
                        Fault.UNREACHABLE, subject, f"{error}{wait}; gave up after {tries}"
                    ) from None
            if self._stop.wait(pause):
                raise StoppedError

    def _pause(self, failures: int) -> float:
        """Seconds before the next try, spread so that many pullers do not come back at once."""
        pause = min(self._patience.pause * 2.0 ** (failures - 1), self._patience.pause_max)
        return pause * random.uniform(0.75, 1.25)  # noqa: S311 - nothing secret

    def _deadline(self, size: int = 0) -> float:
        return time.monotonic() + self._patience.total + size / self._patience.slowest

    def _subject(self, wanted: str) -> str:
        return f"{self.name}{'@' if DIGEST.fullmatch(wanted) else ':'}{wanted}"

    def _denied(self, subject: str) -> RegistryError:
        given = self._endpoint.credential.given
        reason = (
            "the registry refuses our credential" if given else "the registry hides it, or wants a credential"
        )
        return RegistryError(
            Fault.DENIED, subject, reason, f"put one for {self._endpoint.host} into the file of credentials"
        )

    def _refused(self, subject: str, reason: str) -> RegistryError:
        return RegistryError(Fault.REFUSED, subject, reason)


class _Fetch:
    """One blob on its way into a file: how far it is, and its digest so far."""

    def __init__(self, blob: Descriptor, file: BinaryIO, moved: Moved, stop: threading.Event) -> None:
        self._blob, self._file, self._moved, self._stop = blob, file, moved, stop
        self.offset = 0
        self._hash = hashlib.sha256()

    def take(self, response: httpcore.Response, subject: str) -> None:
        """Take what an answer holds: the rest, or all of it again from a server that knows no ranges."""
        if response.status == 206:
            expected = f"bytes {self.offset}-{self._blob.size - 1}/"
            said = _header(response, "content-range") or ""
            if not self.offset or not said.startswith(expected):
                raise RegistryError(
                    Fault.REFUSED, subject, f"asked to go on at {self.offset}, it sent {said[:60]!r}"
                )
        elif self.offset:
            self._again()
        said_length, rest = _length(response), self._blob.size - self.offset
        if said_length is not None and said_length != rest:
            raise RegistryError(
                Fault.REFUSED, subject, f"{rest} bytes were expected, and {said_length} are sent"
            )
        for chunk in _chunks(response):
            self._write(chunk, subject)
        if self.offset != self._blob.size:
            raise RegistryError(
                Fault.REFUSED, subject, f"it ends after {self.offset} of {self._blob.size} bytes"
            )

    def check(self, subject: str) -> None:
        """Refuse it when it has another digest."""
        found = f"sha256:{self._hash.hexdigest()}"
        if found != self._blob.digest:
            raise RegistryError(Fault.REFUSED, subject, f"what came has the digest {found}")

    def _write(self, chunk: bytes, subject: str) -> None:
        if self._stop.is_set():
            raise StoppedError
        if self.offset + len(chunk) > self._blob.size:
            raise RegistryError(Fault.REFUSED, subject, f"it goes on after its {self._blob.size} bytes")
        self._file.write(chunk)
        self._hash.update(chunk)
        self.offset += len(chunk)
        self._moved(len(chunk))

    def _again(self) -> None:
        self._file.seek(0)
        self._file.truncate()
        self._moved(-self.offset)
        self.offset = 0
        self._hash = hashlib.sha256()


def _chunks(response: httpcore.Response) -> Iterator[bytes]:
    """The body as it comes, not decoded."""
    yield from response.iter_stream()


def _headers(response: httpcore.Response, name: str) -> list[str]:
    return [value.decode("latin-1") for key, value in response.headers if key.lower() == name.encode()]


def _header(response: httpcore.Response, name: str) -> str | None:
    found = _headers(response, name)
    return found[0] if found else None


def _length(response: httpcore.Response) -> int | None:
    said = _header(response, "content-length")
    return int(said) if said is not None and said.isascii() and said.isdigit() and len(said) < 20 else None


def _retry_after(said: str | None) -> float | None:
    """Seconds that `Retry-After` asks for: a number, or a date (RFC 9110)."""
    if said is None:
        return None
    if said.isascii() and said.isdigit() and len(said) < 10:
        return float(said)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(said).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None
