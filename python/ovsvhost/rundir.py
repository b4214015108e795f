"""Where the switch keeps its sockets and its database.

The order is the contract of every program here and of Open vSwitch's own tools: what the caller says, then
``OVS_RUNDIR``, then the place that fits the user.
"""

from __future__ import annotations

import os
from pathlib import Path

from ovsvhost.errors import ConfigError

DATABASE_SOCKET = "db.sock"
"""The embedded database listens here, inside the run directory."""
PIDFILE = "ovs-vswitchd.pid"
"""Where stock ``ovs-appctl`` looks for the daemon's pid, inside the run directory."""


def run_directory(asked: str | os.PathLike[str] | None = None) -> Path:
    """The run directory.

    ``asked``, else ``$OVS_RUNDIR``, else ``/run/openvswitch`` as root, else ``$XDG_RUNTIME_DIR/ovsvhost``.

    Raises:
        ConfigError: no directory can be named for this user.
    """
    chosen = asked or os.environ.get("OVS_RUNDIR")
    if chosen:
        return Path(chosen).absolute()
    if os.geteuid() == 0:
        return Path("/run/openvswitch")
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if runtime:
        return Path(runtime).absolute() / "ovsvhost"
    raise ConfigError("no run directory: give --rundir, or set OVS_RUNDIR or XDG_RUNTIME_DIR")


def state_directory(asked: str | os.PathLike[str] | None = None) -> Path:
    """Where the embedded database's file lies.

    ``asked``, else ``/var/lib/ovsvhost`` as root, else ``$XDG_STATE_HOME/ovsvhost``.
    """
    if asked:
        return Path(asked).absolute()
    if os.geteuid() == 0:
        return Path("/var/lib/ovsvhost")
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state").absolute() / "ovsvhost"


def database_remote(rundir: Path) -> str:
    """The OVSDB remote of the database in ``rundir``."""
    return f"unix:{rundir / DATABASE_SOCKET}"


def make_private(directory: Path) -> Path:
    """Creates ``directory`` (0700) with its parents; one that is there keeps its mode.

    Raises:
        ConfigError: it cannot be created or is no directory.
    """
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        directory.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"directory {str(directory)!r} cannot be created ({error.strerror}): choose another"
        ) from error
    return directory
