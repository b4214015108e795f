"""Everything found out so far, and its JSON: written after every row, read again to be merged.

A row that was measured again replaces the older one; the others stay, each with the commit and time of its own.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cases import ROWS
from rounds import Series

if TYPE_CHECKING:
    from pathlib import Path


@dataclass
class Results:
    """What one or more runs found out.

    Attributes:
        conditions: machine, versions and settings of the last run, as words.
        series: windows by row, in the order of the table.
    """

    conditions: dict[str, str] = field(default_factory=dict)
    series: dict[str, Series] = field(default_factory=dict)

    def put(self, series: Series) -> None:
        """Adds a row, or replaces it."""
        self.series[series.row] = series
        order = [row.name for row in ROWS]
        self.series = dict(sorted(self.series.items(), key=lambda entry: order.index(entry[0])))

    def merge(self, path: Path) -> None:
        """Takes over the rows of another run's JSON, in place of those it also has. Rows of old are left out."""
        document = json.loads(path.read_text())
        self.conditions = document["conditions"] | self.conditions
        known = {row.name for row in ROWS}
        for entry in document["series"]:
            if entry["row"] in known:
                entry.pop("ratios", None)
                self.put(Series(**entry))

    def write(self, path: Path) -> None:
        """All numbers, window by window, and the ratios of the goals. Whole or not at all."""
        entries = []
        for row in ROWS:
            if (series := self.series.get(row.name)) is None:
                continue
            ratios = {
                f"{goal.metric}: {goal.of} / {goal.by}": series.ratios(goal.metric, goal.of, goal.by)
                for goal in row.goals
                if goal.by is not None
            }
            entries.append(dataclasses.asdict(series) | {"ratios": ratios})
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_name(path.name + ".new")
        new.write_text(json.dumps({"conditions": self.conditions, "series": entries}, indent=2) + "\n")
        new.replace(path)
