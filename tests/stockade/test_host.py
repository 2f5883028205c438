"""What `stockade up` refuses to start on, and what it says then."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from stockade import host


@pytest.fixture
def listener() -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


def test_a_port_in_use_is_refused_by_name(listener: str) -> None:
    """The message names the address and the option that chooses another."""
    with pytest.raises(click.ClickException, match=f"cannot listen on {listener}: .*in use.*--listen"):
        host.require_free(listener)


def test_a_foreign_address_is_refused() -> None:
    """An address that this machine does not have is refused before anything is started."""
    with pytest.raises(click.ClickException, match="cannot listen on"):
        host.require_free("192.0.2.1:8000")


@pytest.mark.parametrize("text", ["8000", "127.0.0.1", "127.0.0.1:", ":8000", "127.0.0.1:99999", "a:b"])
def test_what_is_no_address_is_refused(text: str) -> None:
    """The message shows what an address looks like."""
    with pytest.raises(click.ClickException, match="expected HOST:PORT"):
        host.split_listen(text)


def test_addresses_of_both_families_are_read() -> None:
    """IPv6 stands in brackets."""
    assert host.split_listen("[::1]:8000") == ("::1", 8000)
    assert host.split_listen("127.0.0.1:80") == ("127.0.0.1", 80)


def test_a_state_is_held_once(tmp_path: Path) -> None:
    """A second holder is told which process has it; the lock ends with its holder."""
    refused = pytest.raises(click.ClickException, match=f"process {os.getpid()}")
    with host.locked(tmp_path), refused, host.locked(tmp_path):
        pass
    with host.locked(tmp_path):
        pass


def test_the_lock_of_a_killed_process_is_free(tmp_path: Path) -> None:
    """A lock file left behind by a killed process holds nobody back."""
    (tmp_path / "lock").write_text("4194304\n")
    with host.locked(tmp_path):
        pass


def test_a_socket_path_that_the_kernel_would_cut_is_refused(tmp_path: Path) -> None:
    """107 bytes fit, 108 do not."""
    host.require_short(Path("/" + "x" * 106))
    with pytest.raises(click.ClickException, match="shorter --state"):
        host.require_short(Path("/" + "x" * 107))


@pytest.mark.kernel
def test_a_state_below_a_closed_directory_is_refused(tmp_path: Path) -> None:
    """The message names the directory that is closed to the service user."""
    closed = tmp_path / "closed"
    (closed / "state").mkdir(parents=True)
    for directory in [closed, *closed.parents]:  # pytest's own directories are closed too; name the first
        if not directory.stat().st_mode & 0o001:
            first = directory
    closed.chmod(0o700)
    with pytest.raises(click.ClickException, match=f"cannot reach the state .*: {first} is closed to others"):
        host.require_reachable(closed / "state", "the state", "")


@pytest.mark.kernel
def test_every_command_that_needs_root_says_so() -> None:
    """Not root is one clear line, not a traceback."""
    for command in (["up"], ["run", "--", "true"]):
        done = subprocess.run(
            ["setpriv", "--reuid=65534", "--clear-groups", sys.executable, "-I", "-m", "stockade", *command],
            cwd="/",
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode != 0
        assert f"`stockade {command[0]}` must run as root" in done.stderr
        assert "Traceback" not in done.stderr
