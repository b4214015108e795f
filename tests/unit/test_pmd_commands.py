"""The poll threads' texts, in Open vSwitch's own layout: scripts cut them by column."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

import pytest

from ovsvhost.daemon import pmd_commands
from ovsvhost.daemon.pmd_commands import Asked, asked
from ovsvhost.errors import ConfigError

if TYPE_CHECKING:
    from ovsvhost._core import PmdState


@dataclass(frozen=True)
class Rxq:
    """The shape of a queue."""

    port: str
    queue: int
    enabled: bool = True
    usage_pct: float | None = None


@dataclass(frozen=True)
class Pmd:
    """The shape of a poll thread."""

    cpu: int = 1
    numa: int = 0
    isolated: bool = False
    max_sleep_us: int | None = None
    since_clear_s: float = 0.5
    cycles_per_us: int = 1000
    packets: int = 0
    bursts: int = 0
    busy_cycles: int = 0
    idle_cycles: int = 0
    sleep_cycles: int = 0
    busy_iterations: int = 0
    idle_iterations: int = 0
    sleeps: int = 0
    cycles_per_iteration: list[int] = field(default_factory=lambda: [0] * 32)
    packets_per_burst: list[int] = field(default_factory=lambda: [0] * 32)
    cycles_per_packet: list[int] = field(default_factory=lambda: [0] * 32)
    cycles_per_burst: list[int] = field(default_factory=lambda: [0] * 32)
    overhead_pct: float | None = None
    rxqs: list[Rxq] = field(default_factory=list)


BUSY = Pmd(
    packets=1000, bursts=40, busy_cycles=100_000, idle_cycles=300_000, sleep_cycles=50_000, sleeps=4,
    busy_iterations=30, idle_iterations=70,
)  # fmt: skip


def pmds(*states: Pmd) -> list[PmdState]:
    return cast("list[PmdState]", list(states))


@pytest.mark.rows("A10", "B5")
def test_rxq_show_is_ovs_text_to_the_letter() -> None:
    rxqs = [Rxq("v0", 0, usage_pct=45.4), Rxq("v0", 1, enabled=False, usage_pct=0.0), Rxq("averylongportname0", 12)]
    shown = pmd_commands.rxq_show(pmds(Pmd(rxqs=rxqs, isolated=True, overhead_pct=3.0), Pmd(cpu=2, numa=1)), 60)
    assert shown == (
        "Displaying last 60 seconds pmd usage %\n"
        "pmd thread numa_id 0 core_id 1:\n"
        "  isolated : true\n"
        "  port: v0                queue-id:  0 (enabled)   pmd usage: 45 %\n"
        "  port: v0                queue-id:  1 (disabled)  pmd usage:  0 %\n"
        "  port: averylongportname0  queue-id: 12 (enabled)   pmd usage: NOT AVAIL\n"
        "  overhead:  3 %\n"
        "pmd thread numa_id 1 core_id 2:\n"
        "  isolated : false\n"
    )
    assert pmd_commands.rxq_show([], 60) == ""


@pytest.mark.rows("B5")
def test_perf_show_states_packets_busy_cycles_and_cycles_a_packet() -> None:
    shown = pmd_commands.perf_show(pmds(BUSY))
    assert re.match(r"\nTime: \d\d:\d\d:\d\d\.\d{3}\nMeasurement duration: 0\.500 s\n\npmd thread numa_id 0", shown)
    for line in (
        "  Iterations:                  100  (4.50 us/it)",
        "  - Used TSC cycles:        400000  (  0.1 % of total cycles)",
        "  - idle iterations:            70  ( 75.0 % of used cycles)",
        "  - busy iterations:            30  ( 25.0 % of used cycles)",
        "  - sleep iterations:            4  (  4.0 % of iterations)",
        "  Sleep time (us):              50  ( 12 us/iteration avg.)",
        "  - busy cycles:            100000",
        "  Rx packets:                 1000  (2 Kpps, 100 cycles/pkt)",
        "  Rx batches:                   40  (25.00 pkts/batch)",
    ):
        assert f"\n{line}\n" in shown
    assert "Histograms" not in shown


def test_a_poll_thread_that_did_nothing_yet_divides_by_nothing() -> None:
    assert "  Rx packets:                    0\n" in pmd_commands.perf_show(pmds(Pmd(since_clear_s=0.0)))
    assert "avg cycles" not in pmd_commands.stats_show(pmds(Pmd()))


def test_histograms_are_powers_of_two_up_to_the_last_that_counts() -> None:
    counts = [0] * 32
    counts[1], counts[3], counts[6] = 5, 7, 9
    latencies = [0] * 32
    latencies[3] = 21
    busy = Pmd(packets_per_burst=counts, cycles_per_burst=latencies)
    shown = pmd_commands.perf_show(pmds(busy), histograms=True)
    rows = shown.split("Histograms\n")[1].splitlines()
    assert rows[0].split() == ["cycles/it", "cycles/pkt", "pkts/batch", "cycles/batch"]
    assert [row.split()[4:] for row in rows[2:5]] == [["1", "5", "1", "0"], ["3", "0", "3", "0"], ["7", "7", "7", "21"]]
    assert rows[-1].split() == ["63", "0", "63", "0", "63", "9", "63", "0"]


def test_stats_show_is_ovs_list() -> None:
    assert pmd_commands.stats_show(pmds(BUSY)) == (
        "pmd thread numa_id 0 core_id 1:\n"
        "  packets received: 1000\n"
        "  packet recirculations: 0\n"
        "  avg. datapath passes per packet: 1.00\n"
        "  miss with success upcall: 0\n"
        "  miss with failed upcall: 0\n"
        "  idle cycles: 300000 (75.00%)\n"
        "  processing cycles: 100000 (25.00%)\n"
        "  avg cycles per packet: 400.00 (400000/1000)\n"
        "  avg processing cycles per packet: 100.00 (100000/1000)\n"
    )


def test_sleep_show_names_the_default_and_each_thread() -> None:
    assert pmd_commands.sleep_show(pmds(Pmd(max_sleep_us=50), Pmd(cpu=2)), None) == (
        "Default max sleep: adaptive\n"
        "pmd thread numa_id 0 core_id 1:\n"
        "  max sleep:   50 us\n"
        "pmd thread numa_id 0 core_id 2:\n"
        "  max sleep: adaptive\n"
    )


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        ("", Asked()),
        ("-pmd 3 ovs-netdev", Asked(core=3)),
        ("-secs 7", Asked(seconds=10)),
        ("-secs 0", Asked(seconds=60)),
        ("-secs 3600 -pmd 0", Asked(core=0)),
        ("-hist", Asked(histograms=True)),
        ("-nh", Asked()),
    ],
)
def test_arguments_are_ovs(words: str, meant: Asked) -> None:
    assert asked(words.split()) == meant


@pytest.mark.parametrize("words", ["-pmd", "-pmd x", "-secs -1", "-it 5"])
def test_an_argument_that_is_none_is_named(words: str) -> None:
    with pytest.raises(ConfigError, match=words.split(maxsplit=1)[0]):
        asked(words.split())
