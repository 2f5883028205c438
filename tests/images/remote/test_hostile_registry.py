"""A registry that lies, leads astray or never ends: refused before use, in time, and with nothing given away."""

import base64
import json
import logging
import threading
import time
import traceback
from collections.abc import Callable
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from tests.images.remote.conftest import HURRIED, Ask
from tests.images.remote.hostile import Answer, Asked, Handler, Hostile, body_of
from tests.images.remote.oci import (
    ARCHITECTURE,
    OCI_INDEX,
    OCI_MANIFEST,
    Layout,
    blobs_in,
    digest_of,
    random_layers,
    tar_of,
)
from worker.images.manifest import MANIFEST_MAX
from worker.images.remote.credentials import Credential
from worker.images.remote.faults import Fault, RegistryError
from worker.images.remote.pull import Pulled, Sources, pull, resolve
from worker.images.remote.reference import parse_reference
from worker.images.remote.registry import REDIRECTS_MAX
from worker.images.remote.sink import LayoutSink

SECRET = "c0rrect-h0rse"
CREDENTIAL = Credential(username="somebody", password=SecretStr(SECRET))
BASIC = "Basic " + base64.b64encode(f"somebody:{SECRET}".encode()).decode()
MANIFEST = "/v2/x/manifests/latest"

Change = Callable[[Handler, Asked, bytes], None]


@pytest.fixture
def image(hostile: Hostile) -> str:
    """An image of one layer of 300 kB, served as a good registry does until a test changes an answer."""
    layout = Layout()
    return hostile.serve(layout, layout.image(random_layers(1, 300_000), "none"))


def layer_of(hostile: Hostile) -> str:
    """The path of the layer."""
    manifest = json.loads(body_of(hostile.routes[MANIFEST]))
    return f"/v2/x/blobs/{manifest['layers'][0]['digest']}"


def changed(hostile: Hostile, path: str, change: Change) -> None:
    """Have `change` answer, given the true body."""
    body = body_of(hostile.routes[path])
    hostile.routes[path] = lambda handler, asked: change(handler, asked, body)


def attempt(image: str, sources: Sources, landing: Path) -> Pulled:
    """Pull it."""
    return pull(parse_reference(image), LayoutSink(landing), lambda _: None, sources)


def refusal(image: str, sources: Sources, landing: Path) -> RegistryError:
    """The error that pulling it gives; nothing has landed."""
    started = time.monotonic()
    with pytest.raises(RegistryError) as caught:
        attempt(image, sources, landing)
    assert not [path for path in landing.rglob("*") if path.is_file()]
    assert time.monotonic() - started < 60
    return caught.value


def endless(handler: Handler, asked: Asked, body: bytes) -> None:
    """The body again and again, in chunks, for as long as anybody listens."""
    handler.send_response(200)
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    while True:
        handler.wfile.write(b"%x\r\n%s\r\n" % (len(body), body))


def short(handler: Handler, asked: Asked, body: bytes) -> None:
    """A chunked body that ends early, as if that were all."""
    handler.send_response(200)
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    handler.wfile.write(b"%x\r\n%s\r\n0\r\n\r\n" % (1000, body[:1000]))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda handler, asked, body: handler.answer(body[:-1] + b"?"), "what came has the digest sha256:"),
        (lambda handler, asked, body: handler.answer(body + b"?"), "bytes were expected, and"),
        (lambda handler, asked, body: handler.answer(body[:-1]), "bytes were expected, and"),
        (lambda handler, asked, body: handler.answer(body, 206), "it sent ''"),
        (endless, "it goes on after its"),
        (short, "it ends after 1000 of"),
    ],
    ids=["wrong digest", "longer than said", "shorter than said", "a part unasked", "endless", "truncated"],
)
def test_a_blob_that_is_not_what_the_manifest_says(
    hostile: Hostile, image: str, sources: Ask, landing: Path, change: Change, reason: str
) -> None:
    """Size first and digest last are checked while it comes; what fails leaves no blob, and is not tried again."""
    changed(hostile, layer_of(hostile), change)
    error = refusal(image, sources(image), landing)
    assert error.fault is Fault.REFUSED and reason in error.reason
    assert hostile.paths().count(layer_of(hostile)) == 1


def test_a_connection_that_breaks_is_taken_up_where_it_broke(
    hostile: Hostile, image: str, sources: Ask, landing: Path
) -> None:
    """By Range; the bytes that came are not asked for again."""
    ranges: list[str | None] = []

    def cut(handler: Handler, asked: Asked, body: bytes) -> None:
        ranges.append(asked.headers.get("range"))
        start = int((ranges[-1] or "bytes=0-").removeprefix("bytes=").rstrip("-"))
        part = body[start : start + 120_000]
        end = f"bytes {start}-{len(body) - 1}/{len(body)}"
        handler.answer(part, 206 if start else 200, len(body) - start, Content_Range=end)

    changed(hostile, layer_of(hostile), cut)
    attempt(image, sources(image), landing)
    assert ranges == [None, "bytes=120000-", "bytes=240000-"]
    assert digest_of(next(content for content in blobs_in(landing).values())) in layer_of(hostile)


