"""Policy source: changed documents come into force at once, all of them or none."""

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from jobs.policy_source import PolicySource
from policies.finding import PolicyError
from policies.loader import PolicySet

MINE = "name: mine\nextends: default\ndefaults: {pids: 8}\n"


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "mine.yaml").write_text(MINE)
    return tmp_path


def soon(condition: Callable[[], object]) -> None:
    """Wait until it holds."""
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def pids(source: PolicySource) -> int:
    return source.current.policies["mine"].defaults.pids


def test_a_changed_document_comes_into_force(directory: Path) -> None:
    """The next look finds a file that was written, replaced, added or removed; without a change nothing is read."""
    source = PolicySource(directory)
    before = source.current
    assert not source.refresh()
    assert source.current is before
    (directory / "mine.yaml").write_text(MINE.replace("8", "9"))
    assert source.refresh()
    assert (pids(source), before.policies["mine"].defaults.pids) == (9, 8)
    (directory / "new").write_text(MINE.replace("8", "7"))
    os.replace(directory / "new", directory / "mine.yaml")
    assert source.refresh()
    assert pids(source) == 7
    (directory / "platform.yaml").write_text("ceilings: {pids: 5}\n")
    assert source.refresh()
    assert source.current.platform.ceilings is not None
    os.unlink(directory / "mine.yaml")
    assert source.refresh()
    assert "mine" not in source.current.policies


def test_a_broken_document_leaves_the_old_ones_in_force_and_is_told_once(directory: Path) -> None:
    """Nothing of a set with an error is in force; it is logged once, and told until it is mended."""
    source = PolicySource(directory)
    with capture_logs() as logs:
        (directory / "mine.yaml").write_text("name: mine\nextends: default\nuser: x\n")
        (directory / "other.yaml").write_text("name: other\nextends: default\n")
        assert not source.refresh()
        assert not source.refresh()
        os.utime(directory / "mine.yaml")
        assert not source.refresh()
    assert [log["event"] for log in logs] == ["policies_broken"]
    assert "mine.yaml:3: user" in logs[0]["findings"][0]
    assert source.trouble is not None
    assert (pids(source), "other" in source.current.policies) == (8, False)
    (directory / "mine.yaml").write_text(MINE)
    assert source.refresh()
    assert source.trouble is None
    assert "other" in source.current.policies


def test_a_directory_that_goes_leaves_the_policies_in_force(directory: Path) -> None:
    """A volume that is unmounted for a moment costs no policy."""
    source = PolicySource(directory)
    directory.rename(directory.parent / "away")
    assert not source.refresh()
    assert source.trouble is not None
    assert pids(source) == 8


def test_nothing_starts_with_a_broken_document(directory: Path) -> None:
    """At the start there is nothing older to keep."""
    (directory / "mine.yaml").write_text("name: mine\n")
    with pytest.raises(PolicyError):
        PolicySource(directory)


def test_broken_drafts_are_logged_and_keep_nothing_back(directory: Path) -> None:
    """A draft is a draft."""
    source = PolicySource(directory)
    (directory / "drafts").mkdir()
    (directory / "drafts" / "mine.yaml").write_text("name: mine\nusr: 1\n")
    with capture_logs() as logs:
        assert source.refresh()
    assert [log["event"] for log in logs] == ["policies_loaded", "drafts_broken"]
    assert source.trouble is None


def test_a_watched_directory_is_looked_at_by_itself(directory: Path) -> None:
    """Within moments of the change the new policies are in force, and whoever asked for it is told."""
    source, before = PolicySource(directory), set(threading.enumerate())
    told: list[PolicySet] = []
    with source.watched(told.append, pause=0.01):
        (directory / "new").write_text(MINE.replace("8", "6"))
        os.replace(directory / "new", directory / "mine.yaml")
        soon(lambda: told)
    assert told == [source.current]
    assert pids(source) == 6
    assert "policies" not in {thread.name for thread in set(threading.enumerate()) - before}


def test_documents_that_are_not_taken_are_told_once(tmp_path: Path) -> None:
    """Whoever watches hears what is wrong, once for each thing that is wrong, and of nothing else."""
    source = PolicySource(tmp_path)
    changed: list[PolicySet] = []
    rejected: list[str] = []
    with source.watched(changed.append, rejected.append, pause=0.01):
        (tmp_path / "broken.yaml").write_text("name: broken\nmemory: lots\n")
        soon(lambda: rejected)
        (tmp_path / "broken.yaml").write_text("name: broken\nmemory: lots \n")
        time.sleep(0.1)
        (tmp_path / "broken.yaml").unlink()
        soon(lambda: changed)
    assert len(rejected) == 1
    assert "broken.yaml" in rejected[0]
