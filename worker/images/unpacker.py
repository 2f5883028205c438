"""The confined child that makes a tree from an archive, or says what is in one.

    unpacker unpack SIZE ENTRIES    fds: 3 archive, 4 report, 5 lines, 6 tree, 7 user namespace, 8 the digest's lock
    unpacker list                   fds: 3 lines, 4 report, 5 tree, 6 user namespace

It answers with one JSON object on ``report``: what it made, or ``code`` and ``message`` of an ``ImageError``, or the
``errno`` of a failure of ours. The lock is held for as long as it lives, so that nobody clears a tree away under it.
Standard library only.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Callable
from typing import Any

from worker.images import confinement, hashes, tar
from worker.images.errors import ImageError
from worker.images.tree import Caps, Tree

_CHOWN, _DAC_OVERRIDE, _DAC_READ_SEARCH, _FOWNER, _FSETID = 0, 1, 2, 3, 4
_WRITER = frozenset({_CHOWN, _DAC_OVERRIDE, _FOWNER, _FSETID})
_READER = frozenset({_DAC_READ_SEARCH})
_PADDING = 4
"""An archive may be this many times as long as the files in it may: headers, map of holes, padding."""


def main() -> None:
    """The process itself."""
    if sys.argv[3] == "unpack":
        caps = Caps(size=int(sys.argv[4]), entries=int(sys.argv[5]))
        _answer(4, lambda: _unpack(caps))
    else:
        _answer(4, _list)


def _unpack(caps: Caps) -> dict[str, Any]:
    confinement.enter(6, 7, _WRITER)
    confinement.shut()
    root = os.open("/", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    os.fchown(root, 0, 0)
    os.fchmod(root, 0o755)
    stream = tar.Stream(3, caps.size + caps.entries * _PADDING * tar.BLOCK)
    tree = Tree(root, caps)
    tree.fill(tar.Reader(stream, caps.entries * 2))
    hashes.write(5, tree.lines)
    return {
        "sha256": stream.sha256.hexdigest(),
        "read": stream.read_bytes,
        "size": tree.size,
        "entries": len(tree.lines),
        "opaque": [os.fsdecode(path) for path in sorted(tree.opaque)],
        "left_out": dict(tree.left_out),
    }


def _list() -> dict[str, Any]:
    confinement.enter(5, 6, _READER)
    confinement.shut()
    root = os.open("/", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    hashes.write(3, dict(hashes.walk(root)))
    return {}


def _answer(report: int, work: Callable[[], dict[str, Any]]) -> None:
    """Do it and say how it went; the exit status is 0 in either case."""
    # What is imported on demand must be there before the doors are shut.
    hashlib.sha256(b"").hexdigest()
    json.dumps({"": ["\udc80"]})
    try:
        answer = work()
    except ImageError as problem:
        answer = {"code": problem.code, "message": problem.message}
    except OSError as problem:
        answer = {"errno": problem.errno or 0, "step": "unpack"}
    except MemoryError:
        answer = {"code": "image_too_large", "message": "the layer needs more memory than unpacking may take"}
    except Exception as problem:
        answer = {"errno": 0, "step": f"{type(problem).__name__}: {problem}"[:500]}
    data = memoryview(json.dumps(answer).encode())
    while data:
        data = data[os.write(report, data) :]
    os._exit(0)  # nothing is left to put in order, and somebody waits