@pytest.mark.parametrize("status", [200, 206])
def test_a_server_that_does_not_go_on_where_it_should(
    hostile: Hostile, image: str, sources: Ask, landing: Path, status: int
) -> None:
    """One that knows no ranges is heard from the beginning; one that sends another part is refused."""

    def answer(handler: Handler, asked: Asked, body: bytes) -> None:
        if "range" not in asked.headers:
            handler.answer(body[:1000], length=len(body))
        else:
            handler.answer(body, status, Content_Range=f"bytes 0-{len(body) - 1}/{len(body)}")

    changed(hostile, layer_of(hostile), answer)
    if status == 200:
        attempt(image, sources(image), landing)
        assert [f"/v2/x/blobs/{digest}" for digest in blobs_in(landing)] == [layer_of(hostile)]
    else:
        assert "asked to go on at 1000" in refusal(image, sources(image), landing).reason


def test_a_connection_that_always_breaks_is_given_up(
    hostile: Hostile, image: str, sources: Ask, landing: Path
) -> None:
    """After as many tries as patience has."""
    changed(hostile, layer_of(hostile), lambda handler, asked, body: handler.answer(b"", length=len(body)))
    error = refusal(image, sources(image), landing)
    assert error.fault is Fault.UNREACHABLE and "gave up after 3 tries" in error.reason


@pytest.mark.parametrize("body", [b" " * (5 << 20), b"[" * 100_000, b'{"a":1,"a":1}', b"NaN", b"\xff", b""])
def test_a_manifest_that_is_none(hostile: Hostile, sources: Ask, landing: Path, body: bytes) -> None:
    """Too large, too deep, a key twice, no JSON object: refused."""
    hostile.routes[MANIFEST] = Hostile.content(body, Content_Type=OCI_MANIFEST)
    image = f"{hostile.host}/x"
    assert refusal(image, sources(image), landing).fault is Fault.REFUSED


BLOB = {"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": f"sha256:{'a' * 64}", "size": 3}
CONFIG = {**BLOB, "mediaType": "application/vnd.oci.image.config.v1+json"}
GOOD = {"schemaVersion": 2, "config": CONFIG, "layers": [BLOB]}
PLATFORM = {"os": "linux", "architecture": ARCHITECTURE}
SCHEMA_1 = "application/vnd.docker.distribution.manifest.v1+prettyjws"


@pytest.mark.parametrize(
    ("document", "kind"),
    [
        ({**GOOD, "manifests": []}, OCI_MANIFEST),
        ({**GOOD, "manifests": [{**BLOB, "platform": PLATFORM}]}, OCI_INDEX),
        (
            {"schemaVersion": 2, "manifests": [{**BLOB, "mediaType": OCI_INDEX, "platform": PLATFORM}]},
            OCI_MANIFEST,
        ),
        ({"schemaVersion": 2, "manifests": []}, OCI_INDEX),
        ({**GOOD, "mediaType": OCI_INDEX}, OCI_MANIFEST),
        (GOOD, "application/vnd.docker.distribution.manifest.v2+json"),
        (GOOD, SCHEMA_1),
        (GOOD, "application/json"),
        ({**GOOD, "schemaVersion": 1}, OCI_MANIFEST),
        ({**GOOD, "layers": [BLOB] * 129}, OCI_MANIFEST),
        ({**GOOD, "layers": [{}] * 100_000}, OCI_MANIFEST),
        ({**GOOD, "layers": [{**BLOB, "size": -1}]}, OCI_MANIFEST),
        ({**GOOD, "layers": [{**BLOB, "size": "3"}]}, OCI_MANIFEST),
        ({**GOOD, "layers": [{**BLOB, "size": 1 << 70}]}, OCI_MANIFEST),
        ({**GOOD, "layers": [{**BLOB, "size": 1 << 40}]}, OCI_MANIFEST),
        ({**GOOD, "layers": [BLOB, {**BLOB, "size": 4}]}, OCI_MANIFEST),
        ({**GOOD, "layers": [{**BLOB, "digest": "md5:" + "a" * 32}]}, OCI_MANIFEST),
        ({**GOOD, "layers": [{**BLOB, "digest": "sha256:../../x"}]}, OCI_MANIFEST),
        ({**GOOD, "layers": [{**BLOB, "digest": f"sha256:{'A' * 64}"}]}, OCI_MANIFEST),
        ({**GOOD, "layers": [{**BLOB, "digest": f"sha256:{'a' * 64}\n"}]}, OCI_MANIFEST),
        ({**GOOD, "layers": [{**BLOB, "mediaType": "application/wasm"}]}, OCI_MANIFEST),
        (
            {**GOOD, "config": {**CONFIG, "mediaType": "application/vnd.cncf.helm.config.v1+json"}},
            OCI_MANIFEST,
        ),
        ({**GOOD, "config": {**CONFIG, "size": MANIFEST_MAX + 1}}, OCI_MANIFEST),
    ],
)
def test_what_breaks_a_rule_is_refused(
    hostile: Hostile, sources: Ask, landing: Path, document: Any, kind: str
) -> None:
    """Before any blob is asked for."""
    hostile.routes[MANIFEST] = Hostile.content(json.dumps(document).encode(), Content_Type=kind)
    image = f"{hostile.host}/x"
    assert refusal(image, sources(image), landing).fault is Fault.REFUSED
    assert hostile.paths() == [MANIFEST]


