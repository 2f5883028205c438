"""Group H: images that attack whoever unpacks them. Nothing outside of the layer changes, nothing half is left."""

from __future__ import annotations

import gzip
import lzma
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zstandard

from tests.images import (
    archive,
    directory,
    entry,
    hard_link,
    header,
    listed,
    padded,
    pax,
    symlink,
    unpack,
)
from worker.images.errors import ImageError
from worker.images.store import Store
from worker.images.tree import Caps

pytestmark = [pytest.mark.kernel, pytest.mark.once]
SMALL = Caps(size=8 << 20, entries=2000)


@pytest.fixture
def store(tmp_path: Path, sentinel: Path) -> Iterator[Store]:
    """A store; whatever was tried with it, it has nothing half done in it afterwards."""
    made = Store(tmp_path / "store")
    yield made
    for name in ("temporary", "quarantine"):
        assert os.listdir(made.directory / name) == []
    assert set(os.listdir(made.directory / "locks")) <= {"store", "names"}


def refused(store: Store, code: str, *layers: bytes) -> str:
    """The layers are refused for that reason and leave nothing; the reason in full."""
    with pytest.raises(ImageError) as caught:
        unpack(store, *layers, caps=SMALL)
    assert caught.value.code == code, caught.value
    assert os.listdir(store.directory / "images") == []
    assert os.listdir(store.directory / "layers") == []
    return caught.value.message


def clamped(store: Store, *entries: bytes) -> dict[str, tuple[Any, ...]]:
    """The one layer is taken in: what is in it."""
    [tree] = unpack(store, archive(*entries), caps=SMALL)
    return listed(tree)


# ---- names


@pytest.mark.parametrize(
    "name",
    [
        b"../x",
        b"../../../../../../../../etc/cron.d/x",
        b"a/../../x",
        b"a/b/../../../x",
        b"..",
        b"a/..",
        b"/../x",
    ],
)
def test_no_entry_climbs_out_of_its_layer(store: Store, name: bytes) -> None:
    """137: a name with .. in it is refused, as a file, a directory, a whiteout or the target of a hard link."""
    for bad in (entry(name, data=b"x"), directory(name), symlink(name, b"x"), entry(name + b"/.wh.y")):
        assert ".." in refused(store, "layer_bad_path", archive(directory("a"), bad))
    refused(store, "layer_bad_path", archive(directory("a"), entry("f"), hard_link("h", name)))


def test_absolute_and_untidy_names_are_of_the_layer(store: Store) -> None:
    """137: a leading slash, double slashes and dots mean nothing."""
    found = clamped(store, entry("/etc/passwd", data=b"1"), entry("./a//b/./c", data=b"2"), directory("//d/"))
    assert {name for name in found if name != "."} == {"etc", "etc/passwd", "a", "a/b", "a/b/c", "d"}
    assert found["etc/passwd"][3] == b"1"


@pytest.mark.parametrize(
    "name",
    [
        b"n" * 256,
        b"/".join([b"d"] * 200),
        b"/".join([b"n" * 200] * 25),
        b".wh.",
        b"a/.wh...",
        b"a/.wh..",
    ],
)
def test_names_that_no_file_can_have_are_refused(store: Store, name: bytes) -> None:
    """137: too long, too deep, and whiteouts of nothing or of everything."""
    refused(store, "layer_bad_path", archive(directory("a"), entry(name)))


def test_a_nul_in_a_name_is_refused(store: Store) -> None:
    """137: an extended header could smuggle one in."""
    for key in (b"path", b"linkpath"):
        refused(store, "layer_bad_path", archive(pax({key: b"etc\0/x"}) + header(b"x", b"2", link=b"y")))


def test_an_entry_without_a_name_is_refused(store: Store) -> None:
    """137."""
    refused(store, "layer_bad_path", archive(header(b"")))


# ---- links


