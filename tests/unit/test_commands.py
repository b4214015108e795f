"""The layouts that scripts cut by column: Open vSwitch's own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from ovsvhost.daemon import commands
from ovsvhost.model import Bridge

if TYPE_CHECKING:
    from ovsvhost._core import FdbEntry


@dataclass(frozen=True)
class Entry:
    """The shape of a learned address."""

    ofport: int
    vlan: int
    mac: str
    age_s: int


def test_fdb_show_is_ovs_table_with_the_oldest_first() -> None:
    entries = [Entry(1, 0, "02:00:00:00:00:01", 3), Entry(65534, 7, "02:00:00:00:00:02", 120)]
    assert commands.fdb_show(cast("list[FdbEntry]", entries)) == (
        " port  VLAN  MAC                Age\n"
        "LOCAL     7  02:00:00:00:00:02  120\n"
        "    1     0  02:00:00:00:00:01    3\n"
    )


def test_fdb_stats_show_is_ovs_list() -> None:
    stats = {"learned": 5, "expired": 1, "evicted": 2, "moved": 3}
    assert commands.fdb_stats_show(Bridge(key="b", name="br0", mac_table_size=100), 2, stats) == (
        'Statistics for bridge "br0":\n'
        "  Current/maximum MAC entries in the table: 2/100\n"
        "  Current static MAC entries in the table : 0\n"
        "  Total number of learned MAC entries     : 5\n"
        "  Total number of expired MAC entries     : 1\n"
        "  Total number of evicted MAC entries     : 2\n"
        "  Total number of port moved MAC entries  : 3\n"
    )
