"""The rows of one table as they are now, with what a commit has to look up quickly.

A `Row` is changed only by the transaction that copied or inserted it; once committed it is never touched again. So
a monitor that has not yet told its client may simply keep the row that was, and nothing is copied for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ovsvhost.store.server.error import syntax_error
from ovsvhost.store.server.schema import UUID_COLUMN, Column, TableSchema

if TYPE_CHECKING:
    from ovsvhost.store.server.datum import Datum


class Row:
    """One row: every column of its table, ``_uuid`` and ``_version`` included.

    Args:
        uuid: the row's name, which never changes.
        fields: column name → datum; the dict belongs to the row, the datums may be shared.
    """

    __slots__ = ("fields", "uuid")

    def __init__(self, uuid: str, fields: dict[str, Datum]) -> None:
        self.uuid = uuid
        self.fields = fields

    def copy(self) -> Row:
        """A row that may be changed without this one changing."""
        return Row(self.uuid, dict(self.fields))


class Table:
    """One table's rows, its indexes, and how many strong references each row has.

    ``rows`` already shows what the running transaction did; ``indexes`` and ``references`` only what is committed.
    """

    def __init__(self, schema: TableSchema) -> None:
        self.schema = schema
        self.name = schema.name
        self.rows: dict[str, Row] = {}
        self.references: dict[str, int] = {}
        self.indexes: list[dict[tuple[Any, ...], str]] = [{} for _ in schema.indexes]

    def new_row(self, uuid: str) -> Row:
        """A row of default values; it is not in the table yet."""
        fields = dict(self.schema.defaults)
        fields[UUID_COLUMN] = {uuid: None}
        return Row(uuid, fields)

    def column(self, name: Any, syntax: Any) -> Column:
        """The column called ``name``. Errors: `OvsdbError` quoting ``syntax``."""
        column = self.schema.columns.get(name)
        if column is None:
            raise syntax_error(syntax, f"No column {name} in table {self.name}.", tag="unknown column")
        return column

    def columns_from_json(self, json: Any) -> list[Column]:
        """The columns a client asks for: a list of names, or None for all of them (RFC 7047 §5.2.2)."""
        columns = self.schema.columns
        if json is None:
            return list(columns.values())
        if type(json) is not list or not all(type(name) is str for name in json):
            raise syntax_error(json, "array of distinct column names expected")
        for name in json:
            if name not in columns:
                raise syntax_error(json, f"{name} is not a valid column name")
        if len(set(json)) != len(json):
            raise syntax_error(json, "array of distinct column names expected")
        return [columns[name] for name in json]


def frozen(datum: Datum) -> Any:
    """A hashable, ordered form of a datum, for indexes, distinct rows and sorting."""
    return tuple(sorted(datum.items())) if datum and None not in datum.values() else tuple(sorted(datum))


def row_key(row: Row, columns: tuple[str, ...]) -> tuple[Any, ...]:
    """What two rows have in common exactly when they agree in ``columns``."""
    return tuple(frozen(row.fields[name]) for name in columns)
