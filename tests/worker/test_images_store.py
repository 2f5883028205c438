"""The store: once however many want it, whole or not at all, and nothing taken that is needed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests import census
from tests.images import archive, bring_in, entry, listed, oci
from worker.images import collect, reference
from worker.images.errors import ImageError
from worker.images.source import Blob
from worker.images.store import Store
from worker.images.tree import Caps
from worker.sandbox.errors import SandboxError

pytestmark = [pytest.mark.kernel, pytest.mark.once]
ROOT = Path(__file__).parents[2]
LAYER = archive(*(entry(f"d/{number}", data=os.urandom(1000)) for number in range(400)))
_IMPORT = """
import sys
from pathlib import Path
sys.path.insert(0, {root!r})
from tests.images import bring_in
from worker.images.store import Store
print("begin", flush=True)
print(bring_in(Store(Path({store!r})), Path({image!r})).digest)
"""


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@contextmanager
def importing(store: Path, image: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that imports an image."""
    program = _IMPORT.format(root=str(ROOT), store=str(store), image=str(image))
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def empty(store: Store) -> bool:
    """Nothing half done is left."""
    return os.listdir(store.directory / "temporary") == [] and set(os.listdir(store.directory / "locks")) <= {
        "store",
        "names",
    }


@pytest.mark.parametrize("late", [False, True])
def test_an_import_that_is_killed_leaves_nothing_half(tmp_path: Path, late: bool) -> None:
    """154: kill -9 at any moment; the children die with it, the next one starts afresh and is right."""
    store, image = tmp_path / "store", oci(tmp_path / "image", LAYER)
    for attempt in range(3):
        with importing(store, image) as process:
            assert process.stdout
            process.stdout.readline()
            if late:
                # Until something of the layer is there, and then a little more each time.
                while process.poll() is None and not list(store.glob("temporary/*/tree/d/*")):
                    time.sleep(0.001)
            time.sleep(0.03 * attempt)
            below = census.descendants(process.pid)
            process.send_signal(signal.SIGKILL)
            process.wait()
            end = time.monotonic() + 10 * census.SLOWDOWN
            while any(os.path.exists(f"/proc/{pid}") for pid in below):
                assert time.monotonic() < end, "a child outlived its parent"
                time.sleep(0.005)
        for found in (store / "layers").glob("*"):
            assert len(listed(found / "tree")) == 402
    opened = Store(store)
    assert empty(opened), "the next one to use it clears away what the dead have left"
    record = bring_in(opened, image)
    assert len(listed(store / "layers" / record.layers[0][7:] / "tree")) == 402
    assert collect.verify(opened, record.layers[0]) == []
    assert empty(opened)


def test_two_that_want_one_layer_unpack_it_once(tmp_path: Path) -> None:
    """154: the second waits for the first, and has then nothing to do."""
    image = oci(tmp_path / "image", LAYER)
    store = Store(tmp_path / "store")
    with importing(store.directory, image) as one, importing(store.directory, image) as two:
        said = [
            process.communicate(timeout=60 * census.SLOWDOWN)[0].splitlines()[-1] for process in (one, two)
        ]
        assert (one.returncode, two.returncode) == (0, 0)
    assert said[0] == said[1]
    [layer] = (store.directory / "layers").iterdir()
    assert collect.verify(store, f"sha256:{layer.name}") == []
    assert empty(store)


def test_a_layer_that_is_there_is_not_read_again(store: Store, tmp_path: Path) -> None:
    """Images that share a layer share its directory; what is there needs no blob."""
    first = bring_in(store, oci(tmp_path / "one", LAYER))
    second = bring_in(store, oci(tmp_path / "two", LAYER, archive(entry("more"))))
    assert first.layers[0] == second.layers[0]
    assert len(os.listdir(store.directory / "layers")) == 2

    def never() -> object:
        raise AssertionError("the blob was asked for")

    with store.shared():
        blob = Blob(never, digest="sha256:" + "0" * 64, size=1, diff_id=first.layers[0])  # type: ignore[arg-type]
        assert store.add_layer(blob, Caps(), lambda _: None).diff_id == first.layers[0]


