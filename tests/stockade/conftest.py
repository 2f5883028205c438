"""The whole stack in a state directory of its own."""

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.stack import Up

# The virtual machine of tests/vm is ten times slower; there one start of the stack is enough.
collect_ignore = ["test_up_survives.py"] if os.environ.get("STOCKADE_VM") else []


@pytest.fixture
def up() -> Iterator[Up]:
    """A state directory of its own that the service user can reach, not started yet."""
    home = Path(f"/tmp/stockade-test-up-{os.getpid()}-{time.monotonic_ns() % 1_000_000}")
    home.mkdir(mode=0o755)
    stack = Up(home / "state")
    yield stack
    try:
        if stack.started and stack.process.poll() is None:
            stack.stop()
    finally:
        shutil.rmtree(home)
