"""The confined child between a compressed layer and the unpacker: bytes in, bytes out.

    decompressor gzip|xz|zstd    fds: 3 compressed, 4 plain, 5 report, 6 user namespace

It runs libraries written in C on bytes of strangers, so it is nobody, opens nothing and knows no file. It stops at
what grows out of all proportion.
"""

from __future__ import annotations

import json
import lzma
import os
import sys
import zlib
from collections.abc import Callable, Iterator
from typing import Any

from worker.images import confinement
from worker.images.errors import ImageError

CHUNK = 256 << 10
_ZSTD_CHUNK = 8 << 10
"""What zstd makes of a chunk comes in one piece: at the worst 128 KiB for every 4 bytes."""
WINDOW_MAX = 128 << 20
"""Bytes of history that a frame may make us hold (zstd --long=27, xz -9)."""
RATIO_MAX, RATIO_FROM = 512, 64 << 20
"""How many times its size a layer may become, once it is over ``RATIO_FROM`` bytes."""


def main() -> None:
    """The process itself."""
    kind = sys.argv[3]
    prepare, pieces, step = _KINDS[kind]
    answer: dict[str, Any] = {}
    try:
        confinement.become(6, frozenset())
        begin = prepare()
        confinement.shut()
        _run(begin, pieces, step)
    except ImageError as problem:
        answer = {"code": problem.code, "message": problem.message}
    except BrokenPipeError:
        pass  # the unpacker says why it went
    except ImportError as problem:
        hint = "the package must be readable by everybody; make setup puts it where it is"
        answer = {"errno": 0, "step": str(problem), "hint": hint}
    except OSError as problem:
        answer = {"errno": problem.errno or 0, "step": "decompress"}
    except MemoryError:
        answer = {"code": "image_too_large", "message": "decompression needs more memory than it may take"}
    except Exception as problem:
        answer = {"code": "layer_bad_compression", "message": f"no valid {kind} data: {problem}"[:300]}
    os.write(5, json.dumps(answer).encode())


def _run(begin: Callable[[], Any], pieces: Callable[[Any, bytes], Iterator[bytes]], step: int) -> None:
    """Decompress member after member (frame after frame); after the last only zeros may come."""
    taken = given = 0
    member, waiting = None, b""
    while chunk := waiting or os.read(3, step):
        taken += 0 if waiting else len(chunk)
        waiting = b""
        if member is None:
            chunk = chunk.lstrip(b"\0") if taken > len(chunk) else chunk
            if not chunk:
                continue
            member = begin()
        for plain in pieces(member, chunk):
            given += len(plain)
            if given > RATIO_FROM and given > RATIO_MAX * taken:
                raise ImageError("image_too_large", f"the layer becomes more than {RATIO_MAX} times its size")
            _write(plain)
        if member.eof:
            waiting, member = member.unused_data, None
    if member is not None or not taken:
        raise ImageError("layer_truncated", "the compressed layer ends in the middle")


def _gzip_pieces(member: Any, chunk: bytes) -> Iterator[bytes]:
    while not member.eof:
        plain = member.decompress(chunk, CHUNK)
        yield plain
        chunk = member.unconsumed_tail
        if not chunk and len(plain) < CHUNK:
            return


def _xz_pieces(member: Any, chunk: bytes) -> Iterator[bytes]:
    while not member.eof:
        yield member.decompress(chunk, CHUNK)
        chunk = b""
        if member.needs_input:
            return


def _zstd_pieces(member: Any, chunk: bytes) -> Iterator[bytes]:
    yield member.decompress(chunk)


def _write(plain: bytes) -> None:
    view = memoryview(plain)
    while view:
        view = view[os.write(4, view) :]


def _gzip() -> Callable[[], Any]:
    return lambda: zlib.decompressobj(31)


def _xz() -> Callable[[], Any]:
    return lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=WINDOW_MAX)


def _zstd() -> Callable[[], Any]:
    import zstandard  # as nobody: the privileged part of this process has not loaded it

    context = zstandard.ZstdDecompressor(max_window_size=WINDOW_MAX)
    return lambda: context.decompressobj()


_KINDS = {
    "gzip": (_gzip, _gzip_pieces, CHUNK),
    "xz": (_xz, _xz_pieces, CHUNK),
    "zstd": (_zstd, _zstd_pieces, _ZSTD_CHUNK),
}
"""How to get ready as nobody, what a chunk becomes in pieces of bounded length, and how much to read at once."""