def test_the_same_content_is_the_same_image(store: Store, tmp_path: Path) -> None:
    """A root file system without a manifest gets one that depends on its content alone."""
    plain = tmp_path / "root.tar"
    plain.write_bytes(LAYER)
    first = bring_in(store, plain)
    created = store.directory / "images" / first.digest[7:]
    inode = created.stat().st_ino
    assert bring_in(store, plain) == first
    assert created.stat().st_ino == inode, "a job may hold it"
    assert store.content(first.digest).startswith(b'{"config":')


def test_the_size_of_an_image_is_that_of_all_its_layers(store: Store, tmp_path: Path) -> None:
    """146: many layers of allowed size are not more than one."""
    image = oci(
        tmp_path / "image", *(archive(entry(f"{number}", data=bytes(600_000))) for number in range(4))
    )
    with pytest.raises(ImageError, match="image_too_large"):
        bring_in(store, image, Caps(size=2_000_000))
    assert bring_in(store, image, Caps(size=2_400_000)).size == 2_400_000


def test_removing_takes_what_nothing_else_needs(store: Store, tmp_path: Path) -> None:
    """A name goes; the image when it was its last name; the layers that only it had."""
    shared, own = archive(entry("shared", data=bytes(1000))), archive(entry("own", data=bytes(2000)))
    one, two = (
        bring_in(store, oci(tmp_path / "one", shared, own)),
        bring_in(store, oci(tmp_path / "two", shared)),
    )
    for name, record in (("one:1", one), ("one:2", one), ("two:1", two)):
        store.tag(reference.parse(name), record.digest)
    assert collect.remove(store, reference.parse("one:1")) == 0
    assert store.find(reference.parse("one:2")) == one
    assert collect.remove(store, reference.parse("one:2")) == 2000
    assert [record.digest for record in store.images()] == [two.digest]
    assert len(os.listdir(store.directory / "content")) == 2
    with pytest.raises(KeyError):
        collect.remove(store, reference.parse("one:1"))
    assert collect.remove(store, reference.parse(two.digest)) == 1000
    assert (store.images(), store.names(), os.listdir(store.directory / "layers")) == ([], {}, [])


def test_pruning_goes_by_last_use_and_stops_at_the_size(store: Store, tmp_path: Path) -> None:
    """Without a name: gone. With one: the longest unused first, until what is left fits."""
    records = []
    for number in range(4):
        record = bring_in(store, oci(tmp_path / str(number), archive(entry("f", data=bytes(1000 + number)))))
        os.utime(store.directory / "images" / record.digest[7:], (number, 100 - number))
        records.append(record)
        if number:
            store.tag(reference.parse(f"n:{number}"), record.digest)
    assert collect.prune(store) == (1, 1000)
    assert collect.prune(store, most=2100) == (1, 1003)
    assert set(store.names()) == {"n:1", "n:2"}
    assert collect.prune(store, most=2100) == (0, 0)


def test_a_prune_that_is_cut_off_is_ended_by_the_next(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A crash behind any of its steps leaves images that are whole, or layers that the next prune takes."""
    kept = bring_in(store, oci(tmp_path / "kept", archive(entry("kept"))))
    store.tag(reference.parse("kept"), kept.digest)

    class Crash(BaseException):
        pass

    def crash(*_: object) -> None:
        raise Crash

    for module, name in ((collect, "_sweep"), (collect.shutil, "rmtree"), (collect, "_throw_away")):
        bring_in(store, oci(tmp_path / name, archive(entry("gone", data=bytes(5000)))))
        with monkeypatch.context() as patch:
            patch.setattr(module, name, crash)
            with pytest.raises(Crash):
                collect.prune(store)
        store = Store(store.directory)
        collect.prune(store)
        assert len(os.listdir(store.directory / "layers")) == 1
        assert empty(store)
    assert collect.verify(store, kept.layers[0]) == []


def test_nothing_is_removed_while_an_image_is_added(store: Store, tmp_path: Path) -> None:
    """Whoever removes is told to try again, at once."""
    bring_in(store, oci(tmp_path / "one", LAYER))
    with store.shared(), pytest.raises(SandboxError, match="try again"):
        collect.prune(Store(store.directory))
    assert collect.prune(store) == (1, 400_000)
