"""``stockade image pull``: an image from a registry, fetched by a process without privileges.

Exit status: 0 when the image is here; 1 when it is not, with the reason on standard error.
"""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from stockade import host
from worker.images.remote.faults import RegistryError
from worker.images.remote.pull import Progress, Pulled, Sources, sources_of
from worker.images.remote.puller import Puller, PullerDiedError
from worker.images.remote.reference import Reference, ReferenceFormError, parse_reference
from worker.images.remote.transport import Patience

PATIENCE = Patience()
"""How long registries may take."""


@click.command("pull")
@click.argument("image")
@click.option(
    "--layout",
    "directory",
    type=click.Path(file_okay=False, path_type=Path),
    required=True,
    help="Directory that becomes an OCI layout of the image; made when missing, else it must be empty.",
)
@click.option(
    "--registries",
    envvar="STOCKADE_REGISTRIES",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="What is to be known of registries (YAML): mirrors, plain HTTP, authorities, proxies.",
)
@click.option(
    "--credentials",
    envvar="STOCKADE_REGISTRY_CREDENTIALS",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Credentials in the form of Docker's config.json; mode 0600.",
)
def pull(image: str, directory: Path, registries: Path | None, credentials: Path | None) -> None:
    """Fetch IMAGE, [REGISTRY/]NAME[:TAG][@DIGEST], and print what it stands for: NAME@DIGEST."""
    try:
        reference = parse_reference(image)
        sources = sources_of(reference, registries, credentials, PATIENCE)
        _prepare(directory)
        pulled = fetch(reference, sources, directory)
    except ReferenceFormError as error:
        raise click.ClickException(str(error)) from None
    except RegistryError as error:
        raise click.ClickException(str(error)) from None
    except PullerDiedError:
        raise click.ClickException("the process that was to fetch it died; see above") from None
    click.echo(f"{pulled.reference.name}@{pulled.digest}")


def fetch(reference: Reference, sources: Sources, directory: Path) -> Pulled:
    """Pull into a directory that is empty, with a progress bar on standard error where that is a terminal.

    As root, the directory becomes the service user's, because that is who fetches.

    Raises:
        RegistryError: it cannot be had.
        PullerDiedError: the puller failed.
    """
    user = None
    if os.geteuid() == 0:
        service = host.require_service_user()
        os.chown(directory, service.pw_uid, service.pw_gid)
        user = service.pw_name
    with _bar(str(reference)) as show:
        return Puller(user).pull(reference, sources, directory, show)


def _prepare(directory: Path) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if any(directory.iterdir()):
            raise click.ClickException(f"--layout: {directory} is not empty")
    except OSError as error:
        raise click.ClickException(f"--layout: {directory}: {error.strerror}") from None


@contextmanager
def _bar(label: str) -> Iterator[Callable[[Progress], None]]:
    """A progress bar with bytes and rate; its length is known once the manifest is."""

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
    """How far a pull is, for people: `45.2 of 120.0 MB, 38.1 MB/s`."""
    done, total, rate = (value / 1e6 for value in (progress.bytes, progress.bytes_total, progress.rate))
    return f"{done:.1f} of {total:.1f} MB, {rate:.1f} MB/s"
