"""Tables, columns and records by the names people give them.

Any unique prefix of a table's or column's name will do, in either case, with ``-`` for ``_``; an exact name wins.
Records go by a column that :data:`ROW_IDS` lists (``ovs-vsctl(8)``, "Identifying Tables, Records, and Columns").

:class:`Needs` collects what a command line reads, so that only those columns are asked of the server.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ovs.db import schema

from ovsvhost.errors import ConfigError
from ovsvhost.vsctl.values import token

if TYPE_CHECKING:
    from collections.abc import Iterable


@dataclass(frozen=True, slots=True)
class RowId:
    """One way to name a record.

    Attributes:
        table: the table that holds the name.
        column: its column with the name: a string or an integer.
        reference: the column of ``table`` that refers to the record meant, None if it is that row itself.
    """

    table: str
    column: str
    reference: str | None = None


ROW_IDS: dict[str, RowId] = {
    "AutoAttach": RowId("Bridge", "name", "auto_attach"),
    "Bridge": RowId("Bridge", "name"),
    "Controller": RowId("Bridge", "name", "controller"),
    "Flow_Sample_Collector_Set": RowId("Flow_Sample_Collector_Set", "id"),
    "Flow_Table": RowId("Flow_Table", "name"),
    "IPFIX": RowId("Bridge", "name", "ipfix"),
    "Interface": RowId("Interface", "name"),
    "Manager": RowId("Manager", "target"),
    "Mirror": RowId("Mirror", "name"),
    "NetFlow": RowId("Bridge", "name", "netflow"),
    "Port": RowId("Port", "name"),
    "QoS": RowId("Port", "name", "qos"),
    "sFlow": RowId("Bridge", "name", "sflow"),
}


@cache
def vswitch_schema() -> Any:
    """The ``Open_vSwitch`` schema that is shipped with this package, an ``ovs.db.schema.DbSchema``."""
    # Beside this package, not through importlib.resources: that costs more to import than the schema to read.
    path = Path(__file__).parent.with_name("store") / "vswitch.ovsschema"
    return schema.DbSchema.from_json(json.loads(path.read_text(encoding="utf-8")))


def table_named(name: str) -> Any:
    """The one table that a name or prefix means.

    Raises:
        ConfigError: no table matches, or several do.
    """
    tables = vswitch_schema().tables
    best = _best_matches(tables, name)
    if not best:
        raise ConfigError(f'unknown table "{name}"')
    if len(best) > 1:
        raise ConfigError(f'"{name}" matches multiple table names: {", ".join(sorted(best))}')
    return tables[best[0]]


def column_named(table: Any, name: str) -> Any:
    """The one column of a table that a name or prefix means.

    Raises:
        ConfigError: no column matches, or several do.
    """
    best = _best_matches(table.columns, name)
    if not best:
        raise ConfigError(f'{table.name} does not contain a column whose name matches "{name}"')
    if len(best) > 1:
        raise ConfigError(
            f'{table.name} contains more than one column whose name matches "{name}": {", ".join(sorted(best))}',
        )
    return table.columns[best[0]]


def columns_named(table: Any, names: str | None) -> list[Any]:
    """The columns of ``--columns=a,b``, or all of a table's; None among them stands for ``_uuid``.

    Raises:
        ConfigError: a name does not match, or there is none.
    """
    if names is None:
        return [None, *(table.columns[name] for name in sorted(table.columns))]
    words = names.replace(",", " ").split()
    if not words:
        raise ConfigError("must specify at least one column name")
    return [None if word.lower() == "_uuid" else column_named(table, word) for word in words]


class Needs:
    """The tables and columns that a command line reads or writes.

    Attributes:
        columns: per table, the names of its columns; empty if only the rows' existence matters.
    """

    def __init__(self) -> None:
        self.columns: dict[str, set[str]] = {}

    def add(self, table: str, *columns: str) -> None:
        """Asks for a table and some of its columns, by their full names."""
        self.columns.setdefault(table, set()).update(columns)

    def records(self, name: str) -> Any:
        """Asks for what it takes to find records of a table that the user named.

        Returns:
            The table.

        Raises:
            ConfigError: the name does not mean one table.
        """
        table = table_named(name)
        self.add(table.name)
        row_id = ROW_IDS.get(table.name)
        if row_id is not None:
            self.add(row_id.table, row_id.column, *([row_id.reference] if row_id.reference else []))
        return table

    def settings(self, table: Any, arguments: Iterable[str]) -> None:
        """Asks for the columns of arguments like ``COLUMN[:KEY]=VALUE``.

        Raises:
            ConfigError: an argument does not start with the name of a column.
        """
        for argument in arguments:
            name, _ = token(argument)
            if not name:
                raise ConfigError(f"{argument}: missing column name")
            self.add(table.name, column_named(table, name).name)


def _best_matches(names: Iterable[str], typed: str) -> list[str]:
    """The names that match best: the exact one, else the one that differs in case only, else by prefix."""
    if typed in names:
        return [typed]
    wanted = _folded(typed)
    same = [name for name in names if _folded(name) == wanted]
    return same or [name for name in names if wanted and _folded(name).startswith(wanted)]


def _folded(name: str) -> str:
    return name.replace("-", "_").lower()
