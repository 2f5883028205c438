"""A registry that leads astray: redirects, token services, and what becomes of our credential on the way."""

import base64
import json
import logging
import socket
import traceback
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from tests.registries.attempts import MANIFEST, attempt, challenge, layer_of, redirect, refusal
from tests.registries.conftest import HURRIED, Ask
from tests.registries.hostile import Answer, Hostile, silent
from worker.images.remote.credentials import Credential
from worker.images.remote.faults import Fault, RegistryError
from worker.images.remote.registry import REDIRECTS_MAX

SECRET = "c0rrect-h0rse"
CREDENTIAL = Credential(username="somebody", password=SecretStr(SECRET))
BASIC = "Basic " + base64.b64encode(f"somebody:{SECRET}".encode()).decode()


@pytest.mark.parametrize(
    ("location", "reason"),
    [
        ("http://169.254.169.254/latest/meta-data", "neither https nor the same host"),
        ("https://169.254.169.254/latest/meta-data", "is forbidden, where nothing may lead"),
        ("https://[::ffff:169.254.169.254]/x", "is forbidden, where nothing may lead"),
        ("https://[fd00:ec2::254]/x", "is forbidden, where nothing may lead"),
        ("https://[fe80::1]/x", "is forbidden, where nothing may lead"),
        ("https://10.0.0.1/x", "is private, where nothing may lead"),
        ("https://192.168.0.1:8443/x", "is private, where nothing may lead"),
        ("https://0.0.0.0/x", "is forbidden, where nothing may lead"),
        ("http://registry.example/x", "neither https nor the same host"),
        ("file:///etc/shadow", "no http or https URL"),
        ("gopher://127.0.0.1/x", "no http or https URL"),
        ("https://user:password@registry.example/x", "no http or https URL"),
        ("", "redirects"),
    ],
)
def test_a_redirect_leads_nowhere_but_where_it_may(
    hostile: Hostile, image: str, sources: Ask, landing: Path, location: str, reason: str
) -> None:
    """Https, or the same host; and no address of this machine's neighbourhood, unless the registry is there itself."""
    hostile.routes[layer_of(hostile)] = redirect(location)
    error = refusal(image, sources(image), landing)
    assert error.fault is Fault.REFUSED and reason in error.reason


