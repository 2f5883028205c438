"""Fixtures for every test: a Valkey server, and what to do where the kernel tests cannot run."""

import os
import shutil
import sys
import tempfile
import time
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
import redis

from stockade import valkey
from stockade.children import Child


@pytest.fixture(scope="session")
def _valkey_directory() -> Iterator[Path]:
    directory = Path(tempfile.mkdtemp(prefix="stockade-test-valkey-"))  # short: a socket path has 107 bytes
    server = Child("valkey", valkey.command(directory, durable=False), log=directory / "log")
    try:
        server.start()
        server.wait_until(lambda: valkey.answers(directory), timeout=30, pause=time.sleep)
        yield directory
    finally:
        server.stop(grace=10)
        shutil.rmtree(directory)


@pytest.fixture
def redis_url(_valkey_directory: Path) -> str:
    """The address, as STOCKADE_REDIS takes it, of a Valkey server that is empty when the test starts."""
    with redis.Redis(unix_socket_path=str(valkey.socket_path(_valkey_directory))) as client:
        client.flushall()
    return valkey.url(_valkey_directory)


def kernel_tests_impossible() -> str | None:
    """Why this process cannot run sandboxes, or None when it can be tried."""
    if sys.platform != "linux":
        return "needs Linux"
    if os.geteuid() != 0:
        return "needs root"
    release = tuple(int(part) for part in os.uname().release.split("-")[0].split(".")[:2])
    if release < (5, 12):
        return f"needs Linux 5.12, this is {os.uname().release}"
    return None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip the kernel tests where they cannot run, saying why; in CI let them run, and fail."""
    reason = kernel_tests_impossible()
    if reason is None or os.environ.get("CI") == "true":
        return
    for item in items:
        if item.get_closest_marker("kernel"):
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """In CI a kernel test that skips itself has failed: a limit that nobody tried is not a limit.

    A test over what this machine happens to have may find nothing there: an empty set of parameters.
    """
    report = yield
    skipped = report.skipped and not hasattr(report, "wasxfail")
    empty = skipped and "got empty parameter set" in str(report.longrepr)
    if skipped and not empty and os.environ.get("CI") == "true" and item.get_closest_marker("kernel"):
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid}: a kernel test was skipped in CI: {report.longrepr}"
    return report
