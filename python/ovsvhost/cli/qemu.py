"""``ovsvhost qemu``: the arguments that plug a QEMU guest into a port, ready to paste."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ovsvhost.errors import ConfigError
from ovsvhost.rundir import database_remote, run_directory

if TYPE_CHECKING:
    from ovsvhost.qemu import Nic

# What nic_of reads of the database.
COLUMNS = {"Open_vSwitch": ("other_config",), "Interface": ("name", "type", "options")}
# QEMU's own prefix for addresses it makes up.
_MAC_PREFIX = "52:54:00"


@click.command()
@click.argument("port")
@click.option("--rundir", type=click.Path(file_okay=False, path_type=Path), help="The switch's run directory.")
@click.option("--db", "remote", metavar="REMOTE", help="Its database [default: unix:RUNDIR/db.sock].")
@click.option("--timeout", "timeout_s", type=float, default=5.0, show_default=True, help="Seconds to wait for it.")
@click.option("--mac", help="The guest's address [default: made from the port's name].")
@click.option("--queues", type=int, default=1, show_default=True, help="Queue pairs.")
@click.option("--memory", "memory_mib", type=int, default=1024, show_default=True, help="The guest's memory in MiB.")
@click.option("--hugepages", metavar="DIR", help="A hugetlbfs mount point; without it the memory is a memfd.")
def command(
    port: str,
    *,
    rundir: Path | None,
    remote: str | None,
    timeout_s: float,
    mac: str | None,
    queues: int,
    memory_mib: int,
    hugepages: str | None,
) -> None:
    """Print QEMU's arguments for PORT."""
    from ovsvhost import qemu  # noqa: PLC0415 - not needed for --help
    from ovsvhost.store import idl  # noqa: PLC0415 - not needed for --help

    idl.prepare()
    folder = run_directory(rundir)
    tables = idl.snapshot(remote or database_remote(folder), COLUMNS, timeout_s)
    nic = nic_of(tables, port, folder, mac=mac, queues=queues)
    memory = qemu.memory_arguments(memory_mib, hugepages=hugepages, prealloc=is_pinned(row_of(tables, port)))
    click.echo(qemu.command_line(memory + qemu.nic_arguments(nic, name=port)))


def nic_of(tables: Any, port: str, rundir: Path, *, mac: str | None, queues: int) -> Nic:
    """The NIC that fits a port's row.

    Raises:
        ConfigError: no such port, or one that no guest can be plugged into.
    """
    from ovsvhost import options  # noqa: PLC0415 - not needed for --help
    from ovsvhost.qemu import Nic  # noqa: PLC0415 - not needed for --help

    row = row_of(tables, port)
    address = mac or address_of(port)
    if row.type == "dpdkvhostuserclient":
        path = row.options.get("vhost-server-path")
        if not path:
            raise ConfigError(f"{port} has no path yet: set options:vhost-server-path to where QEMU shall listen")
        return Nic(socket=path, type="dpdkvhostuserclient", mac=address, queues=queues)
    if row.type == "dpdkvhostuser":
        root = next(iter(tables["Open_vSwitch"].rows.values()), None)
        folder = options.socket_directory(rundir, root.other_config.get("vhost-sock-dir") if root else None)
        return Nic(socket=str(folder / port), type="dpdkvhostuser", mac=address, queues=queues)
    raise ConfigError(f"{port} is of type '{row.type}': only dpdkvhostuserclient and dpdkvhostuser ports take a guest")


def is_pinned(row: Any) -> bool:
    """Whether a guest's memory has to be all there from the beginning, for devices to send from it."""
    from ovsvhost import options  # noqa: PLC0415 - not needed for --help

    return row.type == options.CLIENT and options.parse(row.name, row.type, row.options, None).dq_zero_copy


def row_of(tables: Any, port: str) -> Any:
    """A port's Interface row; ConfigError when there is none."""
    for row in tables["Interface"].rows.values():
        if row.name == port:
            return row
    raise ConfigError(f"no port named '{port}': 'ovsvhost show' lists those there are")


def address_of(port: str) -> str:
    """An address for the guest on a port: always the same for one name, different for different names."""
    digest = hashlib.sha256(port.encode()).hexdigest()
    return ":".join([_MAC_PREFIX, digest[0:2], digest[2:4], digest[4:6]])
