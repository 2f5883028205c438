"""The parsers of archives, manifests and names: whatever the bytes, an answer or an ``ImageError``, in bounded time."""

from __future__ import annotations

import json
import os
import random
import tarfile
import time
from io import BytesIO

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.images import (
    OCI_INDEX,
    OCI_MANIFEST,
    archive,
    config_of,
    descriptor,
    directory,
    entry,
    hard_link,
    pax,
    symlink,
)
from worker.images import manifest, reference, tar
from worker.images.errors import ImageError

FUZZ_SECONDS = float(os.environ.get("STOCKADE_FUZZ_SECONDS", "2"))
"""How long each of the two fuzz runs takes; `make fuzz` gives them more."""

GOOD = archive(
    directory("d"),
    entry("d/f", data=b"x" * 700, xattrs={b"user.a": b"b"}),
    pax({b"path": b"long/" * 30 + b"x", b"mtime": b"1.5", b"size": b"3"}) + entry("short", data=b"abc"),
    pax({b"GNU.sparse.map": b"0,512", b"GNU.sparse.size": b"4096", b"GNU.sparse.name": b"s"})
    + entry("s", data=b"d" * 512),
    symlink("l", b"d/f"),
    hard_link("h", b"d/f"),
    entry("n" * 150, data=b"y"),
)


def read(data: bytes) -> list[tuple[tar.Entry, bytes]]:
    """All entries of an archive with their data."""
    fd = os.memfd_create("archive")
    try:
        os.write(fd, data)
        os.lseek(fd, 0, os.SEEK_SET)
        reader = tar.Reader(tar.Stream(fd, 1 << 24), 1000)
        found = []
        for each in reader:
            assert 0 <= each.size < 1 << 63
            assert all(0 <= offset <= offset + length <= each.size for offset, length in each.extents)
            data = b"".join(bytes(piece) for _, length in each.extents for piece in reader.data(length))
            found.append((each, data))
        return found
    finally:
        os.close(fd)


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_what_python_writes_is_read(form: int) -> None:
    """Names, sizes, owners, times and targets, in the three formats."""
    buffer = BytesIO()
    long = "deep/" * 25 + "n" * 60
    with tarfile.open(fileobj=buffer, mode="w", format=form) as file:
        for name, kind, size, link in (
            ("plain", tarfile.REGTYPE, 5000, ""),
            (long, tarfile.REGTYPE, 1, ""),
            ("ü", tarfile.SYMTYPE, 0, "plain"),
            ("hard", tarfile.LNKTYPE, 0, "plain"),
            ("d", tarfile.DIRTYPE, 0, ""),
        ):
            about = tarfile.TarInfo(name)
            about.type, about.size, about.linkname = kind, size, link
            about.uid, about.gid, about.mode, about.mtime = 1000, 65535, 0o4711, 1234567890
            file.addfile(about, BytesIO(b"z" * size))
        if form != tarfile.USTAR_FORMAT:
            about = tarfile.TarInfo("x" * 300)
            about.type, about.linkname, about.uid = tarfile.SYMTYPE, "y" * 300, 1 << 25
            file.addfile(about)
    found = read(buffer.getvalue())
    assert [each.name for each, _ in found[:5]] == [b"plain", long.encode(), "ü".encode(), b"hard", b"d/"]
    assert [data for _, data in found[:2]] == [b"z" * 5000, b"z"]
    first = found[0][0]
    assert (first.uid, first.gid, first.mode, first.mtime) == (1000, 65535, 0o4711, 1234567890 * 10**9)
    assert [each.link for each, _ in found[2:4]] == [b"plain", b"plain"]
    assert [each.kind for each, _ in found[2:5]] == [tar.SYMLINK, tar.HARD_LINK, tar.DIRECTORY]
    if form != tarfile.USTAR_FORMAT:
        last = found[5][0]
        assert (last.name, last.link, last.uid) == (b"x" * 300, b"y" * 300, 1 << 25)


def test_an_extended_header_counts_for_one_entry() -> None:
    """What it says of one file is not said of the next."""
    layer = archive(
        pax({b"path": b"renamed", b"uid": b"7"}) + entry("a"),
        entry("b"),
        pax({b"mtime": b"-1.25"}) + entry("c"),
    )
    found = [(each.name, each.uid, each.mtime) for each, _ in read(layer)]
    assert found == [(b"renamed", 7, 10**9), (b"b", 0, 10**9), (b"c", 0, -1_250_000_000)]


