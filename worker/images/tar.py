"""A tar archive as a stream of entries: ustar, PAX and GNU's long names, large numbers and sparse files.

Nothing here touches a file system. Whatever the bytes are, `Reader` either yields entries whose numbers are in range
or raises ``ImageError``; it reads each byte once, holds no more than one header and one chunk of it in memory, and
does work in proportion to what it has read. Standard library only: it runs in the confined child (`unpacker`).

Formats: POSIX pax(1), GNU tar's manual ("Basic Tar Format", "Sparse Formats"). Where writers and readers are known to
differ it decides as Go's archive/tar, which wrote most images that there are.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from typing import NamedTuple

from worker.images.errors import ImageError, shown

BLOCK = 512
CHUNK = 1 << 20
EXTENDED_MAX = 1 << 20
"""Bytes of one PAX header or GNU long name."""
EXTENTS_MAX = 16384
"""Stretches of data in one sparse file."""
_SECONDS_MAX = 1 << 33
"""Times are held to what ext4 can store (the year 2446), and to 1901 on the other side."""

FILE, HARD_LINK, SYMLINK, CHARACTER, DEVICE, DIRECTORY, FIFO = b"0", b"1", b"2", b"3", b"4", b"5", b"6"
_SPARSE, _PAX, _PAX_GLOBAL, _LONG_NAME, _LONG_LINK = b"S", b"x", b"g", b"L", b"K"
_FILES = (FILE, b"\0", b"7", _SPARSE)
_KINDS = frozenset((*_FILES, HARD_LINK, SYMLINK, CHARACTER, DEVICE, DIRECTORY, FIFO))
_OCTAL = re.compile(rb"[ \0]*([0-7]*)[ \0]*")
_DECIMAL = re.compile(rb"[0-9]{1,19}")
_TIME = re.compile(rb"(-?[0-9]{1,19})(?:\.([0-9]{1,40}))?")
_XATTR = b"SCHILY.xattr."


class Entry(NamedTuple):
    """One entry: ``size`` is what the file will have, ``extents`` are (offset, length) of the data that follows.

    mtime: nanoseconds. kind: one of the constants above, all kinds of file as ``FILE``.
    """

    kind: bytes
    name: bytes
    link: bytes
    mode: int
    uid: int
    gid: int
    mtime: int
    size: int
    extents: tuple[tuple[int, int], ...]
    xattrs: dict[bytes, bytes]


class Stream:
    """The bytes of a descriptor: counted, hashed, at most ``most`` of them."""

    def __init__(self, fd: int, most: int) -> None:
        self._fd, self._most = fd, most
        self._buffer = memoryview(bytearray(CHUNK))
        self._at = self._end = 0
        self.read_bytes = 0
        self.sha256 = hashlib.sha256()

    def _fill(self) -> bool:
        """Put more into the empty buffer; False at the end of the input."""
        self._at, self._end = 0, os.readv(self._fd, [self._buffer])
        self.read_bytes += self._end
        if self.read_bytes > self._most:
            raise ImageError("image_too_large", f"the archive has more than {self._most} bytes")
        self.sha256.update(self._buffer[: self._end])
        return self._end > 0

    def pieces(self, size: int) -> Iterator[memoryview]:
        """Exactly ``size`` bytes, in pieces that are good until the next one is asked for."""
        while size:
            if self._at == self._end and not self._fill():
                raise ImageError("layer_truncated", f"the archive ends where {size} more bytes should be")
            end = min(self._end, self._at + size)
            piece = self._buffer[self._at : end]
            self._at, size = end, size - len(piece)
            yield piece

    def read(self, size: int) -> bytes:
        """Exactly ``size`` bytes at once."""
        if self._end - self._at >= size:
            self._at += size
            return bytes(self._buffer[self._at - size : self._at])
        return b"".join([bytes(piece) for piece in self.pieces(size)])

    def skip(self, size: int) -> None:
        """Leave out ``size`` bytes."""
        for _ in self.pieces(size):
            pass

    def finish(self) -> None:
        """Read to the end: behind an archive there is padding, and nothing else."""
        while self._at < self._end or self._fill():
            if any(self._buffer[self._at : self._end]):
                raise ImageError("layer_trailing_garbage", "there is something behind the end of the archive")
            self._at = self._end

    @property
    def ended(self) -> bool:
        """Whether the input is used up."""
        return self._at == self._end and not self._fill()


class Reader:
    """The entries of a stream, one by one; ``data`` gives the content of the one yielded last."""

    def __init__(self, stream: Stream, headers_max: int) -> None:
        self._stream, self._headers_left, self._headers_max = stream, headers_max, headers_max
        self._data_left = self._padding = 0

    def __iter__(self) -> Iterator[Entry]:
        zeros, pax, names = 0, dict[bytes, bytes](), dict[bytes, bytes]()
        while zeros < 2:
            if self._stream.ended:
                if zeros:
                    break
                raise ImageError("layer_truncated", "the archive has no end marker")
            block = self._stream.read(BLOCK)
            if not any(block):
                zeros += 1
                continue
            if zeros:
                raise ImageError("layer_bad_header", "an empty block stands between two entries")
            header = self._header(block)
            if header.kind in (_PAX, _PAX_GLOBAL, _LONG_NAME, _LONG_LINK):
                content = self._extended(header)
                if header.kind == _PAX:
                    pax = _pax_records(content)
                elif header.kind != _PAX_GLOBAL:
                    names[header.kind] = content.rstrip(b"\0")
                continue
            yield self._entry(block, header, pax, names)
            self._stream.skip(self._data_left + self._padding)
            self._data_left = self._padding = 0
            pax, names = {}, {}
        if pax or names:
            raise ImageError("layer_truncated", "the archive ends behind an extended header")
        self._stream.finish()

    def data(self, size: int) -> Iterator[memoryview]:
        """The next ``size`` bytes of the current entry's data."""
        assert size <= self._data_left
        self._data_left -= size
        return self._stream.pieces(size)

    def _header(self, block: bytes) -> Entry:
        self._headers_left -= 1
        if self._headers_left < 0:
            raise ImageError("image_too_large", f"the archive has more than {self._headers_max} entries")
        if _number(block[148:156], "checksum") != sum(block) - sum(block[148:156]) + 8 * 32:
            raise ImageError("layer_bad_header", "a header's checksum is wrong: this is no tar archive")
        name, link = _text(block[0:100]), _text(block[157:257])
        if block[257:263] == b"ustar\0" and block[345] and block[156:157] != _SPARSE:
            name = _text(block[345:500]) + b"/" + name
        kind, size = block[156:157], _number(block[124:136], "size")
        mtime = max(-(1 << 31), min(_number(block[136:148], "mtime", negative=True), _SECONDS_MAX))
        mode, uid, gid = (_number(block[at : at + 8], "mode, uid or gid") for at in (100, 108, 116))
        return Entry(kind, name, link, mode & 0o7777, uid, gid, mtime * 10**9, size, (), {})

    def _extended(self, header: Entry) -> bytes:
        if header.size > EXTENDED_MAX:
            raise ImageError("layer_bad_header", f"an extended header of {header.size} bytes")
        content = self._stream.read(header.size)
        self._stream.skip(-header.size % BLOCK)
        return content

    def _entry(
        self, block: bytes, header: Entry, pax: dict[bytes, bytes], names: dict[bytes, bytes]
    ) -> Entry:
        kind = header.kind
        if kind not in _KINDS:
            raise ImageError("layer_bad_header", f"an entry of the unknown type {kind!r}")
        name = pax.get(b"GNU.sparse.name") or pax.get(b"path") or names.get(_LONG_NAME) or header.name
        link = pax.get(b"linkpath") or names.get(_LONG_LINK) or header.link
        if b"\0" in name or b"\0" in link:
            raise ImageError("layer_bad_path", f"{shown(name)} has a NUL in it")
        if kind in (FILE, b"\0") and name.endswith(b"/"):
            kind = DIRECTORY  # as the archives of before 1988 mark them, which GNU tar still reads
        stored = _decimal(pax, b"size", header.size) if kind in _FILES else 0
        self._data_left, self._padding = stored, -stored % BLOCK
        extents: tuple[tuple[int, int], ...]
        size, extents = stored, ((0, stored),) if stored else ()
        if kind == _SPARSE or any(key.startswith(b"GNU.sparse.") for key in pax):
            size, extents = self._sparse(block, kind, pax)
        return Entry(
            FILE if kind in _FILES else kind,
            name,
            link,
            header.mode,
            _decimal(pax, b"uid", header.uid),
            _decimal(pax, b"gid", header.gid),
            _time(pax[b"mtime"]) if b"mtime" in pax else header.mtime,
            size,
            extents,
            {key[len(_XATTR) :]: value for key, value in pax.items() if key.startswith(_XATTR)},
        )

    # --- sparse files

    def _sparse(
        self, block: bytes, kind: bytes, pax: dict[bytes, bytes]
    ) -> tuple[int, tuple[tuple[int, int], ...]]:
        """(size, extents) of a sparse file, in the three forms that writers still use."""
        if kind not in _FILES:
            raise ImageError("layer_bad_header", "something else than a file is said to be sparse")
        if kind == _SPARSE:
            size, numbers = _number(block[483:495], "size"), self._old_map(block)
        elif pax.get(b"GNU.sparse.major") == b"1" and pax.get(b"GNU.sparse.minor") == b"0":
            size, numbers = _decimal(pax, b"GNU.sparse.realsize", -1), self._inline_map()
        elif b"GNU.sparse.map" in pax:
            size = _decimal(pax, b"GNU.sparse.size", -1)
            numbers = [_plain(each) for each in pax[b"GNU.sparse.map"].split(b",", 2 * EXTENTS_MAX + 1)]
        else:
            raise ImageError("layer_bad_header", "a sparse file in a form that is not read here")
        if len(numbers) % 2 or len(numbers) > 2 * EXTENTS_MAX:
            raise ImageError("layer_bad_header", "the map of a sparse file is malformed or too long")
        extents = tuple(zip(numbers[::2], numbers[1::2], strict=True))
        at = 0
        for offset, length in extents:
            if offset < at:
                raise ImageError("layer_bad_header", "the map of a sparse file goes backwards")
            at = offset + length
        if at > size or sum(length for _, length in extents) != self._data_left:
            raise ImageError("layer_bad_header", "the map of a sparse file does not fit its size")
        return size, tuple(each for each in extents if each[1])

    def _old_map(self, block: bytes) -> list[int]:
        numbers, first, count, more = list[int](), 386, 4, block[482]
        while True:
            for at in range(first, first + 24 * count, 24):
                if block[at]:
                    numbers += (
                        _number(block[at : at + 12], "offset"),
                        _number(block[at + 12 : at + 24], "size"),
                    )
            if not more or len(numbers) > 2 * EXTENTS_MAX:
                return numbers
            block, first, count = self._stream.read(BLOCK), 0, 21
            more = block[504]

    def _inline_map(self) -> list[int]:
        """GNU.sparse 1.0: decimal numbers, one a line, before the data and counted as data."""
        text, lines = b"", 0
        wanted = 1
        while lines < wanted:
            if self._data_left < BLOCK or len(text) > EXTENDED_MAX:
                raise ImageError("layer_bad_header", "the map of a sparse file is malformed or too long")
            piece = self._stream.read(BLOCK)
            self._data_left -= BLOCK
            text, lines = text + piece, lines + piece.count(b"\n")
            if wanted == 1 and lines:
                wanted = 1 + 2 * min(_plain(text.split(b"\n", 1)[0]), EXTENTS_MAX + 1)
        return [_plain(each) for each in text.split(b"\n")[1:wanted]]


