"""Rounds: in each, every contestant of a row gets one window, so that what drifts on the machine drifts for all.

A window counts only if the scheduler, and the machine under this one, left both cores to the two threads under
measurement; else it is repeated. One that fails is noted and leaves a gap, and a contestant that fails twice in a row
is given up for that row: the others, and what was measured before, stay.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import machine
from cases import Load

from ovsvhost.errors import OvsvhostError

if TYPE_CHECKING:
    from collections.abc import Callable

    from cases import Contestant, Row

Window = dict[str, float]
"""What one contestant showed once, by name.

Under load: ``pps`` at the far end of both directions, ``ring_full_share``, ``lost_share``, ``busy_share`` of the poll
thread's cycles, ``cycles_per_packet`` that were busy. Frame by frame: ``p50_us``, ``p99_us``, ``p999_us``,
``lost_share``. Of frames sent at a rate both, with ``arrived_pps`` for ``pps``, ``gap_ms`` in which nothing came, and
``left_out_us`` that the generator was off its core; no times where no frame could be sent: beside a guest in post-copy
that is a stall, and no failure. TCP: ``bits_per_s`` and what the poll thread counted. Moves: ``outage_ms`` in which
nothing arrived, of which ``stop_ms`` and ``start_ms`` for the rings and ``first_ms`` to the first frame; ``monitor_ms``
as QEMU has it. Idle: ``cores``. Always ``wait_share``: the largest of what the poll thread and the generator waited for
their cores, and what the machine under this one took of them; without the generator's where ``left_out_us`` has it.
"""

_GIVE_UP_AFTER = 2
_TIMED = 0.25
"""What is left of the limit on waiting where each frame's time counts: a hundredth of the time is what p99 is about."""


@dataclass
class Series:
    """All windows of one row, by contestant, in the order of the rounds.

    Attributes:
        row: the row's name.
        taken: commit and time, which may differ between rows that were merged.
        windows: one per contestant and round; None where it failed.
        failures: why windows failed, by contestant.
        repeated: windows thrown away because something else ran on the cores.
        disturbed: windows kept although they were disturbed, because no better one was to be had.
    """

    row: str
    taken: str
    windows: dict[str, list[Window | None]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    repeated: int = 0
    disturbed: int = 0

    def values(self, contestant: str, metric: str) -> list[float]:
        """One of the numbers, over the rounds that have it."""
        windows = self.windows.get(contestant, [])
        return [window[metric] for window in windows if window is not None and metric in window]

    def ratios(self, metric: str, of: str, by: str) -> list[float]:
        """One of the numbers of the first contestant by the second's of the same round."""
        pairs = zip(self.windows.get(of, []), self.windows.get(by, []), strict=False)
        return [a[metric] / b[metric] for a, b in pairs if a and b and metric in a and b.get(metric)]

    def median(self, contestant: str, metric: str) -> float | None:
        """The median of one of the numbers; None when there is none."""
        values = self.values(contestant, metric)
        return statistics.median(values) if values else None


@dataclass(frozen=True)
class Timing:
    """How long and how often.

    Attributes:
        rounds: windows of each contestant.
        warmup_s: traffic before each window, seconds.
        duration_s: a window, seconds.
        wait_limit: largest share a thread may have waited for its core.
        attempts: windows tried before a disturbed one is kept.
    """

    rounds: int
    warmup_s: float
    duration_s: float
    wait_limit: float
    attempts: int


def measure(
    row: Row,
    contestants: list[Contestant],
    timing: Timing,
    window: Callable[[Contestant], Window],
    *,
    series: Series,
    say: Callable[[str], None],
) -> None:
    """All rounds of one row, into ``series``; ``window`` measures one contestant once."""
    series.windows = {contestant.name: [] for contestant in contestants}
    if row.is_crowded:
        timing = replace(timing, wait_limit=1.0)
    elif row.load in {Load.HALF, Load.PACED}:
        timing = replace(timing, wait_limit=timing.wait_limit * _TIMED)
    failed_in_a_row = dict.fromkeys(series.windows, 0)
    for number in range(min(timing.rounds * row.rounds_factor, row.rounds_at_most)):
        # Each round begins with another contestant: nobody is always first after a pause.
        turn = number % len(contestants)
        for contestant in [*contestants[turn:], *contestants[:turn]]:
            name, found = contestant.name, None
            if failed_in_a_row[name] < _GIVE_UP_AFTER:
                try:
                    found = _undisturbed(contestant, timing, window, series)
                except (OvsvhostError, OSError, subprocess.SubprocessError) as error:
                    series.failures[name] = str(error)
            failed_in_a_row[name] = 0 if found else failed_in_a_row[name] + 1
            series.windows[name].append(found)
            say(f"{row.title}, {row.load}, round {number + 1}: {name}: {_words(found, series.failures.get(name, ''))}")


def _undisturbed(
    contestant: Contestant, timing: Timing, window: Callable[[Contestant], Window], series: Series
) -> Window:
    def watched() -> Window:
        began, stolen_s = time.monotonic(), machine.stolen_s()
        found = window(contestant)
        stolen_s = (machine.stolen_s() - stolen_s) / (os.cpu_count() or 1)
        return found | {"wait_share": max(found["wait_share"], stolen_s / (time.monotonic() - began))}

    best = watched()
    for _ in range(timing.attempts - 1):
        if best["wait_share"] <= timing.wait_limit:
            return best
        series.repeated += 1
        again = watched()
        best = min(best, again, key=lambda found: found["wait_share"])
    series.disturbed += best["wait_share"] > timing.wait_limit
    return best


def _words(window: Window | None, failure: str) -> str:
    if window is None:
        return f"failed: {failure.partition(chr(10))[0]}"
    shown = {
        "pps": lambda value: f"{value / 1e6:.2f} Mpps",
        "arrived_pps": lambda value: f"{value / 1e6:.2f} Mpps arrived",
        "bits_per_s": lambda value: f"{value / 1e6:.0f} Mbit/s",
        "cores": lambda value: f"{value:.3f} cores",
        "gap_ms": lambda value: f"nothing for {value:.2f} ms",
        "outage_ms": lambda value: f"nothing for {value:.2f} ms",
        "cycles_per_packet": lambda value: f"{value:.0f} cycles/packet",
    }
    return ", ".join(
        shown[name](value) if name in shown else f"{name.removesuffix('_share').replace('_', ' ')} {value:.2f}"
        for name, value in window.items()
    )
