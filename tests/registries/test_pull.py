"""Pulling from a real registry: what was pushed is what arrives, however it is protected and packed."""

import contextlib
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from tests.packages import need
from tests.registries.conftest import Ask
from tests.registries.hostile import Hostile
from tests.registries.oci import ARCHITECTURE, Layout, blobs_in, compressed, random_layers, tar_of
from tests.registries.running import PASSWORD, USER, Running, TokenService, make_certificate
from worker.images.manifest import Descriptor
from worker.images.remote.credentials import Credential
from worker.images.remote.faults import Fault, RegistryError
from worker.images.remote.pull import Progress, Pulled, Sources, pull, resolve
from worker.images.remote.reference import parse_reference
from worker.images.remote.sink import LayoutSink

CREDENTIAL = Credential(username=USER, password=SecretStr(PASSWORD))
LOGIN = ("--dest-creds", f"{USER}:{PASSWORD}")


def pulled(image: str, sources: Sources, into: Path) -> Pulled:
    """Pull into an OCI layout."""
    sink = LayoutSink(into)
    found = pull(parse_reference(image), sink, lambda _: None, sources)
    sink.finish(found)
    return found


@pytest.mark.parametrize("how", ["gzip", "zstd", "none"])
def test_what_was_pushed_arrives(
    registry: Running, sources: Ask, tmp_path: Path, landing: Path, how: str
) -> None:
    """Manifest, config and every layer, byte by byte, by tag and by digest, in a layout that says what it is."""
    layout = Layout()
    top = layout.image(random_layers(4, 5000), how)
    image = registry.push(layout.write(tmp_path / "layout", top), f"team/{how}:1.0")
    found = pulled(image, sources(image), landing)
    assert found.digest == found.manifest_digest == top["digest"]
    assert blobs_in(landing) == layout.blobs
    assert [layout.blobs[layer.digest] for layer in found.layers] == [
        content for content in layout.blobs.values() if not content.startswith(b"{")
    ]
    assert str(found.reference) == f"{image}@{top['digest']}"
    by_digest = f"{image.rpartition(':')[0]}@{top['digest']}"
    assert resolve(parse_reference(image), sources(image)) == top["digest"]
    assert pulled(by_digest, sources(by_digest), tmp_path / "again").manifest == found.manifest


def test_an_index_leads_to_this_machine(
    registry: Running, sources: Ask, tmp_path: Path, landing: Path
) -> None:
    """The tag stands for the index, the layers are those of this platform, nothing of the others is fetched."""
    layout = Layout()
    ours = layout.image([tar_of({"ours": b"1"})])
    theirs = layout.image([tar_of({"theirs": b"2"})], machine="s390x")
    top = layout.index({"linux/s390x": theirs, f"linux/{ARCHITECTURE}": ours})
    image = registry.push(layout.write(tmp_path / "layout", top), "multi:1")
    found = pulled(image, sources(image), landing)
    assert (found.digest, found.manifest_digest) == (top["digest"], ours["digest"])
    assert resolve(parse_reference(image), sources(image)) == top["digest"]
    assert len(blobs_in(landing)) == 3


def test_an_index_without_this_machine_is_refused(registry: Running, sources: Ask, tmp_path: Path) -> None:
    """The message says what there is."""
    layout = Layout()
    top = layout.index({"linux/s390x": layout.image([tar_of({"a": b"1"})], machine="s390x")})
    image = registry.push(layout.write(tmp_path / "layout", top), "foreign:1")
    with pytest.raises(RegistryError, match=r"there is no image for linux/\w+, only linux/s390x"):
        pulled(image, sources(image), tmp_path / "nowhere")


def test_an_image_of_another_machine_is_refused(registry: Running, sources: Ask, tmp_path: Path) -> None:
    """Without an index, its config tells."""
    layout = Layout()
    top = layout.image([tar_of({"a": b"1"})], machine="s390x")
    image = registry.push(layout.write(tmp_path / "layout", top), "foreign:2")
    with pytest.raises(RegistryError, match=r"the image is for linux/s390x, this machine is linux/"):
        pulled(image, sources(image), tmp_path / "nowhere")


def test_a_tag_that_moved_is_another_digest(
    registry: Running, sources: Ask, tmp_path: Path, landing: Path
) -> None:
    """What was resolved before stays what it was: the run uses the digest."""
    old, new = Layout(), Layout()
    old_top, new_top = old.image([tar_of({"a": b"old"})]), new.image([tar_of({"a": b"new"})])
    image = registry.push(old.write(tmp_path / "old", old_top), "moving:1")
    reference = parse_reference(image)
    held = reference.at(resolve(reference, sources(image)))
    registry.push(new.write(tmp_path / "new", new_top), "moving:1")
    assert resolve(reference, sources(image)) == new_top["digest"]
    assert pulled(str(held), sources(image), landing).digest == old_top["digest"]


def test_a_registry_with_a_password(
    basic_registry: Running, sources: Ask, tmp_path: Path, landing: Path
) -> None:
    """With the right one the image comes; with none or a wrong one it is denied, and says what to do."""
    layout = Layout()
    top = layout.image(random_layers(2, 1000))
    image = basic_registry.push(layout.write(tmp_path / "layout", top), "private:1", *LOGIN)
    assert pulled(image, sources(image, credential=CREDENTIAL), landing).digest == top["digest"]
    wrong = Credential(username=USER, password=SecretStr("wrong"))
    for credential, reason in ((Credential(), "wants a credential"), (wrong, "refuses our credential")):
        with pytest.raises(RegistryError, match=f"{reason}; put one for") as caught:
            resolve(parse_reference(image), sources(image, credential=credential))
        assert caught.value.fault is Fault.DENIED