def _text(field: bytes) -> bytes:
    return field.split(b"\0", 1)[0]


def _number(field: bytes, what: str, negative: bool = False) -> int:
    """Octal digits, or GNU's base-256 where the first bit is set."""
    if field[0] & 0x80:
        value = int.from_bytes(field, "big", signed=True)
        # All bits but the mark are the number, in two's complement; 0x80 is the mark of a positive one.
        if field[0] == 0x80:
            value = int.from_bytes(field[1:], "big")
        if value >= 1 << 63 or value < (-(1 << 63) if negative else 0):
            raise ImageError("layer_bad_header", f"{what} is out of range in a header")
        return value
    match = _OCTAL.fullmatch(field)
    if not match:
        raise ImageError("layer_bad_header", f"{what} is no number in a header")
    return int(match[1] or b"0", 8)


def _plain(text: bytes) -> int:
    if not _DECIMAL.fullmatch(text) or (value := int(text)) >= 1 << 63:
        raise ImageError("layer_bad_header", f"{shown(text[:40])} is no number in an extended header")
    return value


def _decimal(pax: dict[bytes, bytes], key: bytes, otherwise: int) -> int:
    value = _plain(pax[key]) if key in pax else otherwise
    if value < 0:
        raise ImageError("layer_bad_header", f"{shown(key)} is missing in an extended header")
    return value


def _time(text: bytes) -> int:
    match = _TIME.fullmatch(text)
    if not match:
        raise ImageError("layer_bad_header", f"{shown(text[:40])} is no time in an extended header")
    seconds = max(-(1 << 31), min(int(match[1]), _SECONDS_MAX))
    fraction = int(((match[2] or b"") + b"000000000")[:9])
    return seconds * 10**9 + (-fraction if text.startswith(b"-") else fraction)


def _pax_records(content: bytes) -> dict[bytes, bytes]:
    """``length key=value\\n`` one after the other; a later one of the same key wins (pax(1))."""
    found: dict[bytes, bytes] = {}
    at = 0
    while at < len(content):
        space = content.find(b" ", at, at + 20)
        end = at + _plain(content[at:space]) if space > at else 0
        equals = content.find(b"=", space, end)
        if end > len(content) or equals <= space + 1 or content[end - 1 : end] != b"\n":
            raise ImageError("layer_bad_header", "a record of an extended header is malformed")
        found[content[space + 1 : equals]] = content[equals + 1 : end - 1]
        at = end
    return found
