"""``ovsvhost appctl``: every argument goes to `ovsvhost.appctl.client` as it is."""

from __future__ import annotations

import sys

import click

from ovsvhost.rundir import run_directory


@click.command(
    add_help_option=False, context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False}
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def command(arguments: tuple[str, ...]) -> None:
    """Speak ovs-appctl's grammar."""
    from ovsvhost.appctl.client import main  # noqa: PLC0415 - loaded when called

    sys.exit(main(list(arguments), rundir=run_directory()))
