"""Rounds: in each, every switch gets one window, so that what drifts on the machine drifts for all of them.

A window counts only if the scheduler left both cores to the two threads under measurement; else it is repeated.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from cases import Case
    from generators import Generator
    from switches import Switch

_EDGE_S = 0.1
"""Kept away from both ends of a generator's window, so that the switch's counters cover nothing else."""
_SETTLE_S = 0.15
"""After a generator ended: time for the switch to see its sockets close before it is stopped."""


@dataclass(frozen=True)
class Window:
    """One switch under one load once.

    Attributes:
        pps: frames per second at the far end.
        ring_full_share: part of the generator's looks at its transmitq that found it full.
        lost_share: part of the frames sent that did not arrive.
        busy_share: part of the poll thread's cycles spent on frames.
        cycles_per_packet: busy TSC cycles a frame.
        wait_share: the larger of what the poll thread and the generator waited for their cores.
    """

    pps: float
    ring_full_share: float
    lost_share: float
    busy_share: float
    cycles_per_packet: float
    wait_share: float


@dataclass
class Series:
    """All windows of one case under one generator, by switch, in the order of the rounds.

    Attributes:
        case: the case.
        generator: the generator's name.
        windows: one per switch and round.
        repeated: windows thrown away because something else ran on the cores.
        disturbed: windows kept although they were disturbed, because no better one was to be had.
    """

    case: Case
    generator: str
    windows: dict[str, list[Window]] = field(default_factory=dict)
    repeated: int = 0
    disturbed: int = 0

    def rates(self, switch: str) -> list[float]:
        """Frames per second, by round."""
        return [window.pps for window in self.windows[switch]]

    def ratios(self, switch: str, other: str) -> list[float]:
        """The first switch's rate by the second's of the same round."""
        return [a / b for a, b in zip(self.rates(switch), self.rates(other), strict=True)]

    def median(self, switch: str, attribute: str) -> float:
        """The median of one of a window's numbers."""
        values: list[float] = [getattr(window, attribute) for window in self.windows[switch]]
        return statistics.median(values)


@dataclass(frozen=True)
class Timing:
    """How long and how often.

    Attributes:
        rounds: windows of each switch.
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
    case: Case, generator: Generator, switches: Sequence[Switch], timing: Timing, say: Callable[[str], None]
) -> Series:
    """All rounds of one case under one generator. The switches have their ports and are held."""
    series = Series(case, generator.name, {switch.name: [] for switch in switches})
    for number in range(timing.rounds):
        # Each round begins with another switch: nobody is always first after a pause.
        turn = number % len(switches)
        for switch in [*switches[turn:], *switches[:turn]]:
            window = _undisturbed(case, generator, switch, timing, series)
            series.windows[switch.name].append(window)
            say(
                f"{case.title}, {generator.name}, round {number + 1}: {switch.name} {window.pps / 1e6:.2f} Mpps, "
                f"ring full {window.ring_full_share:.2f}, busy {window.busy_share:.2f}, waited {window.wait_share:.1%}"
            )
    return series


def _undisturbed(case: Case, generator: Generator, switch: Switch, timing: Timing, series: Series) -> Window:
    best: Window | None = None
    for _ in range(timing.attempts):
        window = _window(case, generator, switch, timing)
        if best is None or window.wait_share < best.wait_share:
            best = window
        if best.wait_share <= timing.wait_limit:
            return best
        series.repeated += 1
    assert best is not None  # noqa: S101 - there is at least one attempt
    series.disturbed += 1
    return best


def _window(case: Case, generator: Generator, switch: Switch, timing: Timing) -> Window:
    with switch.turn():
        with generator.window(case, switch.sockets, warmup_s=timing.warmup_s, duration_s=timing.duration_s) as run:
            time.sleep(_EDGE_S)
            switch.begin()
            time.sleep(timing.duration_s - 2 * _EDGE_S)
            work, clock = switch.end()
            load = run.result()
        time.sleep(_SETTLE_S)
    return Window(
        pps=load.pps,
        ring_full_share=load.ring_full_share,
        lost_share=load.lost_share,
        busy_share=work.busy_share,
        cycles_per_packet=work.cycles_per_packet,
        wait_share=max(clock.wait_share, load.wait_share),
    )
