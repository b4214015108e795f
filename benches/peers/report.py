"""The tables and the document: what was measured, under which conditions, and what was reached.

Medians stand beside the smallest and largest window. A ratio is taken round by round, between windows that lay next to
each other, and its median is given: what drifts on the machine cancels out.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cases import GENERATOR_LIMITS, OURS, ROWS, Goal, Load
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from cases import Row
    from results import Results
    from rich.console import Console
    from rounds import Series

_BEGIN, _END = "<!-- measured: begin -->", "<!-- measured: end -->"
_COMMIT_LENGTH = 12
_NAMES = {
    "pps": "rate",
    "bits_per_s": "rate",
    "cycles_per_packet": "cycles a packet",
    "p50_us": "median",
    "p99_us": "p99",
    "p999_us": "p99.9",
}
"""Numbers that are compared, in words."""
_WORK = (("ring_full_share", 2), ("busy_share", 2), ("cycles_per_packet", 0))

Rows = tuple[list[str], list[list[str]]]
"""Head and lines of a table."""


@dataclass(frozen=True)
class Verdict:
    """A goal and what became of it.

    Attributes:
        title: the row and the number.
        found: the number, with the smallest and largest of the rounds.
        must: what had to be reached, in words; empty where there is only an aim.
        aim: what was hoped for, in words.
        outcome: ``aim``, ``must``, ``missed`` or ``open`` (below an aim that is no must).
        note: what else a judge must know.
    """

    title: str
    found: str
    must: str
    aim: str
    outcome: str
    note: str


def verdicts(results: Results) -> list[Verdict]:
    """Every goal of every row that was measured."""
    found = []
    for row in ROWS:
        series = results.series.get(row.name)
        if series is not None:
            found += [verdict for goal in row.goals if (verdict := _judge(row, goal, series)) is not None]
    return found


def _judge(row: Row, goal: Goal, series: Series) -> Verdict | None:
    notes = []
    values = series.ratios(goal.metric, goal.of, goal.by) if goal.by else series.values(goal.of, goal.metric)
    full = series.median(goal.of, "ring_full_share")
    if goal.metric == "pps" and goal.by and full is not None:
        if full < GENERATOR_LIMITS:
            notes.append(f"ring full {full:.2f}: the guest is the limit; judged by cycles a packet")
            values = series.ratios("cycles_per_packet", goal.by, goal.of)
        elif row.load is Load.OWN:
            fulls = [value for name in series.windows if (value := series.median(name, "ring_full_share")) is not None]
            notes.append(f"ring full {min(fulls):.2f} or more")
    if not values:
        return None
    if len(values) < len(series.windows.get(goal.of, [])):
        notes.append("some windows failed")
    low, value, high = (goal.scale * number for number in (min(values), statistics.median(values), max(values)))
    digits = 0 if goal.unit.startswith("cycles") else 2
    what = _NAMES.get(goal.metric, "")
    of = "" if goal.of == OURS else f"{goal.of}, "
    number = f"{what} by that of {goal.by}" if goal.by else goal.unit
    title = f"{row.title}, {row.load}: {of}{number}"
    middle = statistics.median(values)
    outcome = "open" if goal.must is None else "missed"
    if goal.is_reached(middle, goal.aim):
        outcome = "aim"
    elif goal.must is not None and goal.is_reached(middle, goal.must):
        outcome = "must"
    return Verdict(
        title,
        f"{value:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})",
        "" if goal.must is None else _limit(goal, goal.must),
        _limit(goal, goal.aim),
        outcome,
        "; ".join(notes),
    )


def _limit(goal: Goal, limit: float) -> str:
    return f"{'≥' if goal.is_floor else '≤'} {goal.scale * limit:g}"


def goal_rows(results: Results) -> Rows:
    """The table of goals."""
    words = {"aim": "yes, aim too", "must": "yes", "missed": "**no**", "open": "aim not yet"}
    head = ["what", "found: median (min to max)", "must", "aim", "reached", "note"]
    return head, [[v.title, v.found, v.must, v.aim, words[v.outcome], v.note] for v in verdicts(results)]


def throughput_rows(results: Results) -> Rows:
    """The table of rates."""
    head = [
        "case",
        "front-end",
        "who",
        "Mpps min / median / max",
        "first by it",
        "ring full",
        "busy",
        "cycles/packet",
        "lost",
    ]
    return head, _rate_lines(
        results, "pps", 2, lambda series, name: [*_work(series, name), f"{series.median(name, 'lost_share'):.1%}"]
    )


def tcp_rows(results: Results) -> Rows:
    """The table of transfers between guests' kernels."""
    head = ["case", "front-end", "who", "Mbit/s min / median / max", "first by it", "busy", "cycles/packet"]
    # A kernel does not tell how full its ring is.
    return head, _rate_lines(results, "bits_per_s", 0, lambda series, name: _work(series, name)[1:])


