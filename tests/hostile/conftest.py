"""One launcher for all attacks, and the host census around each of them."""

from collections.abc import Iterator

import pytest

from tests.sandboxes import Launcher


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
    with launcher.unchanged():
        yield launcher
    assert launcher.process.poll() is None, "the launcher died"


@pytest.fixture(autouse=True)
def _host_census(request: pytest.FixtureRequest) -> None:
    """Every test here is taken between two counts, also one that asks for the launcher alone."""
    if request.node.get_closest_marker("kernel"):
        request.getfixturevalue("sandbox")
