"""One `stockade up` for all end-to-end tests; nothing of it may be left when they are over."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.service import Service
from tests.stack import Up, cgroups_of, left_of, still_there

SLOTS = 4
IMAGES = 'name: images\nextends: default\nversion: "1"\nimages: ["tools:*"]\n'
"""A policy beside the built-in ones: its jobs run in imported images."""


@pytest.fixture(scope="session")
def _running() -> Iterator[Service]:
    home = Path(f"/tmp/stockade-test-e2e-{os.getpid()}")
    home.mkdir(mode=0o755)
    up, policies = Up(home / "state"), home / "policies"
    policies.mkdir()
    (policies / "images.yaml").write_text(IMAGES)
    try:
        up.start("--slots", str(SLOTS), "--grace", "2", "--policies", str(policies))
        with up.client() as client:
            yield Service(up, client)
        cgroups = cgroups_of(up.state)
        assert up.stop() == 0
        assert left_of(up.state) == []
        assert still_there(cgroups) == []
    finally:
        if up.started and up.process.poll() is None:
            up.process.kill()
            up.process.wait()
        shutil.rmtree(home)


@pytest.fixture
def service(_running: Service) -> Service:
    """The running service, which must have come through the test before."""
    assert _running.up.process.poll() is None, _running.up.output()
    return _running