def test_nothing_is_written_through_a_symlink(store: Store, sentinel: Path) -> None:
    """138: file, directory, whiteout, opaque whiteout, hard link and symlink below a planted link."""
    outside = os.fsencode(sentinel)
    for target in (outside, b"../" * 30 + outside[1:], b"."):
        for attack in (
            entry("a/precious", data=b"overwritten"),
            entry("a/new", data=b"new"),
            directory("a/new"),
            entry("a/.wh.precious"),
            entry("a/.wh..wh..opq"),
            symlink("a/new", b"x"),
            entry("a/b/c", data=b"deep"),
        ):
            refused(store, "layer_bad_path", archive(symlink("a", target), attack))
        refused(store, "layer_bad_path", archive(entry("f"), symlink("a", target), hard_link("a/new", b"f")))


def test_a_file_in_the_place_of_a_symlink_replaces_it(store: Store, sentinel: Path) -> None:
    """138: the link itself goes; what it points to stays as it is."""
    target = os.fsencode(sentinel) + b"/precious"
    found = clamped(
        store, symlink("a", target), entry("a", data=b"mine"), symlink("b", target), directory("b")
    )
    assert found["a"][3] == b"mine"
    assert found["b"][0] == "drwxr-xr-x"


def test_a_link_of_one_layer_means_nothing_to_the_next(store: Store, sentinel: Path) -> None:
    """138: each layer is a tree of its own."""
    target = os.fsencode(sentinel)
    _, upper = unpack(
        store, archive(symlink("a", target)), archive(entry("a/new", data=b"x"), entry("b/.wh.precious"))
    )
    assert {name for name in listed(upper) if name != "."} == {"a", "a/new", "b", "b/precious"}


@pytest.mark.parametrize(
    "target",
    [b"/etc/shadow", b"etc/shadow", b"missing", b"d", b"self", b"later", b"link/precious", b"gone", b"."],
)
def test_hard_links_lead_to_earlier_files_of_the_layer_only(
    store: Store, sentinel: Path, target: bytes
) -> None:
    """139: never to the host, a directory, itself, a later entry, through a symlink or to a whiteout."""
    before = [directory("d"), symlink("link", os.fsencode(sentinel)), entry(".wh.gone")]
    refused(store, "layer_bad_link", archive(*before, hard_link("self", target), entry("later")))


def test_hard_links_share_one_file_of_the_layer(store: Store) -> None:
    """139: also to a symlink, which is linked and not followed; writing one name anew leaves the other alone."""
    [tree] = unpack(
        store,
        archive(
            entry("f", data=b"1", mode=0o600),
            hard_link("d/g", b"./f"),
            symlink("s", b"/etc/shadow"),
            hard_link("t", b"s"),
            hard_link("h", b"f"),
            entry("h", data=b"2"),
        ),
    )
    assert (tree / "f").stat().st_ino == (tree / "d/g").stat().st_ino
    assert (tree / "f").stat().st_nlink == 2
    assert (tree / "s").lstat().st_ino == (tree / "t").lstat().st_ino
    assert ((tree / "f").read_bytes(), (tree / "h").read_bytes()) == (b"1", b"2")


@pytest.mark.parametrize("root", [b".", b"/", b"./", b"././"])
def test_the_root_of_a_layer_is_a_directory(store: Store, sentinel: Path, root: bytes) -> None:
    """140: CVE-2021-29136."""
    outside = os.fsencode(sentinel)
    for bad in (header(root, b"2", link=outside), header(root, b"1", link=b"f"), header(root, b"0", size=0)):
        if root.endswith(b"/") and bad[156:157] == b"0":
            continue  # a directory in the manner of 1979
        refused(store, "layer_bad_path", archive(entry("f"), bad))


# ---- kinds, owners, modes, attributes


