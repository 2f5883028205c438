"""Archives and images made byte by byte, so that they may be wrong in any way a test wants."""

from __future__ import annotations

import functools
import gzip
import hashlib
import json
import os
import re
import shutil
import stat
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from worker.images import archives, manifest
from worker.images.source import Blob, Undescribed
from worker.images.store import ImageRecord, Store
from worker.images.tree import Caps

END = bytes(1024)
OCI_MANIFEST, OCI_INDEX = manifest.MANIFESTS[0], manifest.INDEXES[0]
OCI_CONFIG, OCI_LAYER = manifest.CONFIGS[0], manifest.LAYERS[0]


def octal(value: int, width: int) -> bytes:
    """A number as ustar writes it; base-256 where it does not fit, or is negative."""
    if 0 <= value < 8 ** (width - 1):
        return f"{value:0{width - 1}o}\0".encode()
    return (
        b"\x80" + value.to_bytes(width - 1, "big")
        if value >= 0
        else value.to_bytes(width, "big", signed=True)
    )


def header(
    name: bytes,
    kind: bytes = b"0",
    *,
    size: int = 0,
    link: bytes = b"",
    mode: int = 0o644,
    uid: int = 0,
    gid: int = 0,
    mtime: int = 1,
    device: tuple[int, int] = (0, 0),
    magic: bytes = b"ustar\x0000",
    raw_size: bytes | None = None,
    tail: bytes = b"",
) -> bytes:
    """One block with a right checksum."""
    block = bytearray(512)

    def put(at: int, value: bytes) -> None:
        block[at : at + len(value)] = value

    put(0, name[:100])
    for at, value, width in ((100, mode, 8), (108, uid, 8), (116, gid, 8), (136, mtime, 12)):
        put(at, octal(value, width))
    put(124, octal(size, 12) if raw_size is None else raw_size)
    put(148, b" " * 8)
    put(156, kind)
    put(157, link[:100])
    put(257, magic)
    put(329, octal(device[0], 8))
    put(337, octal(device[1], 8))
    put(345, tail)
    put(148, f"{sum(block):06o}\0 ".encode())
    return bytes(block)


def padded(data: bytes) -> bytes:
    """Filled up to whole blocks."""
    return data + bytes(-len(data) % 512)


def pax(records: Mapping[bytes, bytes]) -> bytes:
    """An extended header for the entry that follows."""
    content = b""
    for key, value in records.items():
        body = b" " + key + b"=" + value + b"\n"
        length = len(body) + 1
        while len(str(length)) + len(body) != length:
            length = len(str(length)) + len(body)
        content += str(length).encode() + body
    return header(b"pax", b"x", size=len(content)) + padded(content)


def entry(name: bytes | str, kind: bytes = b"0", data: bytes = b"", **options: Any) -> bytes:
    """One entry with its data; names that are too long for ustar get GNU's long name."""
    name = os.fsencode(name)
    before = b"".join(
        header(b"././@LongLink", letter, size=len(text) + 1) + padded(text + b"\0")
        for letter, text in ((b"L", name), (b"K", options.get("link", b"")))
        if len(text) > 100
    )
    if "xattrs" in options:
        before += pax({b"SCHILY.xattr." + key: value for key, value in options.pop("xattrs").items()})
    return before + header(name, kind, size=len(data), **options) + padded(data)


def directory(name: bytes | str, mode: int = 0o755, **options: Any) -> bytes:
    """A directory's entry."""
    return entry(name, b"5", mode=mode, **options)


def symlink(name: bytes | str, target: bytes, **options: Any) -> bytes:
    """A symlink's entry."""
    return entry(name, b"2", link=target, mode=0o777, **options)


def hard_link(name: bytes | str, target: bytes) -> bytes:
    """A hard link's entry."""
    return entry(name, b"1", link=target)


def archive(*entries: bytes) -> bytes:
    """A whole archive."""
    return b"".join(entries) + END


def digest(content: bytes) -> str:
    """As images write it."""
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def descriptor(media_type: str, content: bytes, **more: Any) -> dict[str, Any]:
    """What a manifest says of a piece of content."""
    return {"mediaType": media_type, "digest": digest(content), "size": len(content), **more}


def config_of(layers: Sequence[bytes], **config: Any) -> dict[str, Any]:
    """A configuration for layers that are given as plain archives."""
    diff_ids = [digest(layer) for layer in layers]
    root = {"type": "layers", "diff_ids": diff_ids}
    return {"architecture": manifest.architecture(), "os": "linux", "rootfs": root, "config": config}


