"""What a guest that moves in by post-copy costs the other guests of its poll thread: this switch beside OVS-DPDK.

::

    python benches/peers/postcopy.py --frontend target/release/vhost-frontend

A pair of guests exchanges frames, alone and then while a third guest moves in whose frames lie on pages that come 20 ms
after the switch asked for them. Rates in one window, times on the way at a fixed rate in another.
Prints one JSON object: medians, and what became of the pair as a part of what it was alone.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cases import Case
from generators import Frontend, Run

from ovsvhost.testing.daemon import SwitchDaemon
from ovsvhost.testing.ovs_dpdk import OvsDpdk

if TYPE_CHECKING:
    from collections.abc import Callable

_CPU, _GENERATOR_CPU = 1, 0
_LATE_S = 0.02
_WARMUP_S, _WINDOW_S = 0.7, 2.0
_RATE_PPS = 200_000
_CASE = Case()

Figures = dict[str, float]


class Bench:
    """One switch with three ports, and the front-ends that load it."""

    def __init__(self, folder: Path, frontend: Path, vsctl: Callable[..., object]) -> None:
        self._load = Frontend(_GENERATOR_CPU, folder, frontend)
        self._pair = (folder / "a", folder / "b")
        self._late = folder / "late"
        words = ["add-br", "br0", "--", "set", "bridge", "br0", "datapath_type=netdev"]
        for socket in (*self._pair, self._late):
            words += ["--", "add-port", "br0", socket.name, "--", "set", "Interface", socket.name]
            words += ["type=dpdkvhostuserclient", f"options:vhost-server-path={socket}"]
        vsctl(*words)

    def measure(self, *, late: bool) -> Figures:
        """One window of rates and one of times; with ``late`` the third guest moves in as each begins."""
        rate = self._load.command(_CASE, self._pair, _WARMUP_S, _WINDOW_S)
        paced = self._load.paced(_CASE, self._pair, _RATE_PPS, _WARMUP_S, _WINDOW_S)
        first, asked = self._window(rate, late=late)
        second, _ = self._window(paced, late=late)
        return {
            "pps": first["measured"]["ends"][1]["received_pps"],
            "arrived_pps": second["measured"]["ends"][1]["received_pps"],
            "p99_us": second["measured"]["transit"]["p99_us"],
            "pages_asked": asked,
        }

    def _window(self, command: list[str], *, late: bool) -> tuple[dict[str, Any], float]:
        with ExitStack() as stack:
            pair = stack.enter_context(self._load.start(self._pair, command))
            pair.wait_for_window(_WARMUP_S)
            guest = stack.enter_context(self._arriving()) if late else None
            report = pair.report()
            return report, guest.end()["pages_asked"] if guest else 0

    def _arriving(self) -> Run:
        settings = [f"--late={_LATE_S}", "--ring-size=256", f"--end=socket={self._late}"]
        command = ["taskset", "-c", str(_GENERATOR_CPU), str(self._load.program), "arriving", *settings]
        return self._load.start((self._late,), command)


def _ours(folder: Path, stack: ExitStack) -> Callable[..., object]:
    switch = SwitchDaemon(folder)
    stack.callback(switch.close)
    settings = [f"other_config:pmd-cpu-mask={1 << _CPU:#x}", "other_config:pmd-sleep-max=0"]
    switch.start().vsctl("set", "Open_vSwitch", ".", *settings, "other_config:vhost-postcopy-support=true")
    switch.stop()
    switch.start()
    return switch.vsctl


def _ovs(folder: Path, stack: ExitStack) -> Callable[..., object]:
    switch = OvsDpdk(folder, pmd_cpu=_CPU, memory_mib=512, sleeps=False, postcopy=True)
    stack.callback(switch.stop)
    return switch.start().vsctl


def main() -> None:
    """Measures and prints."""
    arguments = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    arguments.add_argument("--frontend", type=Path, required=True, help="the built vhost-frontend")
    arguments.add_argument("--rounds", type=int, default=3, help="windows of each kind (default: 3)")
    options = arguments.parse_args()
    result = {}
    for name, start in (("ovsvhost", _ours), ("ovs-dpdk", _ovs)):
        with tempfile.TemporaryDirectory(prefix="ov-") as folder, ExitStack() as stack:
            bench = Bench(Path(folder), options.frontend, start(Path(folder), stack))
            rounds = [(bench.measure(late=False), bench.measure(late=True)) for _ in range(options.rounds)]
        alone, beside = [_medians([pair[side] for pair in rounds]) for side in (0, 1)]
        result[name] = {
            "alone": alone,
            "beside": beside,
            "rate_kept": beside["pps"] / alone["pps"],
            "p99_times": beside["p99_us"] / alone["p99_us"] if alone["p99_us"] else 0.0,
        }
    print(json.dumps(result, indent=2))


def _medians(figures: list[Figures]) -> Figures:
    return {name: statistics.median(one[name] or 0.0 for one in figures) for name in figures[0]}


if __name__ == "__main__":
    main()
