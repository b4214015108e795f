"""``ovsvhost libvirt``: the XML that plugs a libvirt guest into a port, for ``virsh edit`` or ``attach-device``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ovsvhost.cli.qemu import COLUMNS, is_pinned, nic_of, row_of
from ovsvhost.rundir import database_remote, run_directory

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ovsvhost.qemu import Nic


@click.command()
@click.argument("port")
@click.option("--rundir", type=click.Path(file_okay=False, path_type=Path), help="The switch's run directory.")
@click.option("--db", "remote", metavar="REMOTE", help="Its database [default: unix:RUNDIR/db.sock].")
@click.option("--timeout", "timeout_s", type=float, default=5.0, show_default=True, help="Seconds to wait for it.")
@click.option("--mac", help="The guest's address [default: made from the port's name].")
@click.option("--queues", type=int, default=1, show_default=True, help="Queue pairs.")
@click.option("--hugepages", is_flag=True, help="Memory of hugepages; without it the memory is a memfd.")
def command(
    port: str,
    *,
    rundir: Path | None,
    remote: str | None,
    timeout_s: float,
    mac: str | None,
    queues: int,
    hugepages: bool,
) -> None:
    """Print libvirt's XML for PORT."""
    from ovsvhost import libvirt  # noqa: PLC0415 - not needed for --help
    from ovsvhost.store import idl  # noqa: PLC0415 - not needed for --help

    idl.prepare()
    folder = run_directory(rundir)
    tables = idl.snapshot(remote or database_remote(folder), COLUMNS, timeout_s)
    nic = nic_of(tables, port, folder, mac=mac, queues=queues)
    row = row_of(tables, port)
    backing = libvirt.memory_backing(hugepages=hugepages, prealloc=is_pinned(row))
    notes = [f"in <domain>, once: memory that the switch can map\n{backing}"]
    if nic.type == "dpdkvhostuser":
        notes.append(_access(nic, row.options))
    click.echo("".join(libvirt.comment(note) for note in notes) + libvirt.interface(nic), nl=False)


def _access(nic: Nic, options: Mapping[str, str]) -> str:
    """Who may open the socket that the switch makes: libvirt's QEMU mostly runs as a user of its own."""
    owner = options.get("socket-owner", "the switch's user")
    group = options.get("socket-group", "the switch's group")
    mode = options.get("socket-mode", "0600")
    return (
        f"{nic.socket} belongs to {owner} and {group}, with mode {mode}:\n"
        "options:socket-owner, socket-group and socket-mode of the port let QEMU's user in, on Debian libvirt-qemu"
    )
