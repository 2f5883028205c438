"""Policy source: the policies of an installation, read again when their files change.

The new ones are in force from one moment to the next, and only when all of them are right. A broken document
leaves those before it in force: the log says so once, and `trouble` for as long as it stays broken.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import structlog

from policies.finding import PolicyError
from policies.loader import DRAFTS, PolicySet, load

WATCH = 2.0
"""Seconds between two looks at the directory."""

log = structlog.get_logger(__name__)

Changed = Callable[[PolicySet], None]
Rejected = Callable[[str], None]
Fingerprint = tuple[tuple[str, int, int, int], ...]


class PolicySource:
    """The policies in force. `current` is read by any thread; one thread calls `refresh`."""

    def __init__(self, directory: Path | None) -> None:
        """Read the policies of `policies.loader.load`.

        Raises policies.finding.PolicyError: nothing starts with policies that are not right.
        """
        self._directory = directory
        self._seen = _fingerprint(directory)
        self.current = load(directory)
        self.trouble: str | None = None
        """What is wrong with the documents as they now stand, so that they are not in force."""
        _log_drafts(self.current)

    def refresh(self) -> bool:
        """Read the policies again if a file has changed since; say whether others are in force now."""
        fingerprint = _fingerprint(self._directory)
        if fingerprint == self._seen:
            return False
        self._seen = fingerprint
        try:
            found = load(self._directory)
        except PolicyError as error:
            if str(error) != self.trouble:
                log.error(
                    "policies_broken", findings=[str(each) for each in error.findings], in_force="the old"
                )
            self.trouble = str(error)
            return False
        self.trouble = None
        self.current = found
        log.info("policies_loaded", policies={name: each.digest for name, each in found.policies.items()})
        _log_drafts(found)
        return True

    @contextmanager
    def watched(
        self,
        changed: Changed = lambda _: None,
        rejected: Rejected = lambda _: None,
        pause: float = WATCH,
    ) -> Iterator[None]:
        """Refresh every `pause` seconds, in a thread, until the block is left.

        There `changed` is called with the policies whenever others are in force, and `rejected` with what is wrong
        with them whenever documents are not taken.
        """
        end = threading.Event()
        thread = threading.Thread(
            target=self._watch, args=(end, pause, changed, rejected), name="policies", daemon=True
        )
        thread.start()
        try:
            yield
        finally:
            end.set()
            thread.join()

    def _watch(self, end: threading.Event, pause: float, changed: Changed, rejected: Rejected) -> None:
        while not end.wait(pause):
            before = self.trouble
            try:
                if self.refresh():
                    changed(self.current)
                elif self.trouble not in (None, before):
                    rejected(str(self.trouble))
            except Exception:
                log.exception("policies_not_read")  # the old ones stay in force; it is tried again


def _log_drafts(found: PolicySet) -> None:
    if found.draft_findings:
        log.warning("drafts_broken", findings=[str(each) for each in found.draft_findings])


def _fingerprint(directory: Path | None) -> Fingerprint:
    """What tells a change of the files: names, times of change, sizes, inodes."""
    if directory is None:
        return ()
    found = []
    for each in (directory, directory / DRAFTS):
        try:
            paths = sorted(path for path in each.iterdir() if path.suffix == ".yaml")
        except OSError:
            continue
        for path in paths:
            try:
                status = path.stat()
            except OSError:
                found.append((str(path), 0, 0, 0))
            else:
                found.append((str(path), status.st_mtime_ns, status.st_size, status.st_ino))
    return tuple(found)
