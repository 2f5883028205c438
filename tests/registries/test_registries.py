"""What the operator says about registries: where is asked, in which order and how."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from worker.images.remote.credentials import Credential
from worker.images.remote.faults import Fault, RegistryError
from worker.images.remote.reference import parse_reference
from worker.images.remote.registries import Endpoint, Registries, is_loopback


def endpoints(image: str, said: Any = None, **credentials: Credential) -> tuple[Endpoint, ...]:
    return Registries.model_validate(said or {}).endpoints(parse_reference(image), credentials)


@pytest.mark.parametrize(
    ("image", "url"),
    [
        ("python", "https://registry-1.docker.io/"),
        ("r.example/x", "https://r.example/"),
        ("r.example:5000/x", "https://r.example:5000/"),
        ("10.0.0.1/x", "https://10.0.0.1/"),
        ("localhost:5000/x", "http://localhost:5000/"),
        ("127.0.0.1:5000/x", "http://127.0.0.1:5000/"),
        ("[::1]:5000/x", "http://[::1]:5000/"),
        ("localhost.example/x", "https://localhost.example/"),
    ],
)
def test_only_loopback_is_spoken_to_in_plain_http_unasked(image: str, url: str) -> None:
    """Everything else is https, whatever its port or its address."""
    (only,) = endpoints(image)
    assert str(only.url) == url


def test_the_operator_can_say_otherwise_for_one_registry() -> None:
    """Plain HTTP where it is named, and TLS on loopback where that is wanted."""
    said = {"r.lan:5000": {"insecure": True}, "localhost:5000": {"insecure": False}}
    assert endpoints("r.lan:5000/x", said)[0].url.scheme == "http"
    assert endpoints("r.lan/x", said)[0].url.scheme == "https"
    assert endpoints("localhost:5000/x", said)[0].url.scheme == "https"


def test_mirrors_are_asked_first_and_get_their_own_credentials() -> None:
    """In the order of the file, below their path; none gets what belongs to the registry."""
    said = {
        "docker.io": {"mirrors": ["m.example/hub", "c.lan:5000"]},
        "c.lan:5000": {"insecure": True},
    }
    hub, mirror = (Credential(username=name, password=SecretStr("p")) for name in ("hub", "mirror"))
    found = endpoints("python:3", said, **{"docker.io": hub, "m.example": mirror})
    assert [(str(each.url), each.repository) for each in found] == [
        ("https://m.example/", "hub/library/python"),
        ("http://c.lan:5000/", "library/python"),
        ("https://registry-1.docker.io/", "library/python"),
    ]
    assert [each.credential for each in found] == [mirror, Credential(), hub]


def test_a_file_is_read_with_its_certificates(tmp_path: Path) -> None:
    """The puller, which cannot read the operator's files, gets the content of `ca`."""
    (tmp_path / "ca.pem").write_text("-----BEGIN CERTIFICATE-----\n")
    path = tmp_path / "registries.yaml"
    path.write_text(f"r.example:\n  ca: {tmp_path}/ca.pem\n  proxy: http://user:secret@proxy.example:3128\n")
    (found,) = Registries.load(path).endpoints(parse_reference("r.example/x"), {})
    assert found.ca == "-----BEGIN CERTIFICATE-----\n"
    assert found.proxy is not None and "secret" not in repr(found)
    assert Registries.load(None).root == {}


@pytest.mark.parametrize(
    "content",
    [
        "- a",
        "a: [",
        "r.example: {verify: false}",
        "r.example: {insecure: maybe}",
        "r.example: {mirrors: ['http://m.example']}",
        "r.example: {mirrors: ['m.example/../x']}",
        "r.example: {mirrors: [" + ", ".join(["m.example"] * 9) + "]}",
        "r.example: {ca: /nonexistent/ca.pem}",
        "r.example: {proxy: 'socks5://user:verysecret@p.example'}",
        "r.example: {proxy: 'http://user:verysecret@p.example/path'}",
        "'https://r.example': {}",
        "R.example: {}",
    ],
)
def test_a_file_that_is_not_right_is_refused(tmp_path: Path, content: str) -> None:
    """An unknown key is an error too: there is none that switches verification off."""
    path = tmp_path / "registries.yaml"
    path.write_text(content)
    with pytest.raises(RegistryError) as caught:
        Registries.load(path)
    assert caught.value.fault is Fault.SETTINGS and "verysecret" not in str(caught.value)


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST", "127.0.0.1:80", "127.9.9.9", "[::1]:5000"])
def test_loopback_is_known_by_how_it_is_written(host: str) -> None:
    """A name that resolves to loopback is not loopback: who made it resolve so is not the operator."""
    assert is_loopback(host)
    assert not is_loopback(f"{host.strip('[]').split(':')[0]}.example")
