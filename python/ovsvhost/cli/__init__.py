"""The command line. Every command is loaded when it is called, so that ``ovsvhost --version`` costs nothing.

Exit codes: 0 done, 1 an error (one line on stderr that names the object and the cure), 2 wrong usage.
"""

from __future__ import annotations

import importlib
import sys

import click

from ovsvhost.errors import OvsvhostError

_COMMANDS = {
    "daemon": "run the switch in the foreground",
    "show": "show bridges, ports, their guests and their errors",
    "qemu": "print QEMU's arguments for a port",
    "libvirt": "print libvirt's XML for a port",
    "doctor": "check this machine for what the switch needs",
    "vsctl": "change the database, with ovs-vsctl's words",
    "appctl": "ask the running switch, with ovs-appctl's words",
}


class _Lazy(click.Group):
    """Imports ``ovsvhost.cli.<command>`` when the command is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - click's signature
        if cmd_name not in _COMMANDS:
            return None
        command = importlib.import_module(f"ovsvhost.cli.{cmd_name}").command
        return command if isinstance(command, click.Command) else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 - click's signature
        with formatter.section("Commands"):
            formatter.write_dl(list(_COMMANDS.items()))


def _print_version(ctx: click.Context, _parameter: click.Parameter, asked: bool) -> None:
    if asked:
        from ovsvhost import __version__  # noqa: PLC0415 - loads the Rust core

        click.echo(f"ovsvhost {__version__}")
        ctx.exit()


@click.group(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version", is_flag=True, expose_value=False, is_eager=True, callback=_print_version, help="Show the version."
)
def cli() -> None:
    """A virtual switch for virtual machines: Open vSwitch's vhost-user ports without DPDK."""


def main(arguments: list[str] | None = None) -> None:
    """Entry point of ``ovsvhost``; ends the process with the exit code."""
    try:
        cli.main(args=arguments, prog_name="ovsvhost", standalone_mode=True)
    except OvsvhostError as error:
        click.echo(f"ovsvhost: {error}", err=True)
        sys.exit(1)
    except BrokenPipeError:
        # the reader of our output has gone, as in `ovsvhost show | head -1`
        sys.stderr.close()
        sys.exit(1)