def test_fuzzed_archives_end_in_entries_or_an_error() -> None:
    """147: bytes changed, cut out, doubled and inserted in a good archive, half of the time with right checksums."""
    chance, end, runs = random.Random(1), time.monotonic() + FUZZ_SECONDS, 0
    while time.monotonic() < end or runs < 50:
        data = bytearray(GOOD)
        for _ in range(chance.randrange(1, 8)):
            at = chance.randrange(len(data))
            match chance.randrange(5):
                case 0 | 1:
                    data[at] = chance.choice([0, 0x20, 0x30, 0x80, 0xFF, chance.randrange(256)])
                case 2:
                    del data[at : at + chance.choice([1, 512, 1024])]
                case 3:
                    block = at - at % 512
                    data[block:block] = data[block : block + 512]
                case 4:
                    data[at:at] = chance.randbytes(chance.choice([1, 512]))
        if chance.random() < 0.5:
            for block in range(0, len(data) - 511, 512):
                data[block + 148 : block + 156] = b" " * 8
                data[block + 148 : block + 156] = f"{sum(data[block : block + 512]):06o}\0 ".encode()
        runs += 1
        try:
            read(bytes(data))
        except ImageError:
            continue


KEYS = (
    "schemaVersion mediaType config layers manifests digest size platform architecture os rootfs type diff_ids"
).split()
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=6),
    max_leaves=12,
)
GOOD_MANIFEST = {
    "schemaVersion": 2,
    "mediaType": OCI_MANIFEST,
    "config": descriptor(manifest.CONFIGS[0], b"{}"),
    "layers": [descriptor(manifest.LAYERS[0], b"x")],
}
GOOD_INDEX = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [descriptor(OCI_MANIFEST, b"x")]}
READERS = (
    (manifest.read_manifest, GOOD_MANIFEST),
    (manifest.read_index, GOOD_INDEX),
    (manifest.read_config, config_of([b"x"], Env=["A=b"], User="0", WorkingDir="/w", Cmd=["x"])),
)


@settings(max_examples=150, deadline=None)
@given(
    st.binary(max_size=200),
    st.dictionaries(st.sampled_from(KEYS), JSON, max_size=4),
    st.sampled_from(READERS),
)
def test_fuzzed_manifests_end_in_a_value_or_an_error(
    raw: bytes, changed: dict[str, object], reader: object
) -> None:
    """150, 152: any bytes, and good ones with parts replaced by any JSON."""
    read, good = reader  # type: ignore[misc]
    for data in (raw, json.dumps(good | changed).encode()):
        try:
            read(data)
        except ImageError:
            continue
    read(json.dumps(good).encode())


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("python", ("", "python", "latest", "")),
        ("python:3.12", ("", "python", "3.12", "")),
        ("team/app:1", ("", "team/app", "1", "")),
        ("localhost/app", ("localhost", "app", "latest", "")),
        ("localhost:5000/app:v1", ("localhost:5000", "app", "v1", "")),
        ("registry.example/a/b_c/d__e:1.2-3_4", ("registry.example", "a/b_c/d__e", "1.2-3_4", "")),
        ("[::1]:5000/app", ("[::1]:5000", "app", "latest", "")),
        ("app@sha256:" + "a" * 64, ("", "app", "", "sha256:" + "a" * 64)),
        ("app:1@sha256:" + "a" * 64, ("", "app", "1", "sha256:" + "a" * 64)),
        ("sha256:" + "a" * 64, ("", "", "", "sha256:" + "a" * 64)),
    ],
)
def test_names_are_read(text: str, parts: tuple[str, ...]) -> None:
    """As people and the distribution project write them."""
    found = reference.parse(text)
    assert (found.registry, found.path, found.tag, found.digest) == parts
    assert reference.parse(str(found)).path == found.path


NO_NAMES = [
    *[
        "",
        "host",
        "A",
        "a:",
        ":a",
        "a:b:c",
        "a//b",
        "/a",
        "a/",
        "../a",
        "a b",
        "a\n",
        "a@",
        "a@md5:1",
        "x" * 256,
    ],
    *["-a", "a.", "a__.b", "reg:port/a", "a:" + "t" * 129, "a@sha256:" + "A" * 64, "ü", "http://a.b/c"],
]


@pytest.mark.parametrize("text", NO_NAMES)
def test_what_is_no_name_is_refused(text: str) -> None:
    """``host`` is the built-in image's."""
    with pytest.raises(ImageError, match="bad_name"):
        reference.parse(text)


@settings(max_examples=100, deadline=None)
@given(st.text(alphabet="aA0.:/@-_[]\n~", max_size=20))
def test_a_name_that_is_read_reads_as_itself(text: str) -> None:
    """Writing it out and reading it again changes nothing."""
    try:
        found = reference.parse(text)
    except ImageError:
        return
    assert str(reference.parse(str(found))) == str(found)
