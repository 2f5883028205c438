"""The ``stockade`` command. A sub-command's module is imported when it is used: ``--help`` stays quick."""

import os
from importlib import import_module

import click

_COMMANDS = {
    "up": "stockade.up_command",
    "run": "stockade.run",
    "job": "stockade.job_command",
    "doctor": "stockade.doctor",
    "image": "stockade.image_command",
    "tenant": "stockade.tenants",
    "key": "stockade.keys",
    "policy": "stockade.policy_command",
    "usage": "stockade.usage_command",
    "audit": "stockade.audit_command",
}


class _Lazy(click.Group):
    """A group whose commands are attributes, of the same name, of the modules above."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        command = getattr(import_module(_COMMANDS[cmd_name]), cmd_name)
        assert isinstance(command, click.Command)
        return command


@click.command(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="stockade")
def main() -> None:
    """Run untrusted programs under a policy: fresh namespaces, strict limits, a verdict with evidence."""
    _open_standard_streams()


def _open_standard_streams() -> None:
    """Put /dev/null where a standard stream was closed (``<&-``).

    Else the next descriptor that we open takes its number: `stockade run` would hand the program the socket
    of the launcher as its standard output.
    """
    for stream in range(3):
        try:
            os.fstat(stream)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free, which is this one
