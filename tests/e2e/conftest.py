"""One `stockade up` for all end-to-end tests; nothing of it may be left when they are over."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.service import Service
from tests.stack import Up, cgroups_of, left_of, still_there

SLOTS = 4
POOLED = """\
name: pooled
extends: default
version: "1"
description: Runs in two pools that there are, and in one that there is not.
pools: [default, bigmem, nobody]
defaults: {wall_time: 60s}
"""
IMAGES = 'name: images\nextends: default\nversion: "1"\nimages: ["tools:*"]\n'
"""Beside the built-in ones: a policy whose jobs run in imported images."""


@pytest.fixture(scope="session")
def _running() -> Iterator[Service]:
    home = Path(f"/tmp/stockade-test-e2e-{os.getpid()}")
    home.mkdir(mode=0o755)
    up = Up(home / "state")
    try:
        (policies := home / "policies").mkdir(mode=0o755)
        (policies / "images.yaml").write_text(IMAGES)
        (policies / "pooled.yaml").write_text(POOLED)
        places = ("--policies", str(policies), "--pools", "default,bigmem")
        up.start("--slots", str(SLOTS), "--grace", "2", *places)
        with up.client() as client, up.api() as api:
            yield Service(up, client, api)
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