def test_a_name_is_judged_by_the_address_that_is_connected_to(
    hostile: Hostile, image: str, sources: Ask, landing: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name that resolves to the metadata service is that service, however harmless it looks."""
    real = socket.getaddrinfo

    def lying(host: str, port: int, *rest: Any, **more: Any) -> Any:
        return real("169.254.169.254" if host == "cdn.example" else host, port, *rest, **more)

    monkeypatch.setattr(socket, "getaddrinfo", lying)
    hostile.routes[layer_of(hostile)] = redirect("https://cdn.example/layer")
    assert "cdn.example: its address 169.254.169.254 is forbidden" in str(
        refusal(image, sources(image), landing)
    )


def test_a_redirect_never_carries_our_credential_away(
    hostile: Hostile, other: Hostile, image: str, sources: Ask, landing: Path
) -> None:
    """The registry that asks gets it, the host that it leads to does not."""
    layer = layer_of(hostile)
    other.routes["/layer"] = hostile.routes[layer]
    hostile.routes[layer] = redirect(f"http://{other.host}/layer?signature=1")
    challenge(hostile, MANIFEST, "Basic realm=x")
    attempt(image, sources(image, credential=CREDENTIAL), landing)
    assert [asked.path for asked in other.asked] == ["/layer?signature=1"]
    assert "authorization" not in other.asked[0].headers
    assert hostile.asked[-1].headers["authorization"] == BASIC


def test_redirects_have_an_end(hostile: Hostile, image: str, sources: Ask, landing: Path) -> None:
    """A loop is left after a few."""
    hostile.routes[layer_of(hostile)] = redirect(layer_of(hostile))
    assert f"more than {REDIRECTS_MAX} redirects" in refusal(image, sources(image), landing).reason
    assert hostile.paths().count(layer_of(hostile)) <= REDIRECTS_MAX + 2


@pytest.mark.parametrize(
    ("realm", "reason"),
    [
        ("http://169.254.169.254/token", "which is not https"),
        ("http://tokens.example/token", "which is not https"),
        ("https://169.254.169.254/token", "is forbidden, where nothing may lead"),
        ("https://10.1.2.3/token", "is private, where nothing may lead"),
        ("file:///etc/shadow", "no http or https URL"),
        ("", "no http or https URL"),
    ],
)
def test_a_token_service_is_not_anywhere(
    hostile: Hostile, image: str, sources: Ask, landing: Path, realm: str, reason: str
) -> None:
    """The same rules as for redirects: the credential goes there."""
    challenge(hostile, MANIFEST, f'Bearer realm="{realm}",service="s",scope="repository:x:pull,push,delete"')
    assert reason in refusal(image, sources(image, credential=CREDENTIAL), landing).reason


@pytest.mark.parametrize(
    "body",
    [
        b"x" * (1 << 20),
        b"[]",
        b'{"token": 1}',
        b'{"token": "a\\r\\nX-Evil: 1"}',
        b'{"token": ""}',
        b"[" * 60_000,
    ],
)
def test_a_token_that_is_none(hostile: Hostile, image: str, sources: Ask, landing: Path, body: bytes) -> None:
    """Too long an answer, no JSON, no text, a header of its own: refused."""
    hostile.routes["/token"] = Hostile.content(body)
    challenge(hostile, MANIFEST, f'Bearer realm="http://{hostile.host}/token"')
    assert refusal(image, sources(image, credential=CREDENTIAL), landing).fault is Fault.REFUSED


def test_a_token_service_does_not_redirect(
    hostile: Hostile, other: Hostile, image: str, sources: Ask, landing: Path
) -> None:
    """It would carry the credential away."""
    hostile.routes["/token"] = redirect(f"http://{other.host}/token")
    challenge(hostile, MANIFEST, f'Bearer realm="http://{hostile.host}/token"')
    assert "answered 307" in refusal(image, sources(image, credential=CREDENTIAL), landing).reason
    assert not other.asked


def test_an_identity_token_is_changed_by_post(
    hostile: Hostile, image: str, sources: Ask, landing: Path
) -> None:
    """Never in a URL, which is logged everywhere."""
    hostile.routes["/token"] = Hostile.content(b'{"access_token": "abc.def"}')
    challenge(hostile, MANIFEST, f'Bearer realm="http://{hostile.host}/token",service="s"')
    attempt(image, sources(image, credential=Credential(identity_token=SecretStr(SECRET))), landing)
    assert hostile.paths("POST") == ["/token"]
    assert hostile.asked[-1].headers["authorization"] == "Bearer abc.def"
    assert not [asked for asked in hostile.asked if SECRET in asked.path]


def test_no_credential_is_in_a_log_or_an_exception(
    hostile: Hostile, image: str, sources: Ask, landing: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """With every logger at its most talkative, through success and through each kind of failure."""
    caplog.set_level(logging.DEBUG)
    token = "t0ken-" + "a" * 40
    hostile.routes["/token"] = Hostile.content(json.dumps({"token": token}).encode())
    challenge(hostile, MANIFEST, f'Bearer realm="http://{hostile.host}/token"')
    good, said = hostile.routes[MANIFEST], list[str]()
    endings: list[Answer] = [
        lambda handler, asked: handler.answer(status=401, WWW_Authenticate="Bearer realm=ftp://x"),
        lambda handler, asked: handler.answer(status=403, body=SECRET.encode()),
        lambda handler, asked: handler.answer(status=500, body=token.encode()),
        redirect(f"http://other.example/?signature={SECRET}"),
        silent,
    ]
    known = sources(image, credential=CREDENTIAL)
    hurried = sources(image, credential=CREDENTIAL, patience=HURRIED.model_copy(update={"silence": 0.2}))
    attempt(image, known, landing)
    for ending in endings:
        hostile.routes[MANIFEST] = lambda handler, asked, ending=ending: (
            ending if "authorization" in asked.headers else good
        )(handler, asked)
        with pytest.raises(RegistryError) as caught:
            attempt(image, hurried if ending is silent else known, landing)
        said.append("".join(traceback.format_exception(caught.value)) + repr(caught.value.__context__))
    said += [caplog.text, repr(known), known.model_dump_json(), str(known)]
    assert hostile.asked[-1].headers["authorization"] == f"Bearer {token}"  # it was there to be leaked
    for secret in (SECRET, token, BASIC, BASIC.partition(" ")[2]):
        assert not [text for text in said if secret in text]
