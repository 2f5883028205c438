"""What `stockade image pull` does before the store has the image: fetch it, and show how far that is."""

import fcntl
import os
import secrets
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from stockade import host
from stockade.progress import short
from worker.images.remote.faults import RegistryError
from worker.images.remote.pull import Progress, Pulled, Sources, sources_of
from worker.images.remote.puller import Puller, PullerDiedError
from worker.images.remote.reference import Reference, parse_reference
from worker.images.remote.transport import Patience
from worker.images.store import TEMPORARY, Store

PATIENCE = Patience()
"""How long registries may take."""

_file = click.Path(exists=True, dir_okay=False, path_type=Path)


def about_registries(command: Callable[..., None]) -> Callable[..., None]:
    """The options that name the operator's two files."""
    command = click.option(
        "--credentials",
        envvar="STOCKADE_REGISTRY_CREDENTIALS",
        type=_file,
        help="Credentials in the form of Docker's config.json; mode 0600.",
    )(command)
    return click.option(
        "--registries",
        envvar="STOCKADE_REGISTRIES",
        type=_file,
        help="What is to be known of registries (YAML): mirrors, plain HTTP, authorities, proxies.",
    )(command)


@contextmanager
def fetched(
    store: Store, name: str, registries: Path | None, credentials: Path | None
) -> Iterator[tuple[Path, Pulled]]:
    """The image NAME in an OCI layout within the store's temporary directory, which is gone after the block.

    Raises:
        click.ClickException: it cannot be had.
        ImageError: NAME is no name.
    """
    reference = parse_reference(name)
    key = f"pull-{secrets.token_hex(8)}"
    with store.lock(key, fcntl.LOCK_EX):
        directory = store.directory / TEMPORARY / key
        directory.mkdir(mode=0o700)
        try:
            sources = sources_of(reference, registries, credentials, PATIENCE)
            yield directory, _fetch(reference, sources, directory)
        except RegistryError as error:
            raise click.ClickException(str(error)) from None
        except PullerDiedError:
            raise click.ClickException("the process that was to fetch it died; see above") from None
        finally:
            shutil.rmtree(directory)


def _fetch(reference: Reference, sources: Sources, directory: Path) -> Pulled:
    """Pull into an empty directory, which becomes the service user's, because that is who fetches."""
    service = host.require_service_user()
    os.chown(directory, service.pw_uid, service.pw_gid)
    with _bar(str(reference)) as show:
        return Puller(service.pw_name).pull(reference, sources, directory, show)


@contextmanager
def _bar(label: str) -> Iterator[Callable[[Progress], None]]:
    """A progress bar on standard error, with bytes and rate; its length is known once the manifest is."""

    def about(progress: Progress | None) -> str | None:
        return None if progress is None else told(progress)

    with click.progressbar(
        length=1, label=label, file=sys.stderr, item_show_func=about, show_eta=False
    ) as bar:

        def show(progress: Progress) -> None:
            bar.length = max(progress.bytes_total, 1)
            bar.update(progress.bytes - bar.pos, progress)

        yield show


def told(progress: Progress) -> str:
    """How far a pull is, for people: `45.2 MiB of 120.0 MiB, 38.1 MiB/s`."""
    return f"{short(progress.bytes)} of {short(progress.bytes_total)}, {short(int(progress.rate))}/s"
