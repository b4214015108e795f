"""The table, the JSON and the document: what was measured, under which conditions, and how it compares.

Medians stand beside the smallest and largest window. A ratio is taken round by round, between windows that lay next to
each other, and its median is given: what drifts on the machine cancels out.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from cases import OVS, TESTPMD
from rich.table import Table
from switches import OURS

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from quiet import RoundTrips
    from rich.console import Console
    from rounds import Series

_PEERS = (OVS, TESTPMD)
_FULL_ENOUGH = 0.9
_BEGIN, _END = "<!-- measured: begin -->", "<!-- measured: end -->"


@dataclass
class Results:
    """Everything one run found out.

    Attributes:
        conditions: machine, versions and settings, as words.
        series: throughput.
        idle_cores: processor time of each switch with two silent guests, in cores.
        back_to_back: one frame there and back, the next at once, by switch.
        every_ms: the same, one frame per millisecond; ``ovsvhost, never sleeps`` is what waking is measured against.
    """

    conditions: dict[str, str]
    series: list[Series] = field(default_factory=list)
    idle_cores: dict[str, float] = field(default_factory=dict)
    back_to_back: dict[str, RoundTrips] = field(default_factory=dict)
    every_ms: dict[str, RoundTrips] = field(default_factory=dict)

    def wake_up_us(self) -> tuple[float, float] | None:
        """What waking a sleeping poll thread adds to a frame's way there and back, p50 and p99, µs."""
        asleep, awake = self.every_ms.get(OURS), self.every_ms.get(NEVER_SLEEPS)
        if asleep is None or awake is None:
            return None
        return asleep.p50_us - awake.p50_us, asleep.p99_us - awake.p99_us


NEVER_SLEEPS = f"{OURS}, never sleeps"


def to_json(results: Results) -> str:
    """All numbers, window by window."""

    def plain(value: Any) -> Any:
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return {entry.name: plain(getattr(value, entry.name)) for entry in dataclasses.fields(value)}
        if isinstance(value, dict):
            return {key: plain(entry) for key, entry in value.items()}
        if isinstance(value, list):
            return [plain(entry) for entry in value]
        return value

    document = plain(results)
    for series, entry in zip(results.series, document["series"], strict=True):
        entry["ratios"] = {
            peer: series.ratios(OURS, peer) for peer in _PEERS if OURS in series.windows and peer in series.windows
        }
    return json.dumps(document, indent=2) + "\n"


def throughput_rows(series: Sequence[Series]) -> tuple[list[str], list[list[str]]]:
    """Head and rows of the throughput table."""
    head = [
        "case",
        "front-end",
        "switch",
        "Mpps min / median / max",
        "ours by its",
        "ring full",
        "busy",
        "cycles/packet",
        "lost",
    ]
    rows = []
    for one in series:
        for number, switch in enumerate(one.windows):
            rates = sorted(rate / 1e6 for rate in one.rates(switch))
            rows.append(
                [
                    one.case.title if number == 0 else "",
                    one.generator if number == 0 else "",
                    switch,
                    f"{rates[0]:.2f} / {statistics.median(rates):.2f} / {rates[-1]:.2f}",
                    _ratio(one, switch),
                    f"{one.median(switch, 'ring_full_share'):.2f}",
                    f"{one.median(switch, 'busy_share'):.2f}",
                    f"{one.median(switch, 'cycles_per_packet'):.0f}",
                    f"{one.median(switch, 'lost_share'):.1%}",
                ]
            )
    return head, rows


def quiet_rows(results: Results) -> tuple[list[str], list[list[str]]]:
    """Head and rows of the table of silence and single frames."""
    head = ["switch", "idle, cores", "at once, p50 / p99 µs", "one per ms, p50 / p99 µs"]
    names = list(dict.fromkeys([*results.idle_cores, *results.back_to_back, *results.every_ms]))
    rows = []
    for name in names:
        idle = results.idle_cores.get(name)
        rows.append(
            [
                name,
                "" if idle is None else f"{idle:.3f}",
                _trips(results.back_to_back.get(name)),
                _trips(results.every_ms.get(name)),
            ]
        )
    return head, rows


