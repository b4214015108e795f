"""The layouts that scripts cut by column: Open vSwitch's own."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

import pytest

from ovsvhost.daemon import commands
from ovsvhost.model import Bridge

if TYPE_CHECKING:
    from ovsvhost._core import FdbEntry, PmdState


@dataclass(frozen=True)
class Entry:
    """The shape of a learned address."""

    ofport: int
    vlan: int
    mac: str
    age_s: int


@dataclass(frozen=True)
class Pmd:
    """The shape of a poll thread."""

    cpu: int = 1
    packets: int = 0
    busy_cycles: int = 0
    idle_cycles: int = 0
    sleeps: int = 0
    rxqs: list[tuple[str, int]] = field(default_factory=list)


def pmds(*states: Pmd) -> list[PmdState]:
    return cast("list[PmdState]", list(states))


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


@pytest.mark.rows("B5")
def test_pmd_rxq_show_names_core_port_and_queue() -> None:
    shown = commands.pmd_rxq_show(pmds(Pmd(rxqs=[("v1", 0), ("v0", 1), ("v0", 0)])))
    assert re.fullmatch(
        r"pmd thread numa_id \d+ core_id 1:\n"
        r"  isolated : false\n"
        r"  port: v0                queue-id:  0 \(enabled\) +pmd usage: NOT AVAIL\n"
        r"  port: v0                queue-id:  1 \(enabled\) +pmd usage: NOT AVAIL\n"
        r"  port: v1                queue-id:  0 \(enabled\) +pmd usage: NOT AVAIL\n",
        shown,
    )


def test_pmd_perf_show_states_packets_busy_cycles_and_cycles_a_packet() -> None:
    shown = commands.pmd_perf_show(pmds(Pmd(packets=1000, busy_cycles=100_000, idle_cycles=300_000, sleeps=4)), 0.5)
    assert "Measurement duration: 0.500 s" in shown
    assert re.search(r"busy cycles: +100000  \( 25\.0 %\)", shown)
    assert re.search(r"Rx packets: +1000  \(2 Kpps, 100 cycles/pkt\)", shown)


def test_a_poll_thread_that_did_nothing_yet_divides_by_nothing() -> None:
    assert "0 cycles/pkt" in commands.pmd_perf_show(pmds(Pmd()), 0.0)


def test_a_core_without_a_node_is_on_node_0() -> None:
    assert commands.numa_of(999_999) == 0
