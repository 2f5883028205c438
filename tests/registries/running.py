"""Debian's docker-registry on loopback, and skopeo to push to it."""

import base64
import http.server
import importlib
import json
import os
import ssl
import subprocess
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import yaml

from tests.stack import free_port

USER, PASSWORD = "puller", "hunter2-very-secret"
PROGRAMS = {"docker-registry": "docker-registry", "skopeo": "skopeo", "zstd": "zstd", "openssl": "openssl"}


@dataclass
class Running:
    """A registry that runs."""

    directory: Path
    auth: dict[str, Any] = field(default_factory=dict)
    tls: dict[str, str] = field(default_factory=dict)
    host: str = field(default_factory=lambda: f"127.0.0.1:{free_port()}")

    @contextmanager
    def started(self) -> Iterator["Running"]:
        """Run it for the block."""
        config = {
            "version": 0.1,
            "log": {"level": "info"},
            "storage": {"filesystem": {"rootdirectory": str(self.directory / "data")}},
            "http": {"addr": self.host, "secret": "not secret", **({"tls": self.tls} if self.tls else {})},
            **({"auth": self.auth} if self.auth else {}),
        }
        path = self.directory / "config.yml"
        path.write_text(yaml.safe_dump(config))
        with (self.directory / "log").open("wb") as log:
            process = subprocess.Popen(["docker-registry", "serve", path], stdout=log, stderr=log)
        try:
            self._await(process)
            yield self
        finally:
            process.kill()
            process.wait()

    def _await(self, process: "subprocess.Popen[bytes]") -> None:
        deadline = time.monotonic() + 30
        url = f"{'https' if self.tls else 'http'}://{self.host}/"
        while True:
            try:
                httpx.get(url, verify=False, trust_env=False)
                return
            except httpx.TransportError:
                assert process.poll() is None and time.monotonic() < deadline, self.log
                time.sleep(0.02)

    @property
    def log(self) -> str:
        """What it has logged."""
        return (self.directory / "log").read_text()

    def push(self, layout: Path, name: str, *options: str) -> str:
        """Push a layout as it is, all platforms; HOST/NAME."""
        target = f"{self.host}/{name}"
        command = [
            "skopeo",
            "copy",
            "--insecure-policy",
            "--all",
            "--preserve-digests",
            "--dest-tls-verify=false",
        ]
        done = subprocess.run(
            [*command, *options, f"oci:{layout}:it", f"docker://{target}"],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return target


def htpasswd(directory: Path) -> dict[str, Any]:
    """Basic authentication for USER; bcrypt, which is all that the registry takes, made by libxcrypt."""
    path = directory / "htpasswd"
    path.write_text(f"{USER}:{_bcrypt(PASSWORD)}\n")
    return {"htpasswd": {"realm": "test", "path": str(path)}}


def _bcrypt(password: str) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        crypt = importlib.import_module("crypt")
    return str(crypt.crypt(password, "$2b$04$abcdefghijklmnopqrstuu"))


class TokenService:
    """A token service as the distribution project describes it: signs, with openssl, what the registry trusts."""

    ISSUER, SERVICE = "test-issuer", "test-registry"

    def __init__(self, directory: Path) -> None:
        self._key, self.certificate = directory / "token.key", directory / "token.pem"
        make_certificate(self._key, self.certificate)
        self.asked: list[dict[str, Any]] = []
        service = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                query = {name: values[0] for name, values in parse_qs(urlsplit(self.path).query).items()}
                given = self.headers.get("Authorization")
                service.asked.append({"authorization": given, **query})
                expected = "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
                body = json.dumps({"token": service._sign(query.get("scope", ""))}).encode()
                self.send_response(200 if given == expected else 401)
                self.send_header("Content-Length", str(len(body) if given == expected else 0))
                self.end_headers()
                if given == expected:
                    self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def auth(self) -> dict[str, Any]:
        """The registry's configuration for it."""
        realm = f"http://127.0.0.1:{self._server.server_address[1]}/token"
        certificate = str(self.certificate)
        about = {
            "realm": realm,
            "service": self.SERVICE,
            "issuer": self.ISSUER,
            "rootcertbundle": certificate,
        }
        return {"token": about}

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _sign(self, scope: str) -> str:
        """A JSON web token (RS256) for what the scope asks."""
        kind, _, rest = scope.partition(":")
        name, _, actions = rest.rpartition(":")
        der = ssl.PEM_cert_to_DER_cert(self.certificate.read_text())
        header = {"typ": "JWT", "alg": "RS256", "x5c": [base64.b64encode(der).decode()]}
        now = int(time.time())
        access = [{"type": kind, "name": name, "actions": actions.split(",")}] if name else []
        claims = {
            "iss": self.ISSUER,
            "aud": self.SERVICE,
            "sub": USER,
            "jti": os.urandom(8).hex(),
            "access": access,
        }
        claims |= {"nbf": now - 10, "iat": now, "exp": now + 300}
        signed = ".".join(_base64url(json.dumps(part).encode()) for part in (header, claims))
        command = ["openssl", "dgst", "-sha256", "-sign", self._key]
        signature = subprocess.run(command, input=signed.encode(), capture_output=True, check=True).stdout
        return f"{signed}.{_base64url(signature)}"


def make_certificate(key: Path, certificate: Path, name: str = "127.0.0.1") -> None:
    """A key and a certificate for it that it signed itself."""
    kind = "DNS" if name.strip("0123456789.") else "IP"
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-days",
        "2",
        "-subj",
        f"/CN={name}",
    ]
    names = ["-addext", f"subjectAltName={kind}:{name}"]
    subprocess.run([*command, *names, "-keyout", key, "-out", certificate], check=True, capture_output=True)


def _base64url(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).decode().rstrip("=")