def test_a_registry_with_a_token_service(
    token_registry: Running, token_service: TokenService, sources: Ask, tmp_path: Path, landing: Path
) -> None:
    """One token is asked for, to pull this repository and nothing else; without a credential it is denied."""
    layout = Layout()
    top = layout.image(random_layers(5, 1000))
    image = token_registry.push(layout.write(tmp_path / "layout", top), "private:1", *LOGIN)
    token_service.asked.clear()
    assert pulled(image, sources(image, credential=CREDENTIAL), landing).digest == top["digest"]
    assert [(each["scope"], each["service"]) for each in token_service.asked] == [
        ("repository:private:pull", TokenService.SERVICE)
    ]
    with pytest.raises(RegistryError) as caught:
        pulled(image, sources(image), tmp_path / "nowhere")
    assert caught.value.fault is Fault.DENIED


def test_what_is_not_there_is_not_found(registry: Running, sources: Ask) -> None:
    """A name, a tag and a digest that the registry does not have."""
    for image in ("nobody/nothing:1", f"nobody/nothing@sha256:{'0' * 64}"):
        with pytest.raises(RegistryError) as caught:
            pulled(f"{registry.host}/{image}", sources(f"{registry.host}/{image}"), Path("/nonexistent"))
        assert caught.value.fault is Fault.NOT_FOUND


def test_tls_is_verified(sources: Ask, tmp_path: Path, landing: Path) -> None:
    """A certificate that nobody vouches for is refused without a second try; with `ca` it is accepted."""
    need({"docker-registry": "docker-registry", "skopeo": "skopeo", "openssl": "openssl"})
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    make_certificate(key, certificate)
    layout = Layout()
    top = layout.image([tar_of({"a": b"1"})])
    tls = {"certificate": str(certificate), "key": str(key)}
    with Running(tmp_path, tls=tls).started() as running:
        image = running.push(layout.write(tmp_path / "layout", top), "x:1")
        said: dict[str, Any] = {running.host: {"insecure": False}}
        with pytest.raises(RegistryError, match="its certificate is not accepted: ") as caught:
            pulled(image, sources(image, said), landing)
        assert caught.value.fault is Fault.REFUSED
        said[running.host]["ca"] = certificate.read_text()
        assert pulled(image, sources(image, said), landing).digest == top["digest"]
        named = f"localhost:{running.host.rpartition(':')[2]}/x:1"  # the certificate is for the address
        with pytest.raises(RegistryError, match="its certificate is not accepted: "):
            pulled(named, sources(named, {named.partition("/")[0]: said[running.host]}), landing)


def test_a_mirror_is_asked_first_and_passed_over_when_it_fails(
    hostile: Hostile, other: Hostile, sources: Ask, landing: Path
) -> None:
    """One that is down, one that lies; the registry has the last word."""
    layout, false = Layout(), Layout()
    top = layout.image([tar_of({"a": b"1"})])
    image = hostile.serve(layout, top)
    false.image([tar_of({"a": b"2"})])
    other.serve(layout, top, "mirrored/x")
    layer = next(path for path in other.routes if "/blobs/" in path)
    said = {hostile.host: {"mirrors": ["127.0.0.1:1", f"{other.host}/mirrored"]}}
    pulled(image, sources(image, said), landing)
    assert not hostile.asked and other.asked
    other.routes[layer] = Hostile.content(b"x")
    sink = LayoutSink(landing.parent / "second")
    assert pull(parse_reference(image), sink, lambda _: None, sources(image, said)).digest == top["digest"]
    assert hostile.asked


def test_progress_counts_every_byte_and_blob(
    registry: Running, sources: Ask, tmp_path: Path, landing: Path
) -> None:
    """It ends with all of them, and never goes over."""
    layout = Layout()
    top = layout.image(random_layers(5, 40_000))
    image = registry.push(layout.write(tmp_path / "layout", top), "progress:1")
    told: list[Progress] = []
    found = pull(parse_reference(image), LayoutSink(landing), told.append, sources(image))
    total = sum(layer.size for layer in found.layers)
    assert (told[-1].bytes, told[-1].bytes_total) == (total, total)
    assert (told[-1].blobs, told[-1].blobs_total) == (5, 5)
    assert all(each.bytes <= total and each.rate >= 0 for each in told)


def test_a_layer_that_stands_twice_is_fetched_once_and_what_is_here_not_at_all(
    hostile: Hostile, sources: Ask, landing: Path
) -> None:
    """An image may hold one layer several times; a sink may have some already."""
    layout = Layout()
    same, here = tar_of({"a": b"same"}), tar_of({"b": b"here"})
    top = layout.image([same, here, same], "none")
    image = hostile.serve(layout, top)
    present = Layout().add(here, "")["digest"]
    found = pull(parse_reference(image), LayoutSink(landing, [present]), lambda _: None, sources(image))
    assert len(found.layers) == 3
    assert [
        path for path in hostile.paths() if "/blobs/" in path and found.config_blob.digest not in path
    ] == [f"/v2/x/blobs/{found.layers[0].digest}"]


def test_a_blob_that_is_not_complete_has_no_name(landing: Path) -> None:
    """What breaks in the middle leaves nothing in the layout."""
    content = compressed(b"all of it", "none")
    blob = Descriptor.model_validate(Layout().add(content, "x"))
    with contextlib.suppress(RuntimeError), LayoutSink(landing).blob(blob) as file:
        file.write(b"all")
        raise RuntimeError
    assert not [path for path in landing.rglob("*") if path.is_file()]
