"""The command ``stockade up``: checks, start, what to tell the user, stop."""

import json
import re
import shlex
from pathlib import Path

import click
from pydantic import ValidationError

from jobs.settings import OFF, Settings
from policies.policy import NAME_PATTERN
from stockade import host, keys
from stockade.children import ChildDied
from stockade.service import ADDRESS, DEVELOPMENT_KEY
from stockade.tenants import DEFAULT_TENANT
from stockade.up import Signals, Stack, Stopped, UpOptions, claim_state


def _pools(ctx: click.Context, param: click.Parameter, value: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(name.strip() for name in value.split(",")))
    if wrong := [name for name in names if not re.fullmatch(NAME_PATTERN, name)]:
        raise click.BadParameter(f"{wrong[0]!r} is no name of a pool: use a-z, 0-9, '.', '_', '-'")
    return names


def _networks(ctx: click.Context, param: click.Parameter, value: str) -> str:
    try:
        return Settings(webhook_allow=value).webhook_allow
    except ValidationError as error:
        raise click.BadParameter(error.errors()[0]["msg"].removeprefix("Value error, ")) from None


@click.command()
@host.state_option("Directory of everything that is kept: jobs, keys, logs.")
@click.option("--listen", default="127.0.0.1:8000", show_default=True, help="HOST:PORT of the API.")
@click.option("--slots", type=click.IntRange(1), help="Sandboxes at one time. [default: twice the cores]")
@click.option(
    "--pools",
    callback=_pools,
    default="default",
    show_default=True,
    help="Pools whose jobs the worker takes, with commas between.",
)
@click.option("--image-host/--no-image-host", default=True, show_default=True, help="Offer the image `host`.")
@click.option(
    "--images",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Store of images, such as that of another state directory. [default: images, below the state]",
)
@click.option(
    "--policies",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Directory of policies (YAML) beside the built-in ones.",
)
@click.option(
    "--metrics",
    default="127.0.0.1:9464",
    show_default=True,
    help="HOST:PORT of /metrics, for your monitoring alone; `off` for none.",
)
@click.option(
    "--grace", type=click.FloatRange(0), default=10.0, show_default=True, help="Seconds to stop in, each."
)
@click.option(
    "--webhook-allow",
    callback=_networks,
    envvar="STOCKADE_WEBHOOK_ALLOW",
    default="",
    help="Networks that webhooks may reach besides the public internet, with commas between: 127.0.0.0/8.",
)
def up(
    state: Path,
    listen: str,
    slots: int | None,
    pools: tuple[str, ...],
    image_host: bool,
    images: Path | None,
    policies: Path | None,
    metrics: str,
    grace: float,
    webhook_allow: str,
) -> None:
    """Run the whole service on this machine until Ctrl-C: Valkey, launcher, worker and API."""
    host.require_root("up")
    host.split_listen(listen)
    if metrics != OFF:
        host.split_listen(metrics)
    host.require_installed()
    if policies:
        policies = policies.absolute()
        fix = "Put them elsewhere, for example in /etc/stockade/policies"
        host.require_reachable(policies, "the policies", fix)
    images = images and images.absolute()
    options = UpOptions(
        claim_state(state),
        listen,
        slots,
        pools,
        image_host,
        policies,
        metrics,
        grace=grace,
        images=images,
        webhook_allow=webhook_allow,
    )
    with host.locked(options.state):
        host.require_free(listen)
        _serve(Stack(options))


def _serve(stack: Stack) -> None:
    with Signals() as signals:
        try:
            stack.start(signals)
            _greet(stack)
            stack.watch(signals)
        except Stopped as stopped:
            click.echo(f"{stopped}: stopping")
        except ChildDied as death:
            raise click.ClickException(str(death)) from None
        finally:
            stack.stop()
    click.echo("stopped; nothing is left running")


def _greet(stack: Stack) -> None:
    key = keys.development_key(stack.redis, stack.state / DEVELOPMENT_KEY)
    (stack.state / ADDRESS).write_text(stack.url + "\n")
    click.echo(f"Stockade is ready on {stack.url} (reference: {stack.url}/docs)")
    click.echo(f"API key of tenant {DEFAULT_TENANT!r}, for development: {key}")
    click.echo("Try:")
    click.echo(f"  {curl_line(stack.url, key)}")
    click.echo(f"Ctrl-C stops it. State and logs: {stack.state}")


def curl_line(url: str, key: str) -> str:
    """A command line that runs a first job and prints the finished job."""
    body = json.dumps({"command": ["python3", "-c", "print(6 * 7)"]})
    return shlex.join(
        [
            *("curl", "-sS", f"{url}/v1/jobs?wait=10"),
            *("-H", f"Authorization: Bearer {key}", "-H", "Content-Type: application/json"),
            *("-d", body),
        ]
    )
