"""What leaves the store: images that are removed, layers that nothing needs, layers that are damaged.

An image goes first, then what only it needed: a crash between the two leaves layers without an image, which the next
`prune` finds. A job holds its image's file (flock(2)), so an image that is in use stays, and so do its layers.
"""

import fcntl
import os
import secrets
import shutil
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from worker.images import pipeline
from worker.images.reference import Reference
from worker.images.store import CONTENT, LINES, QUARANTINE, TEMPORARY, ImageRecord, Store
from worker.sandbox.images import IMAGES, LAYERS, LINKS, TREE, hexadecimal


def remove(store: Store, reference: Reference) -> int:
    """Take a name away, or an image by its digest with all its names; the bytes that are free now.

    Raises:
        KeyError: there is no such name or image.
        SandboxError: an image is just being added or checked.
    """
    with store.alone():
        found = store.find(reference)
        if found is None:
            raise KeyError(str(reference))
        digest = found.digest

        def without(names: dict[str, str]) -> None:
            gone = [
                each
                for each in names
                if each == str(reference) or (reference.digest and names[each] == digest)
            ]
            for name in gone:
                del names[name]

        store.rename(without)
        if digest not in store.names().values():
            _remove_image(store, digest)
        return _sweep(store)


def prune(store: Store, most: int | None = None) -> tuple[int, int]:
    """Remove images without a name and, down to ``most`` bytes, the longest unused: (images, bytes) that went.

    Raises ``SandboxError`` when an image is just being added or checked.
    """
    with store.alone():
        named, removed = set(store.names().values()), 0
        records = sorted(store.images(), key=lambda record: store.last_used(record.digest))
        for record in records:
            if record.digest not in named:
                removed += _remove_image(store, record.digest)
        freed = _sweep(store)
        if most is None:
            return removed, freed
        for record in records:
            if record.digest in named and _size(store) > most and _remove_image(store, record.digest):
                store.rename(lambda names, gone=record.digest: _forget(names, gone))  # type: ignore[misc]
                removed, freed = removed + 1, freed + _sweep(store)
        return removed, freed


def _forget(names: dict[str, str], digest: str) -> None:
    for name in [name for name, each in names.items() if each == digest]:
        del names[name]


def _size(store: Store) -> int:
    layers = {layer for record in store.images() for layer in record.layers}
    return sum(found.size for found in map(store.layer, layers) if found)


def _remove_image(store: Store, digest: str) -> bool:
    """Remove an image's record, unless a job runs in it: whether it went."""
    path = store.directory / IMAGES / hexadecimal(digest)
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink()
        return True
    except BlockingIOError:
        return False
    finally:
        os.close(fd)


def _sweep(store: Store) -> int:
    """Remove layers and content that no image needs: the bytes of the layers."""
    records = store.images()
    needed = {hexadecimal(layer) for record in records for layer in record.layers}
    freed = 0
    for path in (store.directory / LAYERS).iterdir():
        if path.name not in needed:
            layer = store.layer(f"sha256:{path.name}")
            freed += layer.size if layer else 0
            _throw_away(store, path)
    for link in (store.directory / LINKS).iterdir():
        if not link.exists():
            link.unlink()
    _sweep_content(store.directory / CONTENT, records)
    for path in (store.directory / QUARANTINE).iterdir():
        if path.name.partition(".")[0] not in needed:
            _throw_away(store, path)
    return freed


def _sweep_content(directory: Path, records: Iterable[ImageRecord]) -> None:
    needed = {hexadecimal(digest) for record in records for digest in (record.digest, record.config_digest)}
    for path in directory.iterdir():
        if path.name not in needed:
            path.unlink()


def _throw_away(store: Store, path: Path) -> None:
    """Out of its place in one step, then away in many; the next user of the store ends what a crash cut off."""
    key = f"gone-{secrets.token_hex(8)}"
    with store.lock(key, fcntl.LOCK_EX):
        os.rename(path, store.directory / TEMPORARY / key)
        shutil.rmtree(store.directory / TEMPORARY / key)


def verify(store: Store, diff_id: str) -> list[str]:
    """Hash a layer again and compare it with what was unpacked: the differences; empty when there are none.

    A layer with differences is put into quarantine: jobs that run in it go on, none begins any more.
    """
    with store.shared():
        layer = store.layer(diff_id)
        if layer is None:
            return ["it is not in the store"]
        tree = os.open(layer.directory / TREE, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        listing = os.memfd_create("lines", os.MFD_CLOEXEC)
        try:
            pipeline.list_tree(tree, listing)
            found = os.pread(listing, os.fstat(listing).st_size, 0)
            differences = _differences((layer.directory / LINES).read_bytes(), found)
            with suppress(FileNotFoundError):  # a directory that is gone is told already
                if not pipeline.hidden(tree, layer.opaque):
                    differences.append("a directory does not hide what is below it any more")
        finally:
            os.close(tree)
            os.close(listing)
    if differences:
        with store.alone():
            name = f"{hexadecimal(diff_id)}.{secrets.token_hex(4)}"
            with suppress(FileNotFoundError):
                os.rename(layer.directory, store.directory / QUARANTINE / name)
    return differences


def _differences(recorded: bytes, found: bytes) -> list[str]:
    was, now = _by_path(recorded), _by_path(found)
    said = []
    for path in sorted(was.keys() | now.keys()):
        if was.get(path) != now.get(path):
            what = "is gone" if path not in now else "was not there" if path not in was else "has changed"
            said.append(f"{path.decode('utf-8', 'backslashreplace')!r} {what}")
    return said


def _by_path(lines: bytes) -> dict[bytes, bytes]:
    found = {}
    for line in lines.split(b"\0")[:-1]:
        about, _, path = line.partition(b"\t")
        found[path] = about
    return found
