"""Debian packages that tests need and the product does not: installed when a test asks for them."""

import fcntl
import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

_LOCK = Path("/tmp/stockade-test-packages.lock")


def need(programs: Mapping[str, str]) -> None:
    """Have programs on PATH, given with the package that brings each; skip the test where that cannot be.

    In CI it is an error when they cannot be had.
    """
    if not _missing(programs):
        return
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        pytest.skip(f"needs {', '.join(_missing(programs))}, and this is not root on Debian")
    with _LOCK.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        packages = sorted({programs[name] for name in _missing(programs)})
        if not packages:
            return
        failure = _install(packages)
    if failure and os.environ.get("CI") != "true":
        pytest.skip(f"needs {', '.join(packages)}, which could not be installed: {failure}")
    assert not failure, failure


def _missing(programs: Mapping[str, str]) -> list[str]:
    return [name for name in programs if not shutil.which(name)]


def _install(packages: list[str]) -> str:
    """Install; what went wrong, or nothing."""
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    apt = ("apt-get", "-qq", "-o", "DPkg::Lock::Timeout=300")
    for command in (("update",), ("install", "-y", "--no-install-recommends", *packages)):
        done = subprocess.run([*apt, *command], env=environment, capture_output=True, text=True, check=False)
    return done.stderr[-500:] if done.returncode else ""
