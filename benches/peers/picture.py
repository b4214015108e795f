"""Rates and times as a picture: a group of bars a row, a bar a contestant, a line from smallest to largest window.

One section for each kind of number, with a scale of its own. SVG by hand: nothing to install, the same bytes for the
same numbers, readable on light and dark pages.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

from cases import OVS_TSO, ROWS, SWITCHES

if TYPE_CHECKING:
    from pathlib import Path

    from cases import Row
    from results import Results
    from rounds import Series

_COLOURS = dict(zip((*SWITCHES, OVS_TSO), ("#1b7f5c", "#b3552c", "#d99a5b", "#4a6fa5", "#d99a5b"), strict=True))
_OTHERS = ("#1b7f5c", "#58a98b", "#97cdb8")
"""For rows that set ways of using ours side by side."""
_WIDTH, _LEFT, _RIGHT = 900, 330, 90
_BAR, _GAP, _HEAD, _TOP = 13, 3, 18, 44
_TITLE = 46
_STEPS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500)


@dataclass(frozen=True)
class _Section:
    """One kind of number.

    Attributes:
        metric: its name in a window.
        unit: what a mark of the scale is worth, in the metric's own unit.
        title: what is drawn, and in what.
    """

    metric: str
    unit: float
    title: str


_Place = tuple[_Section, int, float]
"""Which section, below which line, and how wide a mark of its scale is."""

_SECTIONS = (
    _Section("pps", 1e6, "Million frames a second through one core: more is better"),
    _Section("bits_per_s", 1e9, "Gbit/s of TCP between two emulated guests: more is better"),
    _Section("p50_us", 1, "Microseconds at the median: less is better"),
    _Section("p99_us", 1, "Microseconds at p99: less is better"),
)


def write(results: Results, path: Path) -> bool:
    """Draws every row that has rates or times; false, and no file, if there is none."""
    body: list[str] = []
    y = _TOP
    for section in _SECTIONS:
        y = _section(body, section, results, y)
    if not body:
        return False
    style = f'width="{_WIDTH}" height="{y + 10}" font-family="sans-serif" font-size="11"'
    frame = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {y + 10}" {style}>',
        f'<rect width="{_WIDTH}" height="{y + 10}" fill="#ffffff"/>',
        '<text x="12" y="22" fill="#555555">bar: median of the windows; line: smallest to largest window</text>',
        *body,
        "</svg>",
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(frame) + "\n")
    return True


def _section(body: list[str], section: _Section, results: Results, y: int) -> int:
    """Adds a section below ``y`` if it has numbers; gives where it ends."""
    pairs = [(row, results.series[row.name]) for row in ROWS if row.is_drawn and row.name in results.series]
    pairs = [(row, s) for row, s in pairs if any(s.values(name, section.metric) for name in s.windows)]
    values = [value for _, s in pairs for name in s.windows for value in s.values(name, section.metric)]
    if not values:
        return y
    most = max(values) / section.unit
    scale = (_WIDTH - _LEFT - _RIGHT) / most
    body.append(f'<text x="12" y="{y + 14}" font-size="14" font-weight="bold">{escape(section.title)}</text>')
    begin = y + _TITLE
    end, groups = begin, list[str]()
    for row, series in pairs:
        end = _group(groups, row, series, (section, end, scale))
    body += [*_grid(most, scale, begin, end), *groups]
    return end + 12


def _group(body: list[str], row: Row, series: Series, place: _Place) -> int:
    """Adds a row's bars; gives where they end."""
    section, y, scale = place
    y += _HEAD
    body.append(f'<text x="12" y="{y - 5}" font-weight="bold">{escape(row.title)} — {escape(row.load)}</text>')
    for number, name in enumerate(series.windows):
        found = [value / section.unit for value in series.values(name, section.metric)]
        middle = y + _BAR / 2
        body.append(f'<text x="{_LEFT - 8}" y="{y + _BAR - 3}" text-anchor="end">{escape(name)}</text>')
        if found:
            low, usual, high = (_LEFT + scale * value for value in (min(found), statistics.median(found), max(found)))
            colour = _COLOURS.get(name, _OTHERS[number % len(_OTHERS)])
            body.append(f'<rect x="{_LEFT}" y="{y}" width="{usual - _LEFT:.1f}" height="{_BAR}" fill="{colour}"/>')
            ends = "".join(f"M{x:.1f} {middle - 3:.1f}v6" for x in (low, high))
            body.append(f'<path d="M{low:.1f} {middle:.1f}H{high:.1f}{ends}" stroke="#222222" fill="none"/>')
            label = f"{statistics.median(found):.2f}"
        else:
            high, label = float(_LEFT), "failed"
        body.append(f'<text x="{high + 6:.1f}" y="{y + _BAR - 3}">{label}</text>')
        y += _BAR + _GAP
    return y + 6


def _grid(most: float, scale: float, top: int, bottom: int) -> list[str]:
    step = next((step for step in _STEPS if most / step <= 8), _STEPS[-1])
    lines = []
    for count in range(1, int(most / step) + 1):
        x = _LEFT + scale * step * count
        lines.append(f'<path d="M{x:.1f} {top}V{bottom}" stroke="#e0e0e0"/>')
        lines.append(f'<text x="{x:.1f}" y="{top - 4}" text-anchor="middle" fill="#555555">{step * count:g}</text>')
    return lines