def _rate_lines(
    results: Results, metric: str, digits: int, more: Callable[[Series, str], list[str]]
) -> list[list[str]]:
    """A line for each contestant: its rate in millions, by that of the row's first, and ``more``."""
    lines = []
    for row, series in _series(results, metric):
        first, *_ = series.windows
        for number, name in enumerate(series.windows):
            start = [row.title, row.load] if number == 0 else ["", ""]
            if rates := sorted(value / 1e6 for value in series.values(name, metric)):
                ratios = series.ratios(metric, first, name) if number else []
                found = [rates[0], statistics.median(rates), rates[-1]]
                numbers = [
                    " / ".join(f"{rate:.{digits}f}" for rate in found),
                    f"{statistics.median(ratios):.2f}" if ratios else "",
                    *more(series, name),
                ]
            else:
                numbers = [_failure(series, name)]
            lines.append([*start, name, *numbers])
    return lines


def latency_rows(results: Results) -> Rows:
    """The table of times: of frames in flight alone, and of frames among others."""
    times = ["p50 µs, median (min to max)", "p99 µs", "p99.9 µs"]
    load = ["Mpps meanwhile", "ring full", "busy", "cycles/packet", "nothing arrived for ms"]
    head = ["case", "who", *times, "lost", *load]
    lines = []
    for row, series in _series(results, "p50_us"):
        for number, name in enumerate(series.windows):
            found = [_spread(series.values(name, metric)) for metric in ("p50_us", "p99_us", "p999_us")]
            if stalls := _stalls(series, name):
                found[0] = f"{found[0]}, {stalls}" if found[0] else stalls
            lost, rate = series.median(name, "lost_share"), series.median(name, "arrived_pps")
            numbers = [*found, f"{lost:.1%}"] if lost is not None else [_failure(series, name), "", "", ""]
            load = [f"{rate / 1e6:.2f}", *_work(series, name)] if rate is not None else [""] * 4
            gap = _spread(series.values(name, "gap_ms"))
            lines.append([row.title if number == 0 else "", name, *numbers, *load, gap])
    return head, lines


def _stalls(series: Series, name: str) -> str:
    """In how many windows no frame was on its way that could be timed, in words; empty for none."""
    windows = [window for window in series.windows[name] if window is not None]
    stalled = sum("p50_us" not in window for window in windows)
    return f"stalled in {stalled} of {len(windows)} windows" if stalled else ""


def _work(series: Series, name: str) -> list[str]:
    """Ring full, busy, cycles a packet; empty where a window has none of it."""
    found = [(series.median(name, metric), digits) for metric, digits in _WORK]
    return ["" if value is None else f"{value:.{digits}f}" for value, digits in found]


def move_rows(results: Results) -> Rows:
    """The table of moves."""
    steps = ["rings stop", "rings start", "first frame", "QEMU's own downtime"]
    metrics = ("outage_ms", "stop_ms", "start_ms", "first_ms", "monitor_ms")
    lines = [
        [row.title, name, *(_spread(series.values(name, metric)) for metric in metrics)]
        for row, series in _series(results, "outage_ms")
        for name in series.windows
    ]
    return ["case", "who", "nothing arrived for ms, median (min to max)", *steps], lines