def test_devices_pipes_and_unknown_kinds_do_not_come_in(store: Store) -> None:
    """142: old images have device nodes, so these are left out; what nobody knows is an error."""
    found = clamped(
        store,
        entry("null", b"3", device=(1, 3)),
        entry("sda", b"4", device=(8, 0)),
        entry("whiteout", b"3", device=(0, 0)),
        entry("fifo", b"6"),
        entry("f"),
    )
    assert set(found) == {".", "f"}
    for kind in (b"8", b"A", b"D", b"M", b"V", b"\xff"):
        assert "unknown type" in (caught := _refusal(store, archive(entry("f", kind)))), caught


def _refusal(store: Store, layer: bytes) -> str:
    with pytest.raises(ImageError) as caught:
        unpack(store, layer, caps=SMALL)
    return str(caught.value)


def test_only_harmless_attributes_come_in(store: Store) -> None:
    """143: none that overlayfs, the kernel or a security module acts upon, none that is huge."""
    names = [
        b"trusted.overlay.opaque",
        b"trusted.overlay.redirect",
        b"trusted.overlay.metacopy",
        b"trusted.x",
        b"user.overlay.opaque",
        b"security.capability",
        b"security.selinux",
        b"security.ima",
        b"system.posix_acl_access",
        b"system.posix_acl_default",
        b"nonsense",
        b"user.",
        b"",
    ]
    attributes = dict.fromkeys(names, b"y") | {b"user.kept": b"\0\xff=\n", b"user.huge": bytes(65536)}
    found = clamped(store, entry("f", xattrs=attributes), directory("d", xattrs=attributes))
    assert found["f"][4] == found["d"][4] == {"user.kept": b"\0\xff=\n"}


@pytest.mark.parametrize("owner", [65536, 2**32 - 1, 2**32, 2**55, -1])
def test_owners_that_no_sandbox_maps_are_refused(store: Store, owner: int) -> None:
    """144: in the header and in an extended one."""
    for layer in (header(b"f", uid=owner), header(b"d", b"5", gid=owner)):
        assert _refusal(store, archive(layer)).startswith(("layer_bad_owner", "layer_bad_header"))
    extended = pax({b"uid": str(owner).encode()}) + header(b"f")
    assert _refusal(store, archive(extended)).startswith(("layer_bad_owner", "layer_bad_header"))


def test_the_store_is_closed_to_others(store: Store) -> None:
    """145: a set-user-id program of an image is in no other user's reach; its mode is kept for the job."""
    found = clamped(
        store, entry("su", data=b"#!", mode=0o4755, uid=0), entry("sg", mode=0o2755, uid=5, gid=7)
    )
    assert (found["su"][0], found["sg"][:3]) == ("-rwsr-xr-x", ("-rwxr-sr-x", 5, 7))
    assert store.directory.stat().st_mode & 0o777 == 0o700
    pid = os.fork()
    if pid == 0:
        os.setresuid(65534, 65534, 65534)
        try:
            os.listdir(store.directory)
        except PermissionError:
            os._exit(0)
        os._exit(1)
    assert os.waitpid(pid, 0)[1] == 0


# ---- bombs


def _bomb(kind: str, size: int) -> bytes:
    plain = entry("zeros", data=bytes(size)) + bytes(1024)
    if kind == "gzip":
        return gzip.compress(plain, 9)
    if kind == "xz":
        return lzma.compress(plain)
    return zstandard.ZstdCompressor(level=3).compress(plain)


@pytest.mark.parametrize("kind", ["gzip", "zstd", "xz"])
def test_bombs_are_cut_off_by_size(store: Store, kind: str) -> None:
    """146: what expands beyond what an image may have."""
    refused(store, "image_too_large", _bomb(kind, 48 << 20))


def test_bombs_are_cut_off_by_proportion(store: Store) -> None:
    """146: even where the size would be allowed, a layer does not become 512 times itself."""
    with pytest.raises(ImageError, match="512 times its size"):
        unpack(store, _bomb("zstd", 100 << 20))


