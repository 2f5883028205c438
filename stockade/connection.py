"""Which Redis a command means, and a connection to it.

Commands talk to Redis directly, so they need no running API: to the Redis of ``--redis`` (or
``STOCKADE_REDIS``), else to the embedded Valkey of the ``stockade up`` that runs on ``--state``.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import click
from redis import Redis, RedisError

from jobs.keys import ApiKeyError
from jobs.settings import Settings, SettingsError
from jobs.store import connect
from jobs.tenants import TenantError
from stockade import host
from stockade.valkey_users import User, Users


def where(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options that say which Redis is meant."""
    command = host.state_option("State directory of the running `stockade up`, when --redis is not given.")(
        command
    )
    return click.option("--redis", envvar="STOCKADE_REDIS", help="Address of Redis, as in STOCKADE_REDIS.")(
        command
    )


@contextmanager
def connected(redis: str | None, state: Path) -> Iterator[Redis]:
    """A connection to the Redis that is meant; its failures, and those of what is done, as messages for people."""
    try:
        settings = Settings(redis=redis or _embedded(state.absolute()))
        with connect(settings) as client:
            yield client
    except (SettingsError, ValueError) as error:
        raise click.ClickException(f"--redis: {error}") from None
    except (TenantError, ApiKeyError) as error:
        raise click.ClickException(str(error)) from None
    except RedisError as error:
        hint = "" if redis else _hint(state)
        reason = str(error).rstrip(".")
        raise click.ClickException(f"cannot use Redis at {settings.redis_shown}: {reason}.{hint}") from None


def _embedded(state: Path) -> str:
    """The address of a state directory's Valkey, for the user that may do everything."""
    try:
        return Users.load(state).url(User.ADMIN)
    except PermissionError:
        raise click.ClickException(f"the Valkey of {state} is for root alone: use sudo") from None
    except OSError as error:
        raise click.ClickException(f"no Valkey of {state}: {error.strerror}.{_hint(state)}") from None


def _hint(state: Path) -> str:
    return f" Is `stockade up` running on {state}? Else name the Redis with --redis"
