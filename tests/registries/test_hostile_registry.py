"""A registry that lies, leads astray or never ends: refused before use, in time, and with nothing given away."""

import json
import threading
import time
from collections.abc import Callable
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest

from tests.registries.attempts import MANIFEST, Change, attempt, changed, layer_of, refusal
from tests.registries.conftest import HURRIED, Ask
from tests.registries.hostile import Answer, Asked, Handler, Hostile, body_of, silent
from tests.registries.oci import (
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
from worker.images.remote.faults import Fault, RegistryError
from worker.images.remote.pull import resolve
from worker.images.remote.reference import parse_reference


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
