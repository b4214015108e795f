"""What ``ovs-appctl`` asks about poll threads, in Open vSwitch's own layout: scripts cut these texts by column.

Where OVS counts what this switch has not (caches of flows, upcalls), its lines are left out, or stand there with what
is true here: every packet takes one pass, and none is sent up.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ovsvhost.errors import ConfigError
from ovsvhost.numeral import is_whole

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ovsvhost._core import PmdState

INTERVAL_S = 5
"""Loads are kept in intervals of this length (OVS: PMD_INTERVAL_LEN) …"""
WINDOW_S = 60
"""… for so long."""


@dataclass(frozen=True, slots=True)
class Asked:
    """The arguments of one command.

    Attributes:
        core: show or clear this core's thread only.
        seconds: time over which a queue's share is taken, a multiple of 5 up to 60.
        histograms: show them too.
    """

    core: int | None = None
    seconds: int = WINDOW_S
    histograms: bool = False


def asked(arguments: Sequence[str]) -> Asked:
    """Reads ``[-nh | -hist] [-pmd CORE] [-secs SECONDS] [DATAPATH]``; there is one datapath, so any name means it.

    Raises:
        ConfigError: a number that is none.
    """
    core: int | None = None
    seconds = WINDOW_S
    histograms = False
    words = iter(arguments)
    for word in words:
        match word:
            case "-hist":
                histograms = True
            case "-nh":
                histograms = False
            case "-pmd":
                core = _number(word, words)
            case "-secs":
                seconds = _number(word, words)
            case option if option.startswith("-"):
                raise ConfigError(f"{option} is not an option here: -pmd CORE, -secs SECONDS, -hist and -nh are")
    rounded = -(-seconds // INTERVAL_S) * INTERVAL_S
    return Asked(core, rounded if 0 < rounded <= WINDOW_S else WINDOW_S, histograms)


def _number(option: str, words: Iterator[str]) -> int:
    text = next(words, "")
    if is_whole(text):
        return int(text)
    raise ConfigError(f"{option} {text!r}: give a number")


def _head(pmd: PmdState) -> str:
    return f"pmd thread numa_id {pmd.numa} core_id {pmd.cpu}:"


def rxq_show(pmds: Sequence[PmdState], seconds: int) -> str:
    """``dpif-netdev/pmd-rxq-show``: which queue of which port is polled by which core, and what that costs."""
    lines = [f"Displaying last {seconds} seconds pmd usage %"] if pmds else []
    for pmd in pmds:
        lines += [_head(pmd), f"  isolated : {str(pmd.isolated).lower()}"]
        lines += [
            f"  port: {rxq.port:<16}  queue-id: {rxq.queue:>2} {'(enabled) ' if rxq.enabled else '(disabled)'}"
            f"  pmd usage: {_share(rxq.usage_pct)}"
            for rxq in pmd.rxqs
        ]
        if pmd.rxqs:
            lines.append(f"  overhead: {_share(pmd.overhead_pct)}")
    return "".join(f"{line}\n" for line in lines)


def _share(percent: float | None) -> str:
    return "NOT AVAIL" if percent is None else f"{percent:2.0f} %"


def stats_show(pmds: Sequence[PmdState]) -> str:
    """``dpif-netdev/pmd-stats-show``: the counters of each thread since the last clear."""
    lines = []
    for pmd in pmds:
        total = pmd.idle_cycles + pmd.busy_cycles
        lines += [
            _head(pmd),
            f"  packets received: {pmd.packets}",
            "  packet recirculations: 0",
            f"  avg. datapath passes per packet: {1 if pmd.packets else 0:.2f}",
            "  miss with success upcall: 0",
            "  miss with failed upcall: 0",
        ]
        if total:
            lines += [
                f"  idle cycles: {pmd.idle_cycles} ({100 * pmd.idle_cycles / total:.2f}%)",
                f"  processing cycles: {pmd.busy_cycles} ({100 * pmd.busy_cycles / total:.2f}%)",
            ]
        if pmd.packets:
            lines += [
                f"  avg {what}cycles per packet: {cycles / pmd.packets:.2f} ({cycles}/{pmd.packets})"
                for what, cycles in (("", total), ("processing ", pmd.busy_cycles))
            ]
    return "".join(f"{line}\n" for line in lines)


def perf_show(pmds: Sequence[PmdState], *, histograms: bool = False) -> str:
    """``dpif-netdev/pmd-perf-show``: iterations, packets, cycles and cycles a packet, since the last clear."""
    now = time.time()
    clock = f"{time.strftime('%H:%M:%S', time.gmtime(now))}.{int(now * 1000) % 1000:03d}"
    lines: list[str] = []
    for pmd in pmds:
        lines += ["", f"Time: {clock}", f"Measurement duration: {pmd.since_clear_s:.3f} s", "", _head(pmd), ""]
        lines += _overall(pmd)
        if histograms:
            lines += ["", *_histograms(pmd)]
    return "".join(f"{line}\n" for line in lines)


def _overall(pmd: PmdState) -> Iterator[str]:
    used = pmd.busy_cycles + pmd.idle_cycles
    iterations = pmd.busy_iterations + pmd.idle_iterations
    duration_us = pmd.since_clear_s * 1_000_000
    slept_us = pmd.sleep_cycles / pmd.cycles_per_us

    def per(part: float, whole: float, factor: float = 1) -> float:
        return factor * part / whole if whole else 0.0

    yield (
        f"  Iterations:         {iterations:>12}"
        f"  ({per(used + pmd.sleep_cycles, iterations * pmd.cycles_per_us):.2f} us/it)"
    )
    yield (
        f"  - Used TSC cycles:  {used:>12}  ({per(used, duration_us * pmd.cycles_per_us, 100):5.1f} % of total cycles)"
    )
    yield (
        f"  - idle iterations:  {pmd.idle_iterations:>12}  ({per(pmd.idle_cycles, used, 100):5.1f} % of used cycles)"
    )
    yield (
        f"  - busy iterations:  {pmd.busy_iterations:>12}  ({per(pmd.busy_cycles, used, 100):5.1f} % of used cycles)"
    )
    yield f"  - sleep iterations: {pmd.sleeps:>12}  ({per(pmd.sleeps, iterations, 100):5.1f} % of iterations)"
    yield f"  Sleep time (us):    {slept_us:>12.0f}  ({per(slept_us, pmd.sleeps):3.0f} us/iteration avg.)"
    yield f"  - idle cycles:      {pmd.idle_cycles:>12}"
    yield f"  - busy cycles:      {pmd.busy_cycles:>12}"
    if not pmd.packets:
        yield f"  Rx packets:         {0:>12}"
        return
    yield (
        f"  Rx packets:         {pmd.packets:>12}"
        f"  ({per(pmd.packets, pmd.since_clear_s) / 1000:.0f} Kpps, {pmd.busy_cycles / pmd.packets:.0f} cycles/pkt)"
    )
    yield f"  Rx batches:         {pmd.bursts:>12}  ({per(pmd.packets, pmd.bursts):.2f} pkts/batch)"
    yield f"  Datapath passes:    {pmd.packets:>12}  (1.00 passes/pkt)"
    yield f"  - Upcalls:          {0:>12}  (  0.0 %, 0.0 us/upcall)"
    yield f"  - Lost upcalls:     {0:>12}  (  0.0 %)"


def _histograms(pmd: PmdState) -> Iterator[str]:
    """Powers of two: a row counts the values up to its bound that are above the row's before.

    The last column is latency: from gathering a batch until its sender has the buffers back, waits included.
    """
    columns = (
        ("cycles/it", pmd.cycles_per_iteration),
        ("cycles/pkt", pmd.cycles_per_packet),
        ("pkts/batch", pmd.packets_per_burst),
        ("cycles/batch", pmd.cycles_per_burst),
    )
    yield "Histograms"
    yield "   " + "  ".join(f"{name:<23}" for name, _ in columns).rstrip()
    used = max((bits + 1 for _, counts in columns for bits, count in enumerate(counts) if count), default=0)
    for bits in range(used):
        last = bits == len(columns[0][1]) - 1
        bound = ">" if last else str(2**bits - 1)
        yield "   " + "  ".join(f"{bound:<11} {counts[bits]:<11}" for _, counts in columns).rstrip()


def sleep_show(pmds: Sequence[PmdState], default_us: int | None) -> str:
    """``dpif-netdev/pmd-sleep-show``: the longest sleep of each thread; "adaptive" where nothing was asked for."""
    lines = [f"Default max sleep: {_sleep(default_us)}"] if pmds else []
    for pmd in pmds:
        lines += [_head(pmd), f"  max sleep: {_sleep(pmd.max_sleep_us)}"]
    return "".join(f"{line}\n" for line in lines)


def _sleep(longest_us: int | None) -> str:
    return "adaptive" if longest_us is None else f"{longest_us:4} us"
