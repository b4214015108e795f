"""The schema of one database, ready for use: tables, columns, and who refers to whom.

The text is parsed and judged by ``ovs.db.schema`` of the ``ovs`` package; what stands here is that result with
its types turned into `DatumType`, the two columns every table has (RFC 7047 §3.2: ``_uuid`` and ``_version``),
and lists of the references, which integrity checks walk for every row that changes.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

import ovs.db.error
import ovs.db.schema

from ovsvhost.errors import ConfigError
from ovsvhost.store.server.datum import BaseType, Datum, DatumType

UUID_COLUMN = "_uuid"
VERSION_COLUMN = "_version"


@dataclass(frozen=True, slots=True)
class Column:
    """One column (RFC 7047 §3.2 ``<column-schema>``); an ephemeral one is not written to disk."""

    name: str
    type: DatumType
    is_mutable: bool
    is_persistent: bool


@dataclass(frozen=True, slots=True)
class Reference:
    """A column whose keys (or values) are UUIDs of rows of ``target``."""

    column: str
    target: str
    in_values: bool

    def uuids(self, datum: Datum) -> list[str]:
        """The rows that a value of this column refers to."""
        return list(datum.values() if self.in_values else datum)


@dataclass(slots=True)
class TableSchema:
    """One table (RFC 7047 §3.2 ``<table-schema>``). Rows of a table that is no root live while referred to."""

    name: str
    columns: dict[str, Column]
    is_root: bool
    max_rows: int
    indexes: list[tuple[str, ...]]
    strong: list[Reference] = field(default_factory=list)
    weak: list[Reference] = field(default_factory=list)
    defaults: dict[str, Datum] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Derive what commits and inserts look up."""
        for name, column in self.columns.items():
            self.defaults[name] = column.type.default()
            for base, in_values in ((column.type.key, False), (column.type.value, True)):
                if base is not None and base.ref_table is not None:
                    (self.strong if base.is_strong else self.weak).append(Reference(name, base.ref_table, in_values))


_UUID_TYPE = DatumType(BaseType("uuid"))


class DatabaseSchema:
    """A database's name, version and tables.

    Args:
        text: the schema as JSON, as ``get_schema`` answers it and the log's first record holds it.

    Errors: `ConfigError` if it is no schema.
    """

    def __init__(self, text: dict[str, Any]) -> None:
        try:
            parsed = ovs.db.schema.DbSchema.from_json(text)
        except ovs.db.error.Error as error:
            raise ConfigError(f"not a database schema: {error}") from error
        self.name: str = parsed.name
        self.version: str = parsed.version or ""
        self.checksum: str = text.get("cksum", "")
        self._parsed = parsed
        self.tables = {name: _table(table) for name, table in parsed.tables.items()}
        self.weak_sources: dict[str, list[tuple[str, Reference]]] = {}
        for table in self.tables.values():
            for reference in table.weak:
                self.weak_sources.setdefault(reference.target, []).append((table.name, reference))

    def to_json(self) -> dict[str, Any]:
        """The ``<database-schema>`` of RFC 7047 §3.2, with the checksum that ovsdb-tool checks."""
        text: dict[str, Any] = self._parsed.to_json()
        if self.checksum:
            text["cksum"] = self.checksum
        return text

    def version_key(self) -> tuple[int, ...]:
        """The version as numbers that compare; empty for a schema without one."""
        return tuple(int(part) for part in self.version.split(".")) if self.version else ()


def _table(table: Any) -> TableSchema:
    columns = {
        UUID_COLUMN: Column(UUID_COLUMN, _UUID_TYPE, is_mutable=False, is_persistent=True),
        VERSION_COLUMN: Column(VERSION_COLUMN, _UUID_TYPE, is_mutable=False, is_persistent=False),
    }
    for name, column in table.columns.items():
        columns[name] = Column(name, DatumType.from_ovs(column.type), column.mutable, column.persistent)
    indexes = [tuple(column.name for column in index) for index in table.indexes]
    return TableSchema(table.name, columns, table.is_root, table.max_rows, indexes)


def vswitch_schema() -> DatabaseSchema:
    """The schema of Open vSwitch's own database, version 8.3.1, as ovs-vswitchd.conf.db(5) describes it."""
    text = resources.files("ovsvhost.store").joinpath("vswitch.ovsschema").read_text(encoding="utf-8")
    return DatabaseSchema(json.loads(text))
