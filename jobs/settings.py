"""Settings: what an installation decides, read once from the environment (`STOCKADE_*`).

The address of Redis may hold a password, so it is in no repr; `Settings.redis_shown` is the form for logs.
"""

import os
from collections.abc import Mapping
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Annotated, Any, Self
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from annotated_types import Ge, Le
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from policies.policy import Name

PREFIX = "STOCKADE_"
OFF = "off"
"""The address of a listener that there shall not be."""

Network = IPv4Network | IPv6Network

_SCHEMES = ("redis", "rediss", "unix", "redis+socket")


class SettingsError(Exception):
    """The environment holds a setting that cannot be used; the message names each and what is allowed."""


def _address(url: str) -> str:
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:  # whose text may quote a part of a password
        raise ValueError("must be a URL; percent-encode special characters in a password") from None
    if parts.scheme not in _SCHEMES:
        raise ValueError("must be redis://HOST:PORT/DB, rediss://… or unix:///PATH?db=DB")
    if parts.scheme in ("unix", "redis+socket") and not parts.path.startswith("/"):
        raise ValueError("must name an absolute path: unix:///PATH")
    return url


def _listen(address: str) -> str:
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ValueError("must be HOST:PORT")
    return address


def _split(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def _listen_or_off(address: str) -> str:
    return address if address == OFF else _listen(address)


def _listed(value: Any) -> Any:
    """Read text as a list of names, each once, in their order."""
    if not isinstance(value, str):
        return value
    return tuple(dict.fromkeys(name.strip() for name in value.split(",") if name.strip()))


def _networks(text: str) -> str:
    try:
        return ",".join(str(ip_network(each.strip())) for each in text.split(",") if each.strip())
    except ValueError:
        raise ValueError("must be networks with commas between them: 10.1.2.0/24,fd00:1::/64") from None


def _cores() -> int:
    return len(os.sched_getaffinity(0))


class Settings(BaseModel):
    """One installation's settings; each is read from `STOCKADE_` and its name in upper case."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    redis: Annotated[str, AfterValidator(_address)] = Field(
        default="redis://127.0.0.1:6379/0",
        repr=False,
        description="Redis or Valkey: redis://, rediss:// or unix://.",
    )
    state: Path = Field(
        default=Path("/var/lib/stockade"), description="Directory of everything that is kept."
    )
    launcher: Path = Field(
        default=Path("/run/stockade/launcher.sock"), description="Socket on which the launcher listens."
    )
    listen: Annotated[str, AfterValidator(_listen)] = Field(
        default="127.0.0.1:8000", description="Address on which the API listens, HOST:PORT."
    )
    metrics: Annotated[str, AfterValidator(_listen_or_off)] = Field(
        default="127.0.0.1:9464",
        description="Address on which the API serves /metrics, HOST:PORT, for the operator alone; or off.",
    )
    policies: Path | None = Field(default=None, description="Directory of further policies (YAML).")
    slots: Annotated[int, Ge(1), Le(240)] = Field(
        default_factory=lambda: 2 * _cores(), description="Sandboxes that one worker runs at a time."
    )
    pools: Annotated[tuple[Name, ...], BeforeValidator(_listed), Field(min_length=1)] = Field(
        default=("default",), description="The pools whose jobs a worker takes, with commas between."
    )
    lease: Annotated[float, Ge(1), Le(600)] = Field(
        default=12.0,
        description="Seconds after which a worker that gives no sign of life loses its jobs to others.",
    )
    drain: Annotated[float, Ge(0), Le(86_400)] = Field(
        default=8.0,
        description="Seconds that a stopping worker lets its jobs run on; then they go back to the queue.",
    )
    image_host: bool = Field(
        default=True, description="Whether jobs may run in the built-in image `host`: on or off."
    )
    webhook_allow: Annotated[str, AfterValidator(_networks)] = Field(
        default="",
        description="Networks that webhooks may reach besides the public internet, with commas between them.",
    )

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> Self:
        """Return the settings that `environ` (default: the process's) holds; an empty one counts as not set.

        Raises:
            SettingsError: a value cannot be used.
        """
        source = os.environ if environ is None else environ
        given = {
            name: source[PREFIX + name.upper()]
            for name in cls.model_fields
            if source.get(PREFIX + name.upper())
        }
        try:
            return cls.model_validate(given)
        except ValidationError as error:
            wrong = (
                f"{PREFIX}{str(found['loc'][0]).upper()}: {found['msg'].removeprefix('Value error, ')}"
                for found in error.errors()
            )
            raise SettingsError("; ".join(wrong)) from None

    def environment(self) -> dict[str, str]:
        """Return the variables from which `from_env` makes these settings again, for a child process."""
        values = {name: value for name, value in self if value is not None}
        values["image_host"] = "on" if self.image_host else "off"
        values["pools"] = ",".join(self.pools)
        return {PREFIX + name.upper(): str(value) for name, value in values.items()}

    @property
    def host(self) -> str:
        """The host part of `listen`, without brackets."""
        return _split(self.listen)[0]

    @property
    def port(self) -> int:
        """The port of `listen`."""
        return _split(self.listen)[1]

    @property
    def metrics_address(self) -> tuple[str, int] | None:
        """Host, without brackets, and port of `metrics`; None when it is off."""
        return None if self.metrics == OFF else _split(self.metrics)

    @property
    def webhook_networks(self) -> tuple[Network, ...]:
        """The networks of `webhook_allow`."""
        return tuple(ip_network(each) for each in self.webhook_allow.split(",") if each)

    @property
    def redis_py(self) -> str:
        """The address as redis-py reads it: a socket is `unix://PATH?db=N`."""
        return self._socket("unix", "virtual_host", "db")

    @property
    def redis_celery(self) -> str:
        """The address as Celery reads it: a socket is `redis+socket://PATH?virtual_host=N`."""
        return self._socket("redis+socket", "db", "virtual_host")

    @property
    def redis_shown(self) -> str:
        """The address without user, password and query: fit for logs."""
        parts = urlsplit(self.redis)
        return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))

    def _socket(self, scheme: str, old: str, new: str) -> str:
        """Return the address with a socket's scheme, and its database number's key, put into one dialect."""
        parts = urlsplit(self.redis)
        if parts.scheme not in ("unix", "redis+socket"):
            return self.redis
        query = urlencode([(new if key == old else key, value) for key, value in parse_qsl(parts.query)])
        return f"{scheme}://{parts.netloc}{parts.path}" + (f"?{query}" if query else "")
