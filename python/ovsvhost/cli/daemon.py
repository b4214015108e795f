"""``ovsvhost daemon``: the switch in the foreground."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click

from ovsvhost.rundir import run_directory, state_directory

_DIRECTORY = click.Path(file_okay=False, path_type=Path)
_FILE = click.Path(dir_okay=False, path_type=Path)


@click.command()
@click.option(
    "--rundir",
    type=_DIRECTORY,
    help="Sockets and pid file [default: $OVS_RUNDIR, else as root /run/openvswitch, else $XDG_RUNTIME_DIR/ovsvhost].",
)
@click.option(
    "--state-dir",
    type=_DIRECTORY,
    help="The embedded database's file [default: as root /var/lib/ovsvhost, else $XDG_STATE_HOME/ovsvhost].",
)
@click.option("--db", "remote", metavar="REMOTE[,REMOTE…]", help="Use this OVSDB server instead of the embedded one.")
@click.option(
    "--pidfile", type=_FILE, is_flag=False, flag_value=Path(), metavar="[FILE]", help="Write the pid to FILE too."
)
@click.option(
    "--log-level", type=click.Choice(["debug", "info", "warning", "error"]), default="info", show_default=True
)
@click.option("--log-format", type=click.Choice(["console", "json"]), default="console", show_default=True)
@click.option("--log-file", type=_FILE, help="Append the log to this file instead of stderr.")
def command(  # noqa: PLR0917 - click gives them by keyword
    rundir: Path | None,
    state_dir: Path | None,
    remote: str | None,
    pidfile: Path | None,
    log_level: str,
    log_format: Literal["console", "json"],
    log_file: Path | None,
) -> None:
    """Run the switch until SIGTERM or SIGINT.

    It serves its own database at RUNDIR/db.sock, for ovs-vsctl, or the one given by --db.
    """
    from ovsvhost import log  # noqa: PLC0415 - not needed for --help
    from ovsvhost.daemon import loop  # noqa: PLC0415 - loads the Rust core

    log.configure(log_level, log_format, log_file)
    loop.run(
        loop.Settings(
            rundir=run_directory(rundir),
            state_dir=state_directory(state_dir),
            remote=remote,
            # an empty path is --pidfile without FILE: the one in the run directory is always written
            pidfile=pidfile.absolute() if pidfile and pidfile.name else None,
        )
    )
