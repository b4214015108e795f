"""What ``ovs-appctl`` can ask for, in Open vSwitch's own layout: scripts cut these texts by column."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from ovsvhost.model import OFPORT_LOCAL

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ovsvhost._core import FdbEntry, PmdState
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


def pmd_rxq_show(pmds: Sequence[PmdState]) -> str:
    """``dpif-netdev/pmd-rxq-show``: which transmitq of which guest is polled by which core."""
    lines = []
    for pmd in pmds:
        lines += [f"pmd thread numa_id {numa_of(pmd.cpu)} core_id {pmd.cpu}:", "  isolated : false"]
        lines += [
            f"  port: {port:<16}  queue-id: {queue:>2} (enabled)   pmd usage: NOT AVAIL"
            for port, queue in sorted(pmd.rxqs)
        ]
    return "\n".join(lines) + "\n"


def pmd_perf_show(pmds: Sequence[PmdState], since_s: float) -> str:
    """``dpif-netdev/pmd-perf-show``: packets, cycles and cycles a packet, since the last clear ``since_s`` ago."""
    lines = [f"Time: {time.strftime('%H:%M:%S')}", f"Measurement duration: {since_s:.3f} s", ""]
    for pmd in pmds:
        cycles = pmd.busy_cycles + pmd.idle_cycles
        busy = 100 * pmd.busy_cycles / cycles if cycles else 0.0
        each = pmd.busy_cycles / pmd.packets if pmd.packets else 0.0
        rate = pmd.packets / since_s / 1000 if since_s else 0.0
        lines += [
            f"pmd thread numa_id {numa_of(pmd.cpu)} core_id {pmd.cpu}:",
            "",
            f"  Used TSC cycles:  {cycles:>16}",
            f"  - idle cycles:    {pmd.idle_cycles:>16}  ({100 - busy if cycles else 0.0:5.1f} %)",
            f"  - busy cycles:    {pmd.busy_cycles:>16}  ({busy:5.1f} %)",
            f"  Sleeps:           {pmd.sleeps:>16}",
            f"  Rx packets:       {pmd.packets:>16}  ({rate:.0f} Kpps, {each:.0f} cycles/pkt)",
            "",
        ]
    return "\n".join(lines)


def vlog_list(levels: Mapping[str, str]) -> str:
    """``vlog/list``: one level for everything here, shown in OVS's columns."""
    lines = ["                 console    syslog    file", "                 -------    ------    ------"]
    lines += [f"{module:<16}  {level:>6}       OFF  {level:>8}" for module, level in sorted(levels.items())]
    return "\n".join(lines) + "\n"


def numa_of(cpu: int) -> int:
    """The NUMA node of a core; 0 where the kernel knows no nodes."""
    for node in Path(f"/sys/devices/system/cpu/cpu{cpu}").glob("node[0-9]*"):
        return int(node.name.removeprefix("node"))
    return 0
