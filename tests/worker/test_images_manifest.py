"""Group H, what an image says of itself: manifests and configurations that are wrong, or lie."""

from __future__ import annotations

import gzip
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.images import (
    OCI_CONFIG,
    OCI_INDEX,
    OCI_LAYER,
    OCI_MANIFEST,
    Layout,
    archive,
    bring_in,
    config_of,
    descriptor,
    entry,
    oci,
    symlink,
)
from worker.images import manifest
from worker.images.errors import ImageError
from worker.images.store import Store
from worker.images.tree import Caps

pytestmark = [pytest.mark.kernel, pytest.mark.once]
SMALL = Caps(size=8 << 20, entries=2000)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """A store with nothing half done in it when the test is over."""
    made = Store(tmp_path / "store")
    yield made
    assert os.listdir(made.directory / "temporary") == []
    assert set(os.listdir(made.directory / "locks")) <= {"store", "names"}


def _import_refused(store: Store, path: Path, code: str) -> str:
    with pytest.raises(ImageError) as caught:
        bring_in(store, path, SMALL)
    assert caught.value.code == code, caught.value
    assert os.listdir(store.directory / "images") == []
    return caught.value.message


LAYER = archive(entry("f", data=b"content"))
OTHER = archive(entry("f", data=b"changed"))


def test_a_layer_that_is_not_its_digest_is_refused(store: Store, tmp_path: Path) -> None:
    """149: blob, size and diff_id, each for itself; the manifest and the configuration too."""
    for number, (blob, diff, code) in enumerate(
        ((OTHER, LAYER, "layer_digest_mismatch"), (gzip.compress(OTHER), LAYER, "layer_digest_mismatch"))
    ):
        layout = Layout(tmp_path / f"diff-{number}")
        made = layout.manifest([diff], None, [blob])
        _import_refused(store, layout.index(descriptor(OCI_MANIFEST, made)), code)
    for number, (change, code) in enumerate(
        (
            (lambda data: data.replace(b"content", b"CONTENT"), "layer_digest_mismatch"),
            (lambda data: data + bytes(512), "layer_size_mismatch"),
            (lambda data: data[:-512], "layer_size_mismatch"),
        )
    ):
        path = oci(tmp_path / f"blob-{number}", LAYER)
        blob_path = path / "blobs/sha256" / descriptor("", LAYER)["digest"][7:]
        blob_path.write_bytes(change(LAYER))
        _import_refused(store, path, code)
    path = oci(tmp_path / "config", LAYER)
    for file in (path / "blobs/sha256").iterdir():
        if b"diff_ids" in (content := file.read_bytes()):
            file.write_bytes(content.replace(b"linux", b"Linux"))
    _import_refused(store, path, "digest_mismatch")


@pytest.mark.parametrize(
    "digest",
    [
        "md5:" + "0" * 32,
        "sha256:../../x",
        "sha256:" + "A" * 64,
        "sha256:" + "0" * 63,
        "sha256:" + "0" * 64 + "\n",
        7,
    ],
    ids=str,
)
def test_only_plain_digests_are_followed(store: Store, tmp_path: Path, digest: object) -> None:
    """149: wherever a digest stands: index, manifest, diff_ids."""
    for place in ("index", "layer", "diff_id"):
        layout = Layout(tmp_path / place)
        config = config_of([LAYER])
        if place == "diff_id":
            config["rootfs"]["diff_ids"] = [digest]
        layers = [descriptor(OCI_LAYER, LAYER) | ({"digest": digest} if place == "layer" else {})]
        made = layout.manifest([LAYER], config, layers=layers)
        above = descriptor(OCI_MANIFEST, made) | ({"digest": digest} if place == "index" else {})
        code = "config_invalid" if place == "diff_id" else "manifest_invalid"
        _import_refused(store, layout.index(above), code)


def test_a_manifest_that_means_two_things_is_refused(store: Store, tmp_path: Path) -> None:
    """150: CVE-2021-41190: both manifests and layers."""
    layout = Layout(tmp_path / "both")
    made = layout.manifest([LAYER], manifests=[descriptor(OCI_MANIFEST, b"x")])
    _import_refused(store, layout.index(descriptor(OCI_MANIFEST, made)), "manifest_invalid")
    layout.index(descriptor(OCI_MANIFEST, made), layers=[])
    _import_refused(store, layout.path, "manifest_invalid")


