"""How we identify ourselves to a registry: basic, or a bearer token that its token service gives.

What is sent where: a registry's credential goes to the registry itself and to the token service that the registry
names, never anywhere else. The token that we ask for is for pulling this one repository, whatever the registry asks
us to ask for.
"""

import json
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass
from itertools import zip_longest
from urllib.parse import urlencode

from worker.images.remote.faults import Fault, RegistryError
from worker.images.remote.registries import Endpoint
from worker.images.remote.urls import Url

TOKEN_MAX = 64 << 10
"""Bytes of a token service's answer."""
CHALLENGE_MAX = 4096
"""Characters of a challenge that are read."""
_CLIENT = "stockade"

_token = re.compile(r"[A-Za-z0-9._~+/-]+=*")  # RFC 6750, b64token
_parameter = re.compile(r'([A-Za-z][A-Za-z0-9_-]*)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,"]+))')
_scheme = re.compile(r"(?:^|,)\s*(Basic|Bearer)(?=\s|,|$)", re.IGNORECASE)


@dataclass(frozen=True)
class Challenge:
    """What a registry wants, as its `WWW-Authenticate` says (RFC 7235, and the distribution project's tokens)."""

    scheme: str
    realm: str = ""
    service: str = ""


def parse_challenges(header: str) -> list[Challenge]:
    """The basic and bearer challenges in a header's value."""
    header = header[:CHALLENGE_MAX]
    starts = list(_scheme.finditer(header))
    found = []
    for start, following in zip_longest(starts, starts[1:]):
        end = following.start() if following else len(header)
        parameters = {
            name.lower(): plain or re.sub(r"\\(.)", r"\1", quoted)
            for name, quoted, plain in _parameter.findall(header[start.end() : end])
        }
        scheme = start[1].lower()
        found.append(Challenge(scheme, parameters.get("realm", ""), parameters.get("service", "")))
    return found


Ask = Callable[[str, Url, dict[str, str], bytes | None], bytes]
"""One request of a token service: method, URL, headers, body; the answer's body, at most TOKEN_MAX bytes."""


class Authorization:
    """The `Authorization` header for one repository at one endpoint; may be used by several threads."""

    def __init__(self, endpoint: Endpoint, ask: Ask) -> None:
        self._endpoint, self._ask = endpoint, ask
        self._lock = threading.Lock()
        self._value: str | None = None

    @property
    def value(self) -> str | None:
        """What to send now; None before the registry has asked."""
        return self._value

    def renew(self, refused: str | None, challenges: str) -> bool:
        """Answer a 401; whether there is something to try again with.

        Args:
            refused: what was sent. Another thread may have something newer already.
            challenges: the value of `WWW-Authenticate`.

        Raises:
            RegistryError: the token service refused, or is somewhere where we do not go.
        """
        with self._lock:
            if self._value != refused:
                return True
            value = self._answer(parse_challenges(challenges))
            changed = value is not None and (value != refused or value.startswith("Bearer "))
            self._value = value
            return changed

    def _answer(self, challenges: list[Challenge]) -> str | None:
        for challenge in challenges:
            if challenge.scheme == "bearer":
                return f"Bearer {self._bearer(challenge)}"
        return self._endpoint.credential.basic if challenges else None

    def _bearer(self, challenge: Challenge) -> str:
        credential = self._endpoint.credential
        if given := credential.registry_token.get_secret_value():
            return _checked(given, self._endpoint.host)
        realm = self._realm(challenge.realm)
        asked = {"service": challenge.service, "scope": f"repository:{self._endpoint.repository}:pull"}
        if identity := credential.identity_token.get_secret_value():
            asked |= {"grant_type": "refresh_token", "refresh_token": identity, "client_id": _CLIENT}
            form = {"Content-Type": "application/x-www-form-urlencoded"}
            return self._token(self._ask("POST", realm, form, urlencode(asked).encode()))
        joint = "&" if "?" in realm.target else "?"
        headers = {} if credential.basic is None else {"Authorization": credential.basic}
        return self._token(
            self._ask("GET", realm.to(f"{realm.target}{joint}{urlencode(asked)}"), headers, None)
        )

    def _realm(self, text: str) -> Url:
        """The token service: by https, or by the registry's own plain HTTP on the registry's own host."""
        home = self._endpoint.url
        try:
            realm = Url.parse(text)
        except ValueError:
            raise self._refused("it names a token service that is no http or https URL") from None
        if realm.scheme != "https" and (realm.scheme, realm.host) != (home.scheme, home.host):
            raise self._refused(f"it names the token service {realm}, which is not https")
        return realm

    def _token(self, answer: bytes) -> str:
        try:
            document = json.loads(answer)
        except (ValueError, RecursionError):
            raise self._refused("its token service's answer is not JSON") from None
        found = document.get("token") or document.get("access_token") if isinstance(document, dict) else None
        return _checked(found, self._endpoint.host)

    def _refused(self, reason: str) -> RegistryError:
        return RegistryError(Fault.REFUSED, self._endpoint.host, reason)


def _checked(token: object, host: str) -> str:
    if not isinstance(token, str) or not _token.fullmatch(token):
        raise RegistryError(Fault.REFUSED, host, "its token service's answer holds no token")
    return token
