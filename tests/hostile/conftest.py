"""One launcher for all attacks, and the host census around each of them."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import census
from tests.sandboxes import Launcher, secret


@pytest.fixture(scope="session")
def launcher() -> Iterator[Launcher]:
    """The launcher under attack, warmed up with one job so that what it keeps is there before the census."""
    started = Launcher()
    try:
        started.warm_up()
        yield started
    finally:
        started.stop()


@pytest.fixture
def sandbox(launcher: Launcher) -> Iterator[Launcher]:
    """Runs programs in sandboxes; when the test is over the host must be as it was before."""
    launcher.revive()
    with launcher.unchanged():
        yield launcher
        assert launcher.process.poll() is None, f"the launcher died:\n{launcher.log.read_text()[-2000:]}"


@pytest.fixture(autouse=True)
def _host_census(request: pytest.FixtureRequest) -> None:
    """Every test here is taken between two counts, also one that asks for the launcher alone."""
    if request.node.get_closest_marker("kernel"):
        request.getfixturevalue("sandbox")


@pytest.fixture
def sentinel() -> Iterator[Path]:
    """A directory of the host with one file; the test fails when anything of them changed."""
    directory = Path("/var/tmp") / secret()
    directory.mkdir(mode=0o755)
    file = directory / "precious"
    file.write_text("precious")
    before = [census.identity(path) for path in (directory, file)]
    yield directory
    assert [census.identity(path) for path in (directory, file)] == before
    assert sorted(os.listdir(directory)) == ["precious"]
    shutil.rmtree(directory)