def test_a_frame_that_wants_gigabytes_of_memory_is_refused(store: Store) -> None:
    """146: a zstd window of 2 GiB, named in a frame of a few bytes."""
    frame = b"\x28\xb5\x2f\xfd" + bytes([0x00, (31 - 10) << 3]) + b"\x01\x00\x00"
    assert "layer_bad_compression" in _refusal(store, frame)


def test_too_many_entries_are_refused(store: Store) -> None:
    """146: files, and directories that no entry names."""
    many = [entry(f"{number:x}") for number in range(2500)]
    assert "2000" in refused(store, "image_too_large", archive(*many))
    deep = [entry("/".join([f"{number:x}"] * 100)) for number in range(30)]
    refused(store, "image_too_large", archive(*deep))
    refused(store, "image_too_large", archive(*[pax({b"x": b"y"}) + header(b"f") for _ in range(2500)]))


def test_members_one_after_the_other_are_one_layer(store: Store) -> None:
    """146: gzip members, zstd frames and xz streams follow one another in honest images too."""
    plain = archive(entry("a", data=b"1" * 3000), entry("b", data=b"2"))
    halves = plain[:1000], plain[1000:]
    zstd = zstandard.ZstdCompressor()
    for parts in (map(gzip.compress, halves), map(zstd.compress, halves), map(lzma.compress, halves)):
        [tree] = unpack(store, b"".join(parts))
        assert set(listed(tree)) == {".", "a", "b"}


@pytest.mark.parametrize("where", ["inside", "outside"])
def test_garbage_behind_the_end_is_refused(store: Store, where: str) -> None:
    """146: behind the archive and behind the compressed data."""
    plain = archive(entry("a"))
    if where == "inside":
        refused(store, "layer_trailing_garbage", plain + b"garbage")
        refused(store, "layer_trailing_garbage", gzip.compress(plain + bytes(5000) + b"x"))
    else:
        refused(store, "layer_bad_compression", gzip.compress(plain) + b"garbage")
        [tree] = unpack(store, gzip.compress(plain) + bytes(700))
        assert set(listed(tree)) == {".", "a"}


# ---- broken archives


