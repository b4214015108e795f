"""What ``ovs-appctl`` can ask for, in Open vSwitch's own layout: scripts cut these texts by column."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ovsvhost.model import OFPORT_LOCAL

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ovsvhost._core import FdbEntry
    from ovsvhost.model import Bridge


def fdb_show(entries: Sequence[FdbEntry]) -> str:
    """``fdb/show BRIDGE``: one line an address, the freshest last, as OVS sorts them."""
    lines = [" port  VLAN  MAC                Age"]
    for entry in sorted(entries, key=lambda entry: (-entry.age_s, entry.vlan, entry.mac)):
        port = "LOCAL" if entry.ofport == OFPORT_LOCAL else str(entry.ofport)
        lines.append(f"{port:>5}  {entry.vlan:>4}  {entry.mac}  {entry.age_s:>3}")
    return "\n".join(lines) + "\n"


def fdb_stats_show(bridge: Bridge, entries: int, stats: Mapping[str, int]) -> str:
    """``fdb/stats-show BRIDGE``; ``entries`` addresses are in its table now."""
    return (
        f'Statistics for bridge "{bridge.name}":\n'
        f"  Current/maximum MAC entries in the table: {entries}/{bridge.mac_table_size}\n"
        "  Current static MAC entries in the table : 0\n"
        f"  Total number of learned MAC entries     : {stats['learned']}\n"
        f"  Total number of expired MAC entries     : {stats['expired']}\n"
        f"  Total number of evicted MAC entries     : {stats['evicted']}\n"
        f"  Total number of port moved MAC entries  : {stats['moved']}\n"
    )


def vlog_list(levels: Mapping[str, str]) -> str:
    """``vlog/list``: one level for everything here, shown in OVS's columns."""
    lines = ["                 console    syslog    file", "                 -------    ------    ------"]
    lines += [f"{module:<16}  {level:>6}       OFF  {level:>8}" for module, level in sorted(levels.items())]
    return "\n".join(lines) + "\n"
