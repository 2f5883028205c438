"""The ``stockade`` command and its sub-commands."""

import click


@click.group()
@click.version_option(package_name="stockade")
def main() -> None:
    """Run untrusted programs under a policy: fresh namespaces, strict limits, a verdict with evidence."""
