"""How the processes that handle an image's bytes are locked up, seen from outside while they are at work."""

from __future__ import annotations

import gzip
import os
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests import census
from tests.images import archive, entry
from worker.images import pipeline
from worker.images.source import Blob
from worker.images.store import Store
from worker.images.tree import Caps
from worker.sandbox.errors import SandboxError
from worker.sandbox.init import IDS

pytestmark = [pytest.mark.kernel, pytest.mark.once]
LAYER = archive(entry("first", data=b"1"), entry("noise", data=random.Random(1).randbytes(3 << 20)))
NAMESPACES = ("mnt", "pid", "net", "ipc", "uts", "user")


def shut_in() -> Iterator[tuple[str, int]]:
    """Our children that are at work and locked up by now, by their names."""
    for pid in census.descendants(os.getpid()):
        command = census.read(f"/proc/{pid}/cmdline")
        for name in ("unpacker", "decompressor"):
            if f"{name}.main" in command and "Seccomp:\t2" in census.read(f"/proc/{pid}/status"):
                yield name, pid


def watched(store: Store, look: Callable[[dict[str, int]], None], data: bytes = LAYER) -> None:
    """Unpack a layer, and call ``look`` with the two children in the middle of it."""

    def chunks() -> Iterator[bytes]:
        middle = len(data) // 2
        yield data[:middle]
        yield data[middle : middle + 1]
        children: dict[str, int] = {}
        end = time.monotonic() + 20 * census.SLOWDOWN
        while len(children) < 2:
            assert time.monotonic() < end
            children = dict(shut_in())
        look(children)
        yield data[middle + 1 :]

    @contextmanager
    def opened() -> Iterator[Iterator[bytes]]:
        yield chunks()

    with store.shared():
        store.add_layer(Blob(opened), Caps(), lambda _: None)


def field(pid: int, name: str) -> list[str]:
    """The words of one line of /proc/PID/status."""
    lines = census.read(f"/proc/{pid}/status").splitlines()
    return next(line.split()[1:] for line in lines if line.startswith(f"{name}:"))


def test_the_children_have_no_power_and_no_way_out(tmp_path: Path) -> None:
    """154: ids that are nobody's on the host, namespaces of their own, a filter, and only what the work needs."""
    store = Store(tmp_path / "store")

    def look(children: dict[str, int]) -> None:
        for name, pid in children.items():
            for ids in (field(pid, "Uid"), field(pid, "Gid")):
                assert ids == [str(pipeline.UNPACKER_IDS)] * 4
            assert field(pid, "Groups") == []
            assert (field(pid, "NoNewPrivs"), field(pid, "Seccomp")) == (["1"], ["2"])
            allowed = {0, 1, 3, 4} if name == "unpacker" else set()
            for capabilities in ("CapEff", "CapPrm", "CapBnd"):
                assert int(field(pid, capabilities)[0], 16) == sum(1 << number for number in allowed), (
                    capabilities
                )
            assert (field(pid, "CapInh"), field(pid, "CapAmb")) == (["0" * 16], ["0" * 16])
            for namespace in NAMESPACES:
                assert os.readlink(f"/proc/{pid}/ns/{namespace}") != os.readlink(f"/proc/self/ns/{namespace}")
            assert len(os.listdir(f"/proc/{pid}/fd")) <= 10
            for fd in os.listdir(f"/proc/{pid}/fd"):
                assert not os.readlink(f"/proc/{pid}/fd/{fd}").startswith("socket:")
        unpacker = children["unpacker"]
        assert set(os.listdir(f"/proc/{unpacker}/root")) <= {"first", "noise"}
        mounts = census.read(f"/proc/{unpacker}/mountinfo").splitlines()
        assert len(mounts) == 1
        assert {"nosuid", "nodev", "noexec", "idmapped"} <= set(mounts[0].split()[5].split(","))
        assert census.read(f"/proc/{unpacker}/uid_map").split() == ["0", str(pipeline.UNPACKER_IDS), str(IDS)]

    watched(store, look, gzip.compress(LAYER, 1))


def test_the_memory_of_the_children_does_not_grow_with_the_layer(tmp_path: Path) -> None:
    """146: a layer is streamed; neither it nor a file of it is ever held as a whole."""
    data = gzip.compress(
        archive(entry("big", data=bytes(64 << 20)), entry("last", data=os.urandom(4 << 20))), 1
    )
    seen: list[int] = []

    def look(children: dict[str, int]) -> None:
        seen.extend(int(field(pid, "VmHWM")[0]) << 10 for pid in children.values())

    watched(Store(tmp_path / "store"), look, data)
    assert len(seen) == 2
    assert max(seen) < 48 << 20


@pytest.mark.parametrize("victim", ["unpacker", "decompressor"])
def test_a_child_that_dies_is_a_failure_and_leaves_nothing(tmp_path: Path, victim: str) -> None:
    """Whichever it is; what it would have made is cleared away."""
    store = Store(tmp_path / "store")

    def look(children: dict[str, int]) -> None:
        os.kill(children[victim], 9)

    with pytest.raises(SandboxError, match=f"{victim}.*said nothing"):
        watched(store, look, gzip.compress(LAYER, 1))
    for name in ("temporary", "layers", "images"):
        assert os.listdir(store.directory / name) == []