def verdicts(results: Results) -> list[tuple[str, bool]]:
    """What had to be reached, and whether it was."""
    found = []
    for one in results.series:
        for peer, least in one.case.must.items():
            if one.generator != "own front-end" or peer not in one.windows or OURS not in one.windows:
                continue
            ratio = statistics.median(one.ratios(OURS, peer))
            full = min(one.median(switch, "ring_full_share") for switch in one.windows)
            text = f"{one.case.title}: {ratio:.2f} times {peer} (must: {least}), ring full {full:.2f} or more for all"
            found.append((text, ratio >= least and full >= _FULL_ENOUGH))
    if OURS in results.idle_cores:
        idle = results.idle_cores[OURS]
        found.append((f"idle with two silent guests: {idle:.2%} of a core (must: below 2 %)", idle < 0.02))
    if (added := results.wake_up_us()) is not None:
        text = f"waking adds {added[0]:.0f} µs at the median, {added[1]:.0f} µs at p99 (must: below 100 µs)"
        found.append((text, added[0] < 100))
    return found


def show(results: Results, console: Console) -> None:
    """Prints all of it."""
    if results.series:
        console.print(_table("throughput", *throughput_rows(results.series)))
    if results.idle_cores or results.every_ms:
        console.print(_table("idle and latency", *quiet_rows(results)))
    for text, reached in verdicts(results):
        console.print(f"{'[green]reached[/]' if reached else '[red]missed[/] '}  {text}", highlight=False)
    for one in results.series:
        if one.disturbed:
            console.print(
                f"[yellow]disturbed[/]  {one.case.title}, {one.generator}: {one.disturbed} windows were kept although "
                "something else ran on the cores",
                highlight=False,
            )


def write_document(results: Results, path: Path) -> None:
    """Puts the tables into a document, between its two marks; what people wrote around them stays."""
    text = path.read_text() if path.exists() else f"{_BEGIN}\n{_END}\n"
    head, found, rest = text.partition(_BEGIN)
    _, also_found, tail = rest.partition(_END)
    if not found or not also_found:
        raise ValueError(f"{path} has no lines '{_BEGIN}' and '{_END}': put them where the tables belong")
    parts = [_markdown(["condition", "value"], [[key, value] for key, value in results.conditions.items()])]
    if results.series:
        parts.append(_markdown(*throughput_rows(results.series)))
    if results.idle_cores or results.every_ms:
        parts.append(_markdown(*quiet_rows(results)))
    verdict = [f"- {'reached' if reached else '**missed**'}: {text}" for text, reached in verdicts(results)]
    disturbed = sum(one.disturbed for one in results.series)
    repeated = sum(one.repeated for one in results.series)
    windows = sum(len(windows) for one in results.series for windows in one.windows.values())
    verdict.append(
        f"- {windows} windows; {repeated} repeated because something else ran, {disturbed} kept in spite of it"
    )
    parts.append("\n".join(verdict))
    path.write_text(f"{head}{_BEGIN}\n\n" + "\n\n".join(parts) + f"\n\n{_END}{tail}")


def _ratio(series: Series, switch: str) -> str:
    if switch == OURS or OURS not in series.windows:
        return ""
    return f"{statistics.median(series.ratios(OURS, switch)):.2f}"


def _trips(trips: RoundTrips | None) -> str:
    return "" if trips is None else f"{trips.p50_us:.1f} / {trips.p99_us:.1f}"


def _table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = Table(title=title)
    for column in head:
        table.add_column(column, justify="left" if column in {"case", "front-end", "switch"} else "right")
    for row in rows:
        table.add_row(*row)
    return table


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