def test_an_index_does_not_lead_to_an_index(hostile: Hostile, sources: Ask, landing: Path) -> None:
    """Nor to a manifest of another size than it says: whoever nests them could nest them for ever."""
    layout = Layout()
    image_of_it = layout.image([tar_of({"a": b"1"})])
    inner = layout.index({f"linux/{ARCHITECTURE}": image_of_it})
    image = hostile.serve(layout, layout.index({f"linux/{ARCHITECTURE}": inner}))
    assert "its index leads to an index" in refusal(image, sources(image), landing).reason
    image = hostile.serve(layout, layout.index({f"linux/{ARCHITECTURE}": {**image_of_it, "size": 7}}))
    assert "another size" in refusal(image, sources(image), landing).reason


def test_an_image_whose_config_counts_other_layers(hostile: Hostile, sources: Ask, landing: Path) -> None:
    """Is refused before its layers are fetched."""
    layout = Layout()
    manifest = json.loads(layout.blobs[layout.image([tar_of({"a": b"1"})])["digest"]])
    manifest["layers"] *= 2
    image = hostile.serve(layout, layout.document(manifest, OCI_MANIFEST))
    assert "2 layers" in refusal(image, sources(image), landing).reason


def test_a_manifest_without_end_is_cut_at_four_mebibytes(
    hostile: Hostile, sources: Ask, landing: Path
) -> None:
    """Also when no length is said."""
    hostile.routes[MANIFEST] = lambda handler, asked: endless(handler, asked, b" " * 65536)
    image = f"{hostile.host}/x"
    assert f"more than {MANIFEST_MAX} bytes" in refusal(image, sources(image), landing).reason


def test_a_manifest_with_another_digest(hostile: Hostile, image: str, sources: Ask, landing: Path) -> None:
    """Than was asked for, or than the registry itself says; or with one that is a path."""
    held = f"{image}@sha256:{'0' * 64}"
    hostile.routes[f"/v2/x/manifests/sha256:{'0' * 64}"] = hostile.routes[MANIFEST]
    assert "its manifest has the digest" in refusal(held, sources(held), landing).reason
    body = body_of(hostile.routes[MANIFEST])
    for said in (f"sha256:{'1' * 64}", "sha256:../../../etc/passwd", "md5:0123"):
        answer = Hostile.content(body, Content_Type=OCI_MANIFEST, Docker_Content_Digest=said)
        hostile.routes[MANIFEST] = answer
        assert "digest" in refusal(image, sources(image), landing).reason
    with pytest.raises(RegistryError, match="it says that its digest is 'md5:0123'"):
        resolve(parse_reference(image), sources(image))


def test_a_foreign_layer_s_urls_are_never_asked(
    hostile: Hostile, other: Hostile, sources: Ask, landing: Path
) -> None:
    """The layer comes from the registry or not at all."""
    layout = Layout()
    urls = [f"http://{other.host}/layer", "http://169.254.169.254/latest/meta-data", "file:///etc/shadow"]
    image = hostile.serve(layout, layout.image([tar_of({"a": b"1"})], "gzip", urls=urls))
    attempt(image, sources(image), landing)
    hostile.routes.pop(layer_of(hostile))
    assert refusal(image, sources(image), landing.parent / "nowhere").fault is Fault.NOT_FOUND
    assert not other.asked


def redirect(location: str) -> Answer:
    return lambda handler, asked: handler.answer(status=307, Location=location)


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
    from worker.images.remote import transport

    real = transport.socket.getaddrinfo

    def lying(host: str, port: int, *rest: Any, **more: Any) -> Any:
        return real("169.254.169.254" if host == "cdn.example" else host, port, *rest, **more)

    monkeypatch.setattr(transport.socket, "getaddrinfo", lying)
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


