"""``stockade image``: the images that jobs can run in, on this machine.

It works on the store below ``--state``, as root, whether a `stockade up` runs on it or not: a new image can be used
at once, and one that a job runs in is not taken away under it.
"""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from policies.units import format_size, parse_size
from stockade import host
from stockade.image_pull import about_registries, fetched
from stockade.progress import Progress, short
from worker.images import archives, collect, hostroot, reference
from worker.images.errors import ImageError
from worker.images.reference import Reference
from worker.images.store import ImageRecord, Store
from worker.images.tree import Caps
from worker.sandbox.errors import SandboxError

_MOST = format_size(Caps().size)


def _state(command: Callable[..., None]) -> Callable[..., None]:
    return host.state_option("State directory of `stockade up` or `stockade run`; the images are below it.")(
        command
    )


@contextmanager
def _store(state: Path) -> Iterator[Store]:
    """The store; what goes wrong with it, or with an image, as messages for people."""
    host.require_root("image")
    try:
        yield Store(state.absolute() / host.IMAGES)
    except (ImageError, SandboxError) as error:
        raise click.ClickException(str(error)) from None
    except OSError as error:
        raise click.ClickException(f"{error.filename or state}: {error.strerror}") from None


def _found(store: Store, name: str) -> ImageRecord:
    found = store.find(reference.parse(name))
    if found is None:
        raise click.ClickException(f"there is no image {name!r} here; see: stockade image list")
    return found


@click.group()
def image() -> None:
    """Bring in, look at and remove the images that jobs run in."""


@image.command("import")
@click.argument("source", type=click.Path(exists=True, path_type=Path))
@click.option(
    "--name", metavar="NAME[:TAG]", help="What to call it; the default is what the archive says, if it does."
)
@click.option("--max-size", default=_MOST, show_default=True, help="The most that its files may take.")
@_state
def import_(source: Path, name: str | None, max_size: str, state: Path) -> None:
    """Import SOURCE: an OCI layout (directory or tar), a `docker save`, or the tar of a root file system.

    Layers and root file systems may be compressed with gzip, zstd or xz.
    """
    with _store(state) as store:
        _import(store, source, reference.parse(name) if name else None, max_size)


def _import(store: Store, path: Path, name: Reference | None, max_size: str) -> None:
    """Add what is at ``path``, name it, and say so."""
    try:
        caps = Caps(size=parse_size(max_size))
    except ValueError as error:
        raise click.ClickException(f"--max-size: {error}") from None
    with store.shared(), archives.opened(path) as (source, saved_as):
        with Progress(sys.stderr) as progress:
            record = store.add(source, caps, progress.bytes)
        name = name or (reference.parse(saved_as) if saved_as else None)
        if name:
            store.tag(name, record.digest)
    click.echo(f"{name or 'no name'}  {record.digest}  {short(record.size)}")
    for kind, count in sorted(store.left_out(record).items()):
        click.echo(f"left out: {count} x {kind}", err=True)


@image.command()
@click.argument("name")
@click.option("--max-size", default=_MOST, show_default=True, help="The most that its files may take.")
@about_registries
@_state
def pull(name: str, max_size: str, registries: Path | None, credentials: Path | None, state: Path) -> None:
    """Pull NAME, [REGISTRY/]NAME[:TAG][@sha256:DIGEST], from its registry.

    A process without privileges fetches it; nothing of it is used before it is checked.
    """
    with _store(state) as store, fetched(store, name, registries, credentials) as (layout, pulled):
        click.echo(f"{pulled.reference}", err=True)
        _import(store, layout, reference.parse(name), max_size)


@image.command("build-host")
@click.argument("name")
@click.option("--packages", default="", metavar="A,B", help="Debian packages beside the minimal system.")
@click.option(
    "--suite", default=hostroot.release, help="The Debian release; the default is this machine's own."
)
@_state
def build_host(name: str, packages: str, suite: str, state: Path) -> None:
    """Build a minimal Debian root with mmdebstrap and call it NAME."""
    with _store(state) as store:
        wanted = reference.parse(name)
        with hostroot.built(suite, [each for each in packages.split(",") if each]) as archive:
            _import(store, archive, wanted, _MOST)


@image.command("list")
@_state
def list_(state: Path) -> None:
    """List the images: name, digest, size, layers, when last used."""
    with _store(state) as store, store.shared():
        names: dict[str, list[str]] = {}
        for name, digest in sorted(store.names().items()):
            names.setdefault(digest, []).append(name)
        for record in store.images():
            used = time.strftime("%Y-%m-%d %H:%M", time.localtime(store.last_used(record.digest)))
            for name in names.get(record.digest, ["-"]):
                digest = record.digest[: len("sha256:") + 12]
                layers = f"{len(record.layers)} layer{'s' if len(record.layers) > 1 else ''}"
                click.echo(f"{name:30} {digest}  {short(record.size):>10}  {layers:>10}  used {used}")


@image.command()
@click.argument("name")
@click.option("--raw", type=click.Choice(["manifest", "config"]), help="Print this, byte for byte, instead.")
@_state
def inspect(name: str, raw: str | None, state: Path) -> None:
    """Print what is recorded of the image NAME (a name or a digest) as JSON."""
    with _store(state) as store, store.shared():
        record = _found(store, name)
        if raw:
            content = store.content(record.digest if raw == "manifest" else record.config_digest)
            sys.stdout.buffer.write(content)
        else:
            click.echo(record.model_dump_json(indent=2))


@image.command()
@click.argument("names", nargs=-1)
@_state
def verify(names: tuple[str, ...], state: Path) -> None:
    """Hash every file of the images NAMES (of all, if none is named) again.

    A layer that is not what was unpacked is put into quarantine: no job starts in it any more, and importing its
    image again brings it back. The exit status is then 1.
    """
    with _store(state) as store:
        records = [_found(store, name) for name in names] or store.images()
        layers = list(dict.fromkeys(layer for record in records for layer in record.layers))
        damaged = 0
        for diff_id in layers:
            differences = collect.verify(store, diff_id)
            for difference in differences[:20]:
                click.echo(f"{diff_id}: {difference}", err=True)
            damaged += bool(differences)
        click.echo(f"{len(layers)} layers, {damaged} damaged")
        sys.exit(1 if damaged else 0)


@image.command()
@click.argument("names", nargs=-1, required=True)
@_state
def remove(names: tuple[str, ...], state: Path) -> None:
    """Take away the names NAMES, or digests, and what nothing else needs.

    An image that a job runs in keeps its layers; `prune` takes them later.
    """
    with _store(state) as store:
        for name in names:
            try:
                freed = collect.remove(store, reference.parse(name))
            except KeyError:
                raise click.ClickException(f"there is no image {name!r} here") from None
            click.echo(f"{name}: freed {short(freed)}")


@image.command()
@click.option(
    "--keep", metavar="SIZE", help="Remove named images too, the longest unused first, down to this size."
)
@_state
def prune(keep: str | None, state: Path) -> None:
    """Remove images without a name, and layers that no image needs.

    Nothing is taken that a job runs in.
    """
    with _store(state) as store:
        try:
            most = None if keep is None else parse_size(keep)
        except ValueError as error:
            raise click.ClickException(f"--keep: {error}") from None
        removed, freed = collect.prune(store, most)
        click.echo(f"removed {removed} images, freed {short(freed)}")
