"""The rates as a picture: one group of bars a row, a bar a contestant, a line from its slowest to its fastest window.

SVG by hand: nothing to install, the same bytes for the same numbers, readable on light and dark pages.
"""

from __future__ import annotations

import statistics
from html import escape
from typing import TYPE_CHECKING

from cases import ROWS, SWITCHES

if TYPE_CHECKING:
    from pathlib import Path

    from cases import Row
    from results import Results
    from rounds import Series

_COLOURS = dict(zip(SWITCHES, ("#1b7f5c", "#b3552c", "#d99a5b", "#4a6fa5"), strict=True))
_OTHERS = ("#1b7f5c", "#58a98b", "#97cdb8")
"""For rows that set ways of using ours side by side."""
_WIDTH, _LEFT, _RIGHT = 900, 330, 90
_BAR, _GAP, _HEAD, _TOP = 13, 3, 18, 56
_GRID_MPPS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50)


def write(results: Results, path: Path) -> bool:
    """Draws every row that has rates; false, and no file, if there is none."""
    pairs = [(row, results.series[row.name]) for row in ROWS if row.name in results.series]
    pairs = [(row, series) for row, series in pairs if any(series.values(name, "pps") for name in series.windows)]
    if not pairs:
        return False
    most = max(max(series.values(name, "pps"), default=0) for _, series in pairs for name in series.windows) / 1e6
    scale = (_WIDTH - _LEFT - _RIGHT) / most
    body: list[str] = []
    y = _TOP
    for row, series in pairs:
        y = _group(body, row, series, y, scale)
    style = f'width="{_WIDTH}" height="{y + 10}" font-family="sans-serif" font-size="11"'
    frame = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {y + 10}" {style}>',
        f'<rect width="{_WIDTH}" height="{y + 10}" fill="#ffffff"/>',
        '<text x="12" y="20" font-size="14" font-weight="bold">Million frames a second through one core</text>',
        '<text x="12" y="38" fill="#555555">bar: median of the windows; line: slowest to fastest window</text>',
        *_grid(most, scale, y),
        *body,
        "</svg>",
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(frame) + "\n")
    return True


def _group(body: list[str], row: Row, series: Series, y: int, scale: float) -> int:
    """Adds a row's bars below ``y``; gives where they end."""
    y += _HEAD
    body.append(f'<text x="12" y="{y - 5}" font-weight="bold">{escape(row.title)} — {escape(row.load)}</text>')
    for number, name in enumerate(series.windows):
        rates = [value / 1e6 for value in series.values(name, "pps")]
        middle = y + _BAR / 2
        body.append(f'<text x="{_LEFT - 8}" y="{y + _BAR - 3}" text-anchor="end">{escape(name)}</text>')
        if rates:
            low, rate, high = (_LEFT + scale * value for value in (min(rates), statistics.median(rates), max(rates)))
            colour = _COLOURS.get(name, _OTHERS[number % len(_OTHERS)])
            body.append(f'<rect x="{_LEFT}" y="{y}" width="{rate - _LEFT:.1f}" height="{_BAR}" fill="{colour}"/>')
            ends = "".join(f"M{x:.1f} {middle - 3:.1f}v6" for x in (low, high))
            body.append(f'<path d="M{low:.1f} {middle:.1f}H{high:.1f}{ends}" stroke="#222222" fill="none"/>')
            label = f"{statistics.median(rates):.2f}"
        else:
            high, label = float(_LEFT), "failed"
        body.append(f'<text x="{high + 6:.1f}" y="{y + _BAR - 3}">{label}</text>')
        y += _BAR + _GAP
    return y + 6


def _grid(most: float, scale: float, bottom: int) -> list[str]:
    step = next((step for step in _GRID_MPPS if most / step <= 8), _GRID_MPPS[-1])
    lines = []
    for count in range(1, int(most / step) + 1):
        x = _LEFT + scale * step * count
        lines.append(f'<path d="M{x:.1f} {_TOP}V{bottom}" stroke="#e0e0e0"/>')
        lines.append(f'<text x="{x:.1f}" y="{_TOP - 4}" text-anchor="middle" fill="#555555">{step * count:g}</text>')
    return lines
