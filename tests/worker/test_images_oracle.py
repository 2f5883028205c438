"""What others make of the same images: umoci unpacks to the same tree, skopeo's conversions hold the same layers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.images import (
    OCI_MANIFEST,
    Layout,
    archive,
    bring_in,
    config_of,
    descriptor,
    directory,
    entry,
    hard_link,
    symlink,
)
from worker.images.store import ImageRecord, Store

pytestmark = [pytest.mark.kernel, pytest.mark.once]
ROOT = Path(__file__).parents[2]

_WALK = """
import os, sys
sys.path.insert(0, sys.argv[1])
from worker.images import hashes
root = os.open(sys.argv[2], os.O_RDONLY | os.O_DIRECTORY)
for path, line in sorted(hashes.walk(root)):
    print(repr(path), line.decode())
"""


def layers() -> list[bytes]:
    """This machine's /etc, and two layers above it with everything that a layer can say."""
    etc = subprocess.run(
        ["tar", "-C", "/", "--format=pax", "-cf", "-", "etc"], capture_output=True, check=True
    ).stdout
    middle = archive(
        *(
            entry(f"{name}/{number}", data=b"m")
            for name in ("kept", "opaque", "hidden", "anew")
            for number in (1, 2)
        ),
        entry("bin/su", data=b"#!", mode=0o4755, uid=0, gid=5),
        directory("tmp", mode=0o1777, uid=3, gid=4),
        entry("one", data=b"linked", mode=0o640, uid=1000, gid=1000),
        hard_link("two", b"one"),
        symlink("to", b"../../outside/of/it", uid=7, gid=8),
        hard_link("to-as-well", b"to"),
        entry("attributes", xattrs={b"user.note": b"\0\1"}, data=b"a"),
        entry("n" * 120 + "/" + "m" * 130, data=b"long"),
        entry("file-then-directory"),
        directory("directory-then-file"),
    )
    upper = archive(
        entry("kept/3", data=b"u"),
        entry("kept/.wh.1"),
        directory("opaque"),
        entry("opaque/.wh..wh..opq"),
        entry("opaque/3", data=b"u"),
        entry(".wh.hidden"),
        entry(".wh.anew"),
        entry("one", data=b"changed", mode=0o600),
        directory("file-then-directory"),
        entry("file-then-directory/x"),
        entry("directory-then-file", data=b"f"),
        entry("etc/.wh.passwd"),
        symlink("etc/hostname", b"nowhere"),
    )
    return [etc, middle, upper]


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """These layers as an image with the tag ``latest``."""
    made = Layout(tmp_path_factory.mktemp("oracle") / "layout")
    plain = layers()
    image = made.manifest(plain, config_of(plain) | {"history": []})
    tag = {"org.opencontainers.image.ref.name": "latest"}
    return made.index(descriptor(OCI_MANIFEST, image, annotations=tag))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("oracle-store") / "store")


def walked(*command: str) -> list[str]:
    """What a command says that walks over a tree: one line for each path."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def inodes(store: Store) -> dict[str, int]:
    """Which directory holds each layer."""
    directory = store.directory / "layers"
    return {name: (directory / name).stat().st_ino for name in os.listdir(directory)}


def overlaid(store: Store, record: ImageRecord, place: Path) -> list[str]:
    """The image's layers as overlayfs shows them, in a mount namespace of its own."""
    place.mkdir()
    trees = [
        f"{store.directory}/layers/{each.removeprefix('sha256:')}/tree" for each in reversed(record.layers)
    ]
    script = 'mount -t overlay overlay -o "ro,lowerdir=$1" "$2" && exec "$3" -c "$4" "$5" "$2"'
    arguments = [":".join(trees), str(place), sys.executable, _WALK, str(ROOT)]
    return walked("unshare", "--mount", "sh", "-c", script, "sh", *arguments)


def test_umoci_unpacks_to_the_same_tree(store: Store, layout: Path, tmp_path: Path) -> None:
    """Paths, kinds, modes, owners, contents, link targets and attributes are equal, one by one."""
    bundle = tmp_path / "bundle"
    subprocess.run(
        ["umoci", "unpack", "--image", f"{layout}:latest", str(bundle)], capture_output=True, check=True
    )
    theirs = walked(sys.executable, "-c", _WALK, str(ROOT), str(bundle / "rootfs"))
    ours = overlaid(store, bring_in(store, layout), tmp_path / "overlay")
    assert len(ours) > 500
    assert ours == theirs


@pytest.mark.parametrize("form", ["docker-archive", "oci-archive", "zstd", "gzip"])
def test_skopeo_converts_to_the_same_layers(store: Store, layout: Path, tmp_path: Path, form: str) -> None:
    """As docker-archive, as one file, compressed either way: the same diff_ids, and nothing is unpacked again."""
    before = bring_in(store, layout)
    there = inodes(store)
    target = tmp_path / "converted"
    where = {
        "docker-archive": f"docker-archive:{target}:tools:1",
        "oci-archive": f"oci-archive:{target}:latest",
    }
    compression = [] if form in where else ["--dest-compress", "--dest-compress-format", form]
    destination = where.get(form, f"oci:{target}:latest")
    subprocess.run(
        ["skopeo", "--insecure-policy", "copy", *compression, f"oci:{layout}:latest", destination],
        capture_output=True,
        check=True,
    )
    record = bring_in(store, target)
    assert record.layers == before.layers
    assert inodes(store) == there


@pytest.mark.parametrize("form", ["zstd", "gzip"])
def test_layers_that_skopeo_compressed_are_read(layout: Path, tmp_path: Path, form: str) -> None:
    """Into an empty store, so that each is really unpacked; the digests of both forms are right."""
    command = ["skopeo", "--insecure-policy", "copy", "--dest-compress", "--dest-compress-format", form]
    subprocess.run(
        [*command, f"oci:{layout}:latest", f"oci:{tmp_path}/c:latest"], capture_output=True, check=True
    )
    magic = b"\x28\xb5\x2f\xfd" if form == "zstd" else b"\x1f\x8b"
    blobs = [path.read_bytes()[:4] for path in (tmp_path / "c/blobs/sha256").iterdir()]
    assert sum(blob.startswith(magic) for blob in blobs) == 3
    assert len(bring_in(Store(tmp_path / "store"), tmp_path / "c").layers) == 3