class Layout:
    """An OCI layout in a directory. Whatever ``change`` does to the manifest, the digests above it are right."""

    def __init__(self, path: Path) -> None:
        self.path = path
        (path / "blobs/sha256").mkdir(parents=True)
        (path / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')

    def put(self, content: bytes | dict[str, Any]) -> bytes:
        """Store a blob; gives its bytes."""
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        (self.path / "blobs/sha256" / hashlib.sha256(data).hexdigest()).write_bytes(data)
        return data

    def index(self, *descriptors: dict[str, Any], **more: Any) -> Path:
        """Write the index; gives the layout's path."""
        value = {"schemaVersion": 2, "manifests": list(descriptors), **more}
        (self.path / "index.json").write_text(json.dumps(value))
        return self.path

    def manifest(
        self,
        plain: Sequence[bytes],
        settings: dict[str, Any] | None = None,
        blobs: Sequence[bytes] | None = None,
        kind: str = OCI_LAYER,
        /,
        **more: Any,
    ) -> bytes:
        """Store a manifest with all that it names. blobs: the layers as they are kept, perhaps compressed."""
        stored = [self.put(each) for each in (plain if blobs is None else blobs)]
        config = self.put(config_of(plain) if settings is None else settings)
        value = {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": descriptor(OCI_CONFIG, config),
            "layers": [descriptor(kind, each) for each in stored],
        }
        return self.put(value | more)


def oci(path: Path, *layers: bytes, compressed: bool = False, **config: Any) -> Path:
    """A layout with one image."""
    layout = Layout(path)
    blobs = [gzip.compress(each, 1) for each in layers] if compressed else None
    kind = OCI_LAYER + "+gzip" if compressed else OCI_LAYER
    made = layout.manifest(layers, config_of(layers, **config), blobs, kind)
    return layout.index(descriptor(OCI_MANIFEST, made))


def bring_in(store: Store, path: Path, caps: Caps | None = None) -> ImageRecord:
    """What `stockade image import` does, without a name."""
    with store.shared(), archives.opened(path) as (source, _):
        return store.add(source, caps or Caps(), lambda _: None)


def unpack(store: Store, *layers: bytes, caps: Caps | None = None) -> list[Path]:
    """Bring layers in as they are; the tree of each, the lowest first."""

    def opener(layer: bytes) -> Any:
        @contextmanager
        def opened() -> Any:
            yield [layer]

        return opened

    source = Undescribed(tuple(Blob(opener(each)) for each in layers))
    with store.shared():
        record = store.add(source, caps or Caps(), lambda _: None)
    return [store.directory / "layers" / each.removeprefix("sha256:") / "tree" for each in record.layers]


def listed(tree: Path) -> dict[str, tuple[Any, ...]]:
    """Everything in a tree: kind and mode, owner, content or target, attributes."""
    found = {}
    for parent, names, files in os.walk(tree):
        for name in [*names, *files, *([""] if parent == str(tree) else [])]:
            path = os.path.join(parent, name).rstrip("/")
            about = os.lstat(path)
            content: Any = None
            if stat.S_ISREG(about.st_mode):
                content = Path(path).read_bytes()
            elif stat.S_ISLNK(about.st_mode):
                content = os.readlink(path)
            elif stat.S_ISCHR(about.st_mode):
                content = about.st_rdev
            attributes = {
                key: os.getxattr(path, key, follow_symlinks=False)
                for key in os.listxattr(path, follow_symlinks=False)
            }
            where = os.path.relpath(path, tree)
            found[where] = (stat.filemode(about.st_mode), about.st_uid, about.st_gid, content, attributes)
    return found


PROGRAMS = "sh cat env id ls pwd readlink sleep stat touch".split()


@functools.cache
def root() -> bytes:
    """The archive of a root file system with a shell and a few programs, taken from this machine."""
    wanted = {shutil.which(name): f"bin/{name}" for name in PROGRAMS}
    assert None not in wanted
    for program in list(wanted):
        said = subprocess.run(["ldd", str(program)], capture_output=True, text=True, check=True).stdout
        wanted |= {path: path.lstrip("/") for path in re.findall(r"(/\S+) \(", said)}
    entries = [entry(name, data=Path(str(path)).read_bytes(), mode=0o755) for path, name in wanted.items()]
    return archive(directory("bin"), directory("etc"), *entries)