@pytest.mark.parametrize("kind", ["tar", "gzip", "zstd", "xz"])
def test_an_archive_that_is_cut_short_is_refused(store: Store, kind: str) -> None:
    """147: wherever it is cut."""
    plain = archive(entry("a", data=random.Random(1).randbytes(5000)), directory("b"))
    whole = {"tar": lambda: plain, "gzip": lambda: gzip.compress(plain), "xz": lambda: lzma.compress(plain)}
    data = whole[kind]() if kind in whole else zstandard.ZstdCompressor().compress(plain)
    for cut in (1, 3, 700, len(data) // 2, len(data) - 1100 if kind == "tar" else len(data) - 3):
        assert _refusal(store, data[:cut]).startswith(("layer_truncated", "layer_bad"))


NUMBERS = {
    "negative": b"\xff" * 12,
    "huge": b"\x80" + b"\x00" * 3 + b"\xff" * 8,
    "enormous": b"\x80" + b"\xff" * 11,
    "8 EiB": b"\x80\0\0\0\x7f" + b"\xff" * 7,
    "no number": b"12345x789012",
    "a sign": b"-0000000010\0",
    "nine": b"00000000009\0",
}


@pytest.mark.parametrize("size", NUMBERS, ids=str)
def test_sizes_that_cannot_be_are_refused(store: Store, size: str) -> None:
    """147: base-256, negative, beyond 64 bits, none at all; for files and for extended headers."""
    for kind in (b"0", b"x", b"L", b"S", b"g"):
        refused_for = _refusal(store, archive(header(b"f", kind, raw_size=NUMBERS[size]) + bytes(2048)))
        assert refused_for.startswith(("layer_bad_header", "image_too_large", "layer_truncated"))


@pytest.mark.parametrize(
    "records",
    [
        {b"size": b"-1"},
        {b"size": b"99999999999999999999"},
        {b"size": b"9223372036854775807"},
        {b"size": b"1e9"},
        {b"size": b" 1"},
        {b"mtime": b"nan"},
        {b"uid": b"root"},
        {
            b"GNU.sparse.major": b"1",
            b"GNU.sparse.minor": b"0",
            b"GNU.sparse.realsize": b"9223372036854775807",
        },
        {b"GNU.sparse.map": b"0,512,256,512", b"GNU.sparse.size": b"2048"},
        {b"GNU.sparse.map": b"0", b"GNU.sparse.size": b"1"},
        {b"GNU.sparse.map": b"9223372036854775000,512", b"GNU.sparse.size": b"9223372036854775807"},
        {b"GNU.sparse.offset": b"0"},
    ],
    ids=str,
)
def test_extended_headers_with_impossible_numbers_are_refused(
    store: Store, records: dict[bytes, bytes]
) -> None:
    """147: a size that overrides the header's, sparse maps that overlap, run backwards or past the end."""
    layer = archive(pax(records) + header(b"f", size=512) + b"7\n" * 256)
    assert _refusal(store, layer).startswith(("layer_bad_header", "image_too_large", "layer_truncated"))


@pytest.mark.parametrize(
    "text", [b"0 a=b\n", b"5 a=b\n", b"99 a=b\n", b"6 a b\n", b"6 a=bc", b"x a=b\n", b" ", b"7 =bcd\n"]
)
def test_malformed_extended_headers_end(store: Store, text: bytes) -> None:
    """147: records of length zero, too long, without a key or an end (CVE-2025-8194 looped for ever)."""
    layer = archive(header(b"pax", b"x", size=len(text)) + padded(text) + header(b"f"))
    refused(store, "layer_bad_header", layer)


def test_old_sparse_files_are_read_within_bounds(store: Store) -> None:
    """147: GNU's own form: holes are holes, and a file of 8 EiB is refused before anything is written."""

    def sparse(size: int, *extents: tuple[int, int]) -> bytes:
        block = bytearray(
            header(b"sparse", b"S", size=sum(length for _, length in extents), magic=b"ustar  \0")
        )
        for number, (offset, length) in enumerate(extents):
            block[386 + 24 * number : 410 + 24 * number] = f"{offset:011o}\0{length:011o}\0".encode()
        block[483:495] = f"{size:011o}\0".encode() if size < 8**11 else b"\x80" + size.to_bytes(11, "big")
        block[148:156] = b" " * 8
        block[148:156] = f"{sum(block):06o}\0 ".encode()
        return bytes(block) + padded(b"d" * sum(length for _, length in extents))

    found = clamped(store, sparse(1 << 20, (0, 512), (1 << 19, 512)))
    content = found["sparse"][3]
    assert (len(content), content.count(b"d"), content[1 << 19 : (1 << 19) + 3]) == (1 << 20, 1024, b"ddd")
    assert "image_too_large" in _refusal(store, archive(sparse((1 << 63) - 1, (0, 512))))
    assert "layer_bad_header" in _refusal(store, archive(sparse(100, (0, 512))))
    assert "layer_bad_header" in _refusal(store, archive(sparse(4096, (2048, 512), (0, 512))))


def test_random_damage_ends_in_an_error_or_a_layer(store: Store) -> None:
    """147: a whole archive with bytes changed here and there, through the confined children; never a hang."""
    chance = random.Random(20260101)
    good = archive(
        directory("d"),
        entry("d/f", data=b"x" * 2000, xattrs={b"user.a": b"b"}),
        symlink("l", b"d/f"),
        hard_link("h", b"d/f"),
        entry("n" * 150, data=b"y"),
    )
    for _ in range(12):
        bad = bytearray(good)
        for _ in range(chance.randrange(1, 6)):
            bad[chance.randrange(len(bad))] = chance.randrange(256)
        data = bytes(bad) if chance.random() < 0.5 else gzip.compress(bytes(bad))
        try:
            unpack(store, data, caps=SMALL)
        except ImageError:
            continue