@pytest.mark.parametrize(
    ("more", "code"),
    [
        ({"mediaType": "application/vnd.oci.artifact.manifest.v1+json"}, "manifest_invalid"),
        ({"mediaType": OCI_INDEX}, "manifest_invalid"),
        ({"schemaVersion": 1}, "manifest_invalid"),
        ({"schemaVersion": "2"}, "manifest_invalid"),
        ({"layers": []}, "manifest_invalid"),
        ({"layers": [descriptor(OCI_LAYER, LAYER)] * 129}, "manifest_invalid"),
        ({"layers": [descriptor(OCI_LAYER, LAYER)] * 100_000}, "image_too_large"),
        ({"layers": [descriptor("text/html", LAYER)]}, "manifest_invalid"),
        ({"layers": [descriptor(OCI_LAYER, LAYER) | {"size": -1}]}, "manifest_invalid"),
        ({"layers": [descriptor(OCI_LAYER, LAYER) | {"size": 2**63}]}, "manifest_invalid"),
        ({"layers": [descriptor(OCI_LAYER, LAYER) | {"size": True}]}, "manifest_invalid"),
        ({"layers": [descriptor(OCI_LAYER, LAYER)] * 2}, "config_invalid"),
        ({"config": descriptor("application/vnd.cncf.helm.config.v1+json", b"{}")}, "manifest_invalid"),
        ({"config": descriptor(OCI_CONFIG, b"{}") | {"size": 1 << 30}}, "image_too_large"),
        ({"annotations": {"x": "y" * (5 << 20)}}, "image_too_large"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_manifests_beyond_bounds_are_refused(
    store: Store, tmp_path: Path, more: dict[str, Any], code: str
) -> None:
    """150: unknown kinds, too many layers, sizes that cannot be, too many bytes."""
    layout = Layout(tmp_path / "layout")
    made = layout.manifest([LAYER], **more)
    _import_refused(store, layout.index(descriptor(OCI_MANIFEST, made)), code)


@pytest.mark.parametrize(
    "text",
    [b"[]", b"null", b"{", b'{"a":' * 100_000, b'{"manifests": [], "manifests": []}', b"\xff", b"9" * 9000],
)
def test_what_is_no_json_object_is_refused(store: Store, tmp_path: Path, text: bytes) -> None:
    """150: also where it is nested without end, or says a thing twice."""
    layout = Layout(tmp_path / "layout")
    (layout.path / "index.json").write_bytes(text)
    _import_refused(store, layout.path, "manifest_invalid")


def test_indexes_within_indexes_end(store: Store, tmp_path: Path) -> None:
    """150: three of them are read, a fourth is refused."""
    layout = Layout(tmp_path / "layout")
    inner = descriptor(OCI_MANIFEST, layout.manifest([LAYER]))
    for depth in range(1, 5):
        path = layout.index(inner)
        if depth <= manifest.NESTING_MAX:
            bring_in(store, path)
            (store.directory / "images" / os.listdir(store.directory / "images")[0]).unlink()
        else:
            _import_refused(store, path, "manifest_invalid")
        inner = descriptor(OCI_INDEX, layout.put({"schemaVersion": 2, "manifests": [inner]}))


def test_layers_that_are_kept_elsewhere_are_not_fetched(store: Store, tmp_path: Path) -> None:
    """151: a foreign layer is refused; an address beside an ordinary one is not looked at."""
    address = {"urls": ["http://169.254.169.254/latest", "file:///etc/shadow"]}
    layout = Layout(tmp_path / "foreign")
    kind = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
    made = layout.manifest([LAYER], layers=[descriptor(kind, LAYER) | address])
    _import_refused(store, layout.index(descriptor(OCI_MANIFEST, made)), "layer_foreign")
    made = layout.manifest([LAYER], layers=[descriptor(OCI_LAYER, LAYER) | address])
    assert len(bring_in(store, layout.index(descriptor(OCI_MANIFEST, made))).layers) == 1


@pytest.mark.parametrize(
    "config",
    [
        {"User": "0:0;rm"},
        {"User": "a/b"},
        {"User": "70000"},
        {"User": "nobody-here"},
        {"User": "0:no-such-group"},
        {"User": 0},
        {"WorkingDir": "/proc/self/fd/8"},
        {"WorkingDir": "/a/../proc/self/cwd"},
        {"WorkingDir": "relative"},
        {"WorkingDir": "/dev/fd/3"},
        {"WorkingDir": "/a\0b"},
        {"Env": ["NOVALUE"]},
        {"Env": ["=x"]},
        {"Env": ["A=\0"]},
        {"Env": ["A=" + "x" * 5000]},
        {"Env": [f"A{number}=x" for number in range(300)]},
        {"Env": [f"A{number}=" + "x" * 1000 for number in range(100)]},
        {"Env": "PATH=/bin"},
        {"Entrypoint": "sh -c"},
        {"Cmd": [1]},
    ],
    ids=lambda value: str(value)[:60],
)
def test_configurations_beyond_bounds_are_refused(
    store: Store, tmp_path: Path, config: dict[str, Any]
) -> None:
    """152: users, directories and variables that no program can be started with."""
    _import_refused(store, oci(tmp_path / "layout", LAYER, **config), "config_invalid")


def test_configurations_may_leave_everything_out(store: Store, tmp_path: Path) -> None:
    """152: no Entrypoint, null, or no ``config`` at all is an image like others."""
    for number, config in enumerate(({}, {"Entrypoint": None, "Cmd": None, "Env": None, "User": None}, None)):
        layout = Layout(tmp_path / str(number))
        made = layout.manifest([LAYER], config_of([LAYER]) | {"config": config})
        record = bring_in(store, layout.index(descriptor(OCI_MANIFEST, made)))
        assert (record.user, record.env, record.entrypoint, record.directory) == (None, (), (), "")


def test_the_users_file_of_an_image_is_only_read_as_text(store: Store, tmp_path: Path) -> None:
    """152: a symlink in its place leads nowhere, its numbers are held to what a sandbox maps."""
    planted = archive(symlink("etc/passwd", b"/etc/passwd"))
    _import_refused(store, oci(tmp_path / "link", planted, User="root"), "config_invalid")
    huge = archive(entry("etc/passwd", data=b"me:x:4294967295:5::/:\n"))
    _import_refused(store, oci(tmp_path / "huge", huge, User="me"), "config_invalid")
    odd = archive(
        entry("etc/passwd", data=b"\xff\0:::\nme:x:7:9:::\n"), entry("etc/group", data=b"them:x:11:\n")
    )
    for user, ids in (("me", (7, 9)), ("7", (7, 9)), ("me:them", (7, 11)), ("8", (8, 0)), ("8:3", (8, 3))):
        record = bring_in(store, oci(tmp_path / user, odd, User=user))
        assert (record.user, record.group) == ids
