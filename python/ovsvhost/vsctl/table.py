"""Tables as ``list`` and ``find`` print them: for people, for spreadsheets, for programs."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ovsvhost.vsctl.datum import UUID_TEXT, Datum, json_text

if TYPE_CHECKING:
    from collections.abc import Callable

FORMATS = ("table", "list", "html", "csv", "json")
DATA_FORMATS = ("string", "bare", "json")

_HEADING_WIDTH = 20
_SELF_DELIMITED = frozenset({"html", "json"})


@dataclass(slots=True)
class Style:
    """How tables are printed.

    Attributes:
        format: one of :data:`FORMATS`.
        data: one of :data:`DATA_FORMATS`, how a cell is printed.
        headings: whether to print the columns' names.
        pretty: whether JSON is indented.
        max_column_width: characters to cut a column of format ``table`` to; 0 for no limit.
    """

    format: str = "list"
    data: str = "string"
    headings: bool = True
    pretty: bool = False
    max_column_width: int = 0


@dataclass(frozen=True, slots=True)
class Cell:
    """A value with the ``ovs.db.types.Type`` that says how to print it."""

    value: Datum
    type: Any

    def text(self, style: Style) -> str:
        """The value in the style's data format."""
        if style.data == "json":
            return json_text(self.value.wire(self.type))
        return self.value.bare() if style.data == "bare" else self.value.text(self.type)


@dataclass(slots=True)
class Table:
    """Columns with headings, and rows of cells.

    Attributes:
        headings: the columns' names.
        rows: the cells, as many in each row as there are headings.
    """

    headings: list[str]
    rows: list[list[Cell]] = field(default_factory=list)


def render(table: Table, style: Style, *, first: bool) -> str:
    """A table's printed form; a table that is not the first is kept apart from the one before it."""
    gap = "" if first or style.format in _SELF_DELIMITED else "\n"
    return gap + _RENDERERS[style.format](table, style)


def _as_list(table: Table, style: Style) -> str:
    return "\n".join(
        "".join(
            (f"{heading:<{_HEADING_WIDTH}}: " if style.headings else "") + cell.text(style) + "\n"
            for heading, cell in zip(table.headings, row, strict=True)
        )
        for row in table.rows
    )


def _as_table(table: Table, style: Style) -> str:
    rows = [[cell.text(style) for cell in row] for row in table.rows]
    widths: list[int] = []
    for at, heading in enumerate(table.headings):
        width = max((_octets(row[at]) for row in rows), default=0)
        if style.max_column_width:
            width = min(width, style.max_column_width)
        widths.append(max(width, len(heading)) if style.headings else width)
    lines = [_padded(row, widths) for row in rows]
    if style.headings:
        lines = [_padded(table.headings, widths), " ".join("-" * width for width in widths), *lines]
    return "".join(f"{line.rstrip(' ')}\n" for line in lines)


def _octets(text: str) -> int:
    return len(text.encode())


def _padded(words: list[str], widths: list[int]) -> str:
    # Widths count bytes, as printf's do, so that both tools print alike.
    cut = (word.encode()[:width].ljust(width) for word, width in zip(words, widths, strict=True))
    return b" ".join(cut).decode(errors="replace")


def _as_html(table: Table, style: Style) -> str:
    out = ["<table border=1>\n"]
    if style.headings:
        cells = "".join(_html_cell("th", heading) for heading in table.headings)
        out.append(f"  <tr>\n{cells}  </tr>\n")
    for row in table.rows:
        out.append("  <tr>\n")
        for heading, cell in zip(table.headings, row, strict=True):
            text = cell.text(style)
            if heading == "_uuid":
                out.append(f'    <td><a name="{_html(text)}">{_html(text[:8])}</a></td>\n')
            else:
                out.append(_html_cell("td", text))
        out.append("  </tr>\n")
    out.append("</table>\n")
    return "".join(out)


def _html(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace('"', "&quot;")


def _html_cell(element: str, text: str) -> str:
    # A uuid links to the row that it names.
    parts = re.split(f"({UUID_TEXT.pattern})", text)
    linked = (f'<a href="#{part}">{part[:8]}</a>' if at % 2 else _html(part) for at, part in enumerate(parts))
    return f"    <{element}>{''.join(linked)}</{element}>\n"


def _as_csv(table: Table, style: Style) -> str:
    lines = [[cell.text(style) for cell in row] for row in table.rows]
    if style.headings:
        lines.insert(0, table.headings)
    return "".join(",".join(_csv(word) for word in line) + "\n" for line in lines)


def _csv(text: str) -> str:
    return '"' + text.replace('"', '""') + '"' if re.search('[\n",]', text) else text


def _as_json(table: Table, style: Style) -> str:
    data = [[cell.value.wire(cell.type) for cell in row] for row in table.rows]
    return json_text({"headings": table.headings, "data": data}, pretty=style.pretty) + "\n"


_RENDERERS: dict[str, Callable[[Table, Style], str]] = {
    "csv": _as_csv,
    "html": _as_html,
    "json": _as_json,
    "list": _as_list,
    "table": _as_table,
}
