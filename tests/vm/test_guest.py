"""The guest is what the v2 lane promises: a host on which only cgroup v2 exists."""

from pathlib import Path

import pytest

pytestmark = pytest.mark.kernel
ROOT = Path("/sys/fs/cgroup")


def test_only_cgroup_v2_is_mounted() -> None:
    """No v1 hierarchy exists, so whatever passes here passed on v2."""
    kinds = {
        line.split(" - ")[1].split()[0] for line in Path("/proc/self/mountinfo").read_text().splitlines()
    }
    assert "cgroup2" in kinds
    assert "cgroup" not in kinds


def test_the_controllers_of_every_limit_are_there() -> None:
    """cpu, memory, pids and io can be enabled by the product."""
    assert {"cpu", "memory", "pids", "io"} <= set((ROOT / "cgroup.controllers").read_text().split())


def test_cpu_and_io_are_not_enabled_for_us() -> None:
    """As on a host run by systemd, the driver has to enable in the root cgroup what it needs."""
    memory_and_pids = {"memory", "pids"}
    enabled = set((ROOT / "cgroup.subtree_control").read_text().split())
    assert memory_and_pids <= enabled
    assert Path("/proc/self/cgroup").read_text() == "0::/session.slice\n"