def idle_rows(results: Results) -> Rows:
    """The table of silence."""
    lines = [
        [row.title, name, _spread(series.values(name, "cores"), digits=3) or _failure(series, name)]
        for row, series in _series(results, "cores")
        for name in series.windows
    ]
    return ["case", "who", "cores, median (min to max)"], lines


def show(results: Results, console: Console) -> None:
    """Prints all of it."""
    for title, (head, lines) in _tables(results):
        if lines:
            console.print(_table(title, head, lines))
    colours = {"aim": "green", "must": "green", "missed": "red", "open": "yellow"}
    for found in verdicts(results):
        limits = ", ".join(f"{word} {limit}" for word, limit in (("must", found.must), ("aim", found.aim)) if limit)
        note = f"; {found.note}" if found.note else ""
        text = f"[{colours[found.outcome]}]{found.outcome:6}[/]  {found.title}: {found.found} ({limits}{note})"
        console.print(text, highlight=False, soft_wrap=True)
    for series in results.series.values():
        if series.disturbed:
            console.print(
                f"[yellow]disturbed[/]  {series.row}: {series.disturbed} windows were kept although something else ran",
                highlight=False,
            )
        for name, failure in series.failures.items():
            console.print(f"[red]failed[/]  {series.row}: {name}: {escape(failure)}", highlight=False, soft_wrap=True)


def write_document(results: Results, path: Path, picture: str | None) -> None:
    """Puts the tables into a document, between its two marks; what people wrote around them stays."""
    text = path.read_text() if path.exists() else f"{_BEGIN}\n{_END}\n"
    head, found, rest = text.partition(_BEGIN)
    _, also_found, tail = rest.partition(_END)
    if not found or not also_found:
        raise ValueError(f"{path} has no lines '{_BEGIN}' and '{_END}': put them where the tables belong")
    parts = [f"![rates and times beside each other]({picture})"] if picture else []
    parts.append(_markdown(["condition", "value"], [[key, value] for key, value in results.conditions.items()]))
    parts += [_markdown(*rows) for _, rows in [("", goal_rows(results)), *_tables(results)] if rows[1]]
    windows = [window for series in results.series.values() for found in series.windows.values() for window in found]
    repeated = sum(series.repeated for series in results.series.values())
    disturbed = sum(series.disturbed for series in results.series.values())
    failed = sum(window is None for window in windows)
    counts = f"{repeated} repeated because something else ran, {disturbed} kept in spite of it, {failed} failed"
    notes = [f"- {len(windows)} windows; {counts}"]
    taken: dict[str, list[str]] = {}
    for series in results.series.values():
        taken.setdefault(series.taken.partition(",")[0][:_COMMIT_LENGTH], []).append(series.row)
    if len(taken) > 1:
        notes += [f"- taken at {commit}: {', '.join(rows)}" for commit, rows in taken.items()]
    parts.append("\n".join(notes))
    path.write_text(f"{head}{_BEGIN}\n\n" + "\n\n".join(parts) + f"\n\n{_END}{tail}")


def _tables(results: Results) -> list[tuple[str, Rows]]:
    return [
        ("throughput", throughput_rows(results)),
        ("TCP between guests", tcp_rows(results)),
        ("how long frames take", latency_rows(results)),
        ("moves", move_rows(results)),
        ("idle", idle_rows(results)),
    ]


def _series(results: Results, metric: str) -> list[tuple[Row, Series]]:
    """The rows in which somebody has the metric."""
    pairs = [(row, results.series[row.name]) for row in ROWS if row.name in results.series]
    return [(row, series) for row, series in pairs if any(series.values(name, metric) for name in series.windows)]


def _spread(values: Sequence[float], digits: int = 1) -> str:
    if not values:
        return ""
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def _failure(series: Series, name: str) -> str:
    said = series.failures.get(name, "").partition("\n")[0]
    return f"failed: {said.replace('|', '¦')}"


def _table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = Table(title=title)
    for column in head:
        table.add_column(column, justify="left" if column in {"case", "front-end", "who"} else "right")
    for row in rows:
        table.add_row(*map(escape, row))
    return table


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    padded = [[*row, *[""] * (len(head) - len(row))] for row in rows]
    lines = [head, ["---"] * len(head), *padded]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
