"""``ovsvhost show``: bridges, ports, bonds, the guests on them, and what is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ovsvhost.rundir import database_remote, run_directory

if TYPE_CHECKING:
    from collections.abc import Iterator

_COLUMNS = {
    "Open_vSwitch": ("bridges", "external_ids", "ovs_version"),
    "Bridge": ("name", "datapath_type", "ports"),
    "Port": ("name", "interfaces", "bond_mode", "bond_active_slave"),
    "Interface": (
        "name", "type", "options", "ofport", "error", "link_state", "link_resets", "mtu", "mac_in_use", "status",
        "statistics",
    ),
}  # fmt: skip

_MOVE_KEYS = frozenset({
    "migration", "postcopy", "postcopy-pages-missing", "postcopy-faults-served", "postcopy-stall-ms",
    "stops-move-to-ovs-3.1",
})  # fmt: skip
"""Keys of ``status`` that are told in sentences; ``--json`` has them as they are."""


@click.command()
@click.option("--rundir", type=click.Path(file_okay=False, path_type=Path), help="The switch's run directory.")
@click.option("--db", "remote", metavar="REMOTE", help="Its database [default: unix:RUNDIR/db.sock].")
@click.option("--timeout", "timeout_s", type=float, default=5.0, show_default=True, help="Seconds to wait for it.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of a tree.")
def command(rundir: Path | None, remote: str | None, timeout_s: float, as_json: bool) -> None:
    """Show bridges, ports, their guests and their errors."""
    from ovsvhost.store import idl  # noqa: PLC0415 - not needed for --help

    idl.prepare()
    tables = idl.snapshot(remote or database_remote(run_directory(rundir)), _COLUMNS, timeout_s)
    tree = switch(tables)
    click.echo(json.dumps(tree, indent=2) if as_json else "\n".join(lines(tree)))


def switch(tables: Any) -> dict[str, Any]:
    """The database's rows as plain values, sorted by name."""
    root = next(iter(tables["Open_vSwitch"].rows.values()), None)
    bridges = sorted(root.bridges, key=lambda row: row.name) if root else []
    shown = [
        {
            "name": bridge.name,
            "datapath_type": bridge.datapath_type,
            "ports": [
                _interface(interface, port.name if len(port.interfaces) > 1 else None)
                for port in sorted(bridge.ports, key=lambda row: row.name)
                for interface in sorted(port.interfaces, key=lambda row: row.name)
            ],
            "bonds": [
                _bond(port) for port in sorted(bridge.ports, key=lambda row: row.name) if len(port.interfaces) > 1
            ],
        }
        for bridge in bridges
    ]
    waiting = {
        key
        for bridge in shown
        for port in bridge["ports"]
        for key in port["status"].get("pending-restart", "").split(",")
        if key
    }
    return {
        "system_id": root.external_ids.get("system-id") if root else None,
        "version": next(iter(root.ovs_version), None) if root else None,
        "pending_restart": sorted(waiting),
        "bridges": shown,
    }


def _bond(row: Any) -> dict[str, Any]:
    mac = next(iter(row.bond_active_slave), None)
    links = sorted(row.interfaces, key=lambda link: link.name)
    return {
        "name": row.name,
        "mode": next(iter(row.bond_mode), "active-backup"),
        "active": next((link.name for link in links if mac and next(iter(link.mac_in_use), None) == mac), None),
    }


def _interface(row: Any, bond: str | None) -> dict[str, Any]:
    return {
        "name": row.name,
        "bond": bond,
        "type": row.type or "system",
        "ofport": next(iter(row.ofport), None),
        "link_state": next(iter(row.link_state), None),
        "link_resets": next(iter(row.link_resets), None),
        "mtu": next(iter(row.mtu), None),
        "mac_in_use": next(iter(row.mac_in_use), None),
        "options": dict(sorted(row.options.items())),
        "status": dict(sorted(row.status.items())),
        "statistics": dict(sorted(row.statistics.items())),
        "error": next(iter(row.error), None),
    }


def lines(tree: dict[str, Any]) -> Iterator[str]:
    """The tree for people."""
    yield f"switch {tree['system_id'] or '(no daemon has served this database yet)'}  {tree['version'] or ''}".rstrip()
    if tree["pending_restart"]:
        yield f"  waits for a restart: {', '.join(tree['pending_restart'])}"
    for bridge in tree["bridges"]:
        yield f"  bridge {bridge['name']}"
        bonds = {bond["name"]: bond for bond in bridge["bonds"]}
        for port in bridge["ports"]:
            if bond := bonds.pop(port["bond"], None):
                yield f"    bond {bond['name']}  {bond['mode']}  active {bond['active'] or '-'}"
            yield from (f"{'    ' if port['bond'] is None else '      '}{line}" for line in _port_lines(port))


def _port_lines(port: dict[str, Any]) -> Iterator[str]:
    number = "-" if port["ofport"] in {None, -1} else port["ofport"]
    what = "port" if port["bond"] is None else "interface"
    yield f"{what} {port['name']}  {number}  {port['type']}  link {port['link_state'] or '-'}"
    if port["error"]:
        yield f"  error: {port['error']}"
    sizes = sorted(
        {value for key, value in port["status"].items() if key.startswith("vring_") and key.endswith("_size")}
    )
    status = {key: value for key, value in port["status"].items() if not key.startswith("vring_")}
    moves = list(_move_lines(status))
    facts = {key: value for key, value in status.items() if key not in _MOVE_KEYS}
    if sizes:
        facts["vring_size"] = "/".join(sizes)
    if facts:
        yield "  " + "  ".join(f"{key}={value}" for key, value in facts.items())
    yield from (f"  {line}" for line in moves)
    counters = port["statistics"]
    if counters:
        names = ("rx_packets", "rx_bytes", "rx_dropped", "tx_packets", "tx_bytes", "tx_dropped")
        yield "  " + "  ".join(f"{name}={counters[name]}" for name in names if name in counters)


def _move_lines(status: dict[str, str]) -> Iterator[str]:
    """What becomes of a guest that moves, and what keeps it from it."""
    if status.get("migration") == "logging":
        yield "its guest is on its way to another host: what is written to it is marked"
    if "postcopy" in status:
        missing = status.get("postcopy-pages-missing")
        state = f"{missing} pages are missing yet" if missing is not None else "all pages are here"
        faults, stalled_ms = (status.get(f"postcopy-{key}", "0") for key in ("faults-served", "stall-ms"))
        yield f"its guest came by post-copy: {state}; {faults} were waited for, {stalled_ms} ms in all"
    if obstacles := status.get("stops-move-to-ovs-3.1"):
        yield f"to Open vSwitch 3.1 it cannot move with: {obstacles}"
