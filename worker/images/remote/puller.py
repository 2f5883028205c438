"""The puller: a process of its own that talks to registries, so that nothing else has to.

    worker or `stockade image pull`  ── the task, with this one image's endpoints and credentials ──►  puller
                                     ◄── progress … then the image or what is wrong ──                (user stockade)

It is started for one image and ends with it. It has no privileges, no variables of our environment, no core file, an
address space of 1 GiB, and writes to one directory, which is handed to it. It reads no file of the operator's: what it
needs is in the task.
"""

import os
import resource
import subprocess
import sys
from collections.abc import Callable, Collection, Generator, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Literal

from pydantic import ConfigDict, TypeAdapter

from policies.model import Frozen
from worker.images.remote.credentials import REVEAL
from worker.images.remote.faults import Fault, RegistryError
from worker.images.remote.pull import Progress, Pulled, Sources, pull, resolve
from worker.images.remote.reference import Reference
from worker.images.remote.sink import LayoutSink

MEMORY = 1 << 30
"""Bytes of address space: three blobs in flight, and a manifest of 4 MiB read."""
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_UNPRIVILEGED = ("--clear-groups", "--inh-caps=-all", "--bounding-set=-all")


class Task(Frozen):
    """What a puller is to do: pull into `directory`, or where that is null say the digest."""

    model_config = ConfigDict(hide_input_in_errors=True)

    reference: Reference
    sources: Sources
    directory: Path | None = None
    present: tuple[str, ...] = ()


class _Resolved(Frozen):
    kind: Literal["resolved"] = "resolved"
    digest: str


class _Moving(Frozen):
    kind: Literal["moving"] = "moving"
    progress: Progress


class _Done(Frozen):
    kind: Literal["done"] = "done"
    pulled: Pulled


class _Failed(Frozen):
    kind: Literal["failed"] = "failed"
    fault: Fault
    subject: str
    reason: str
    hint: str


_Said = _Resolved | _Moving | _Done | _Failed
_said: TypeAdapter[_Said] = TypeAdapter(_Said)


class PullerDiedError(Exception):
    """The puller ended without a word about the image; what it said is on standard error."""


class Puller:
    """Starts pullers, as `user` (None: as ourselves). One dies with the thread that waits for it (PR_SET_PDEATHSIG)."""

    def __init__(self, user: str | None = None) -> None:
        drop = () if user is None else ("--reuid", user, "--regid", user, *_UNPRIVILEGED)
        python = (sys.executable, "-P", "-m", "worker.images.remote.puller")
        self._command = ("setpriv", "--pdeathsig", "KILL", "--no-new-privs", *drop, "--", *python)

    def resolve(self, reference: Reference, sources: Sources) -> str:
        """The digest that a reference stands for.

        Raises:
            RegistryError: nobody says.
            PullerDiedError: the puller failed.
        """
        with closing(self._run(Task(reference=reference, sources=sources))) as words:
            for said in words:
                if isinstance(said, _Resolved):
                    return said.digest
        raise PullerDiedError

    def pull(
        self,
        reference: Reference,
        sources: Sources,
        directory: Path,
        progress: Callable[[Progress], None] = lambda _: None,
        present: Collection[str] = (),
    ) -> Pulled:
        """Fetch an image.

        Args:
            reference: the image.
            sources: whom to ask.
            directory: empty, and writable for the puller's user; becomes an OCI layout.
            progress: told how far it is.
            present: digests of blobs that need not be fetched (see BlobSink.has).

        Raises:
            RegistryError: it cannot be had, or is not what it should be.
            PullerDiedError: the puller failed.
        """
        handed = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:  # as a descriptor, so that it may lie where the puller's user cannot go
            there = Path(f"/proc/self/fd/{handed}")
            task = Task(reference=reference, sources=sources, directory=there, present=tuple(present))
            with closing(self._run(task, handed)) as words:
                for said in words:
                    if isinstance(said, _Moving):
                        progress(said.progress)
                    elif isinstance(said, _Done):
                        return said.pulled
        finally:
            os.close(handed)
        raise PullerDiedError

    def _run(self, task: Task, *handed: int) -> Generator[_Said, None, None]:
        """What a puller says about a task; it is dead when this is over, however it is."""
        with self._started(handed) as process:
            assert process.stdin is not None and process.stdout is not None
            try:
                process.stdin.write(task.model_dump_json(context=REVEAL, by_alias=True).encode())
                process.stdin.close()
            except BrokenPipeError:
                raise PullerDiedError from None
            for line in process.stdout:
                said = _said.validate_json(line)
                if isinstance(said, _Failed):
                    raise RegistryError(said.fault, said.subject, said.reason, said.hint)
                yield said

    @contextmanager
    def _started(self, handed: tuple[int, ...]) -> Iterator[subprocess.Popen[bytes]]:
        process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd="/",
            env={"PATH": _PATH, "LANG": "C.UTF-8"},
            start_new_session=True,
            pass_fds=handed,
        )
        try:
            yield process
        finally:
            process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout):
                assert stream is not None
                stream.close()


def main() -> int:
    """Do the task on standard input, and say on standard output what becomes of it: one JSON object a line."""
    os.umask(0o077)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    task = Task.model_validate_json(sys.stdin.buffer.read())
    try:
        _say(_do(task))
    except RegistryError as error:
        _say(_Failed(fault=error.fault, subject=error.subject, reason=error.reason, hint=error.hint))
        return 1
    return 0


def _do(task: Task) -> _Said:
    if task.directory is None:
        return _Resolved(digest=resolve(task.reference, task.sources))
    sink = LayoutSink(task.directory, task.present)
    pulled = pull(task.reference, sink, lambda progress: _say(_Moving(progress=progress)), task.sources)
    sink.finish(pulled)
    return _Done(pulled=pulled)


def _say(said: _Said) -> None:
    sys.stdout.write(said.model_dump_json(by_alias=True) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