def challenge(hostile: Hostile, path: str, header: str) -> None:
    """Have a path ask for authorization, and be content with any."""
    good = hostile.routes[path]

    def answer(handler: Handler, asked: Asked) -> None:
        if "authorization" in asked.headers:
            good(handler, asked)
        else:
            handler.answer(status=401, WWW_Authenticate=header)

    hostile.routes[path] = answer


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


@pytest.mark.parametrize("when", [lambda: "1", lambda: formatdate(time.time() + 2, usegmt=True)])
def test_a_registry_that_is_busy_is_asked_again_when_it_says(
    hostile: Hostile, image: str, sources: Ask, landing: Path, when: Callable[[], str]
) -> None:
    """Retry-After, in seconds or as a date."""
    good, times = hostile.routes[MANIFEST], list[float]()

    def busy(handler: Handler, asked: Asked) -> None:
        times.append(time.monotonic())
        if len(times) == 1:
            handler.answer(status=429, Retry_After=when())
        else:
            good(handler, asked)

    hostile.routes[MANIFEST] = busy
    attempt(image, sources(image), landing)
    assert len(times) == 2 and times[1] - times[0] >= 0.9


@pytest.mark.parametrize("status", [429, 503])
def test_a_registry_that_asks_for_more_time_than_we_have(
    hostile: Hostile, image: str, sources: Ask, landing: Path, status: int
) -> None:
    """Is left at once, with what it asked for in the message."""
    hostile.routes[MANIFEST] = lambda handler, asked: handler.answer(status=status, Retry_After="86400")
    error = refusal(image, sources(image), landing)
    assert error.fault is Fault.UNREACHABLE
    assert error.reason == f"it answered {status}, and asks for 86400 s; gave up after one try"


def drip(handler: Handler, asked: Asked) -> None:
    """A header that comes byte by byte and never ends (slow loris)."""
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
    while True:
        handler.wfile.write(b"x")
        time.sleep(0.05)


def drip_body(handler: Handler, asked: Asked) -> None:
    """A body that comes byte by byte."""
    handler.send_response(200)
    handler.send_header("Content-Length", "307200")
    handler.end_headers()
    while True:
        handler.wfile.write(b"x")
        time.sleep(0.05)


def silent(handler: Handler, asked: Asked) -> None:
    """Nothing at all."""
    time.sleep(3)


@pytest.mark.parametrize("slow", [drip, drip_body, silent])
@pytest.mark.parametrize("what", ["manifest", "layer"])
def test_nobody_holds_us_for_ever(
    hostile: Hostile, image: str, sources: Ask, landing: Path, slow: Answer, what: str
) -> None:
    """Whether it is silent or sends a byte now and then, whatever part of the answer it is in."""
    hostile.routes[MANIFEST if what == "manifest" else layer_of(hostile)] = slow
    patience = HURRIED.model_copy(update={"total": 0.7, "silence": 0.3})
    error = refusal(image, sources(image, patience=patience), landing)
    assert error.fault is Fault.UNREACHABLE and "did not answer in time" in error.reason


def test_headers_without_end(hostile: Hostile, image: str, sources: Ask, landing: Path) -> None:
    """A header of a megabyte is not read to its end."""

    def huge(handler: Handler, asked: Asked) -> None:
        handler.answer(b"", X_Huge="x" * (1 << 20))

    hostile.routes[MANIFEST] = huge
    assert refusal(image, sources(image), landing).fault is Fault.UNREACHABLE


def test_one_failure_ends_the_blobs_that_are_under_way(hostile: Hostile, sources: Ask, landing: Path) -> None:
    """Nobody waits for the others when one layer is wrong."""
    layout = Layout()
    image = hostile.serve(layout, layout.image(random_layers(2, 200_000), "none"))
    layers = [
        f"/v2/x/blobs/{each['digest']}" for each in json.loads(body_of(hostile.routes[MANIFEST]))["layers"]
    ]
    started = threading.Event()

    def long(handler: Handler, asked: Asked, body: bytes) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        started.set()
        for start in range(0, len(body), 1000):
            handler.wfile.write(body[start : start + 1000])
            time.sleep(0.1)

    def wrong(handler: Handler, asked: Asked, body: bytes) -> None:
        started.wait(5)
        handler.answer(b"wrong")

    changed(hostile, layers[0], long)
    changed(hostile, layers[1], wrong)
    began = time.monotonic()
    patience = HURRIED.model_copy(update={"total": 60.0})
    assert "5 are sent" in refusal(image, sources(image, patience=patience), landing).reason
    assert time.monotonic() - began < 15  # the long one alone takes 20 seconds


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
