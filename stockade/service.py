"""Which service a command means, and a client of it.

The service of ``--url`` and ``--key`` (or ``STOCKADE_URL`` and ``STOCKADE_KEY``), else the ``stockade up`` that runs
on ``--state``, with its development key.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from stockade import host
from stockade.client import ApiError, Client, StockadeError, Unreachable
from stockade.client.access import KEY_VARIABLE, URL_VARIABLE
from stockade.job_options import refusal
from stockade.verdict import OURS

ADDRESS, DEVELOPMENT_KEY = "address", "dev-key"
"""Files of a state directory: where its API is, and a key of the default project."""


class ServiceError(click.ClickException):
    """What the service refused or could not do; the exit status says that it was not the program."""

    exit_code = OURS


def where(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options that say which service is meant."""
    command = host.state_option("State directory of the running `stockade up`, for what is not given.")(
        command
    )
    command = click.option("--key", envvar=KEY_VARIABLE, help=f"API key; better in {KEY_VARIABLE}.")(command)
    return click.option("--url", envvar=URL_VARIABLE, help=f"Address of the API, as in {URL_VARIABLE}.")(
        command
    )


@contextmanager
def connected(url: str | None, key: str | None, state: Path) -> Iterator[Client]:
    """A client of the service that is meant; its failures, and those of what is done, as messages for people."""
    if url and not key:  # the development key is for its own service alone
        raise ServiceError(f"no API key for {url}: give --key or set {KEY_VARIABLE}")
    found = url or _kept(state, ADDRESS, "--url")
    try:
        with Client(found, key or _kept(state, DEVELOPMENT_KEY, "--key")) as client:
            yield client
    except ApiError as error:
        text = refusal(error.violations) if error.violations else str(error)
        raise ServiceError(text) from None
    except Unreachable as error:
        hint = "" if url else f". Is `stockade up` running on {state}? Else name the service with --url"
        raise ServiceError(f"{error}{hint}") from None
    except StockadeError as error:
        raise ServiceError(str(error)) from None


def _kept(state: Path, name: str, option: str) -> str:
    try:
        return (state / name).read_text().strip()
    except PermissionError:
        raise ServiceError(f"the {name} of {state} is for root alone: use sudo, or give {option}") from None
    except OSError as error:
        hint = f"Is `stockade up` running on it? Else give {option}"
        raise ServiceError(f"no {name} in {state}: {error.strerror}. {hint}") from None
