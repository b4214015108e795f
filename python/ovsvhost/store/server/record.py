"""A transaction as the log has it (ovsdb(5), *Database Format*), and back.

::

    {"<table>": {"<row uuid>": {"<column>": <value>, ...} | null, ...}, ...,
     "_date": <ms since 1970>, "_comment": "...", "_is_diff": true}

A new row has its columns that differ from the default; a modified one what `DatumType.diff` gives, since ``_is_diff``
is set; a deleted one is null. Ephemeral columns are left out, so statistics cost no disk.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from ovsvhost.store.server.datum import uuid_from_text
from ovsvhost.store.server.error import syntax_error
from ovsvhost.store.server.schema import UUID_COLUMN

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ovsvhost.store.server.table import Row, Table
    from ovsvhost.store.server.transaction import Change, Transaction

_ANNOTATIONS = ("_date", "_comment", "_is_diff")


def annotate(record: dict[str, Any], comment: str) -> dict[str, Any]:
    """Add when and why to a record; it is changed and returned."""
    if comment:
        record["_comment"] = comment
    record["_is_diff"] = True
    record["_date"] = time.time_ns() // 1_000_000
    return record


def record_of_changes(changes: Iterable[Change]) -> dict[str, Any]:
    """What the log needs of these changes; empty if only ephemeral columns changed."""
    record: dict[str, Any] = {}
    for change in changes:
        if change.new is None:
            row: dict[str, Any] | None = None
        elif change.old is None:
            row = _new_row(change.table, change.new)
        else:
            row = _modified_row(change.table, change.old, change.new, change.columns)
            if not row:
                continue
        record.setdefault(change.table.name, {})[change.uuid] = row
    return record


def record_of_tables(tables: Iterable[Table]) -> dict[str, Any]:
    """One record that makes all rows out of nothing."""
    return {
        table.name: {row.uuid: _new_row(table, row) for row in table.rows.values()} for table in tables if table.rows
    }


def _new_row(table: Table, row: Row) -> dict[str, Any]:
    defaults = table.schema.defaults
    return {
        name: column.type.to_json(row.fields[name])
        for name, column in table.schema.columns.items()
        if column.is_persistent and name != UUID_COLUMN and row.fields[name] != defaults[name]
    }


def _modified_row(table: Table, old: Row, new: Row, names: Iterable[str]) -> dict[str, Any]:
    row = {}
    for name in names:
        column = table.schema.columns[name]
        if not column.is_persistent:
            continue
        was, datum = old.fields[name], new.fields[name]
        # Readers take the value whole where the old one was the default.
        if was != table.schema.defaults[name]:
            datum = column.type.diff(was, datum)
        row[name] = column.type.to_json(datum)
    return row


def apply_record(transaction: Transaction, record: dict[str, Any], *, ignore_unknown: bool = False) -> None:
    """Do again what a record says.

    Args:
        transaction: where to do it.
        record: as the log has it.
        ignore_unknown: skip tables and columns that the schema does not have, for a conversion.

    Errors: `OvsdbError` if it does not fit the schema or the rows.
    """
    is_diff = record.get("_is_diff") is True
    for name, rows in record.items():
        table = transaction.tables.get(name)
        if table is None:
            if name in _ANNOTATIONS or ignore_unknown:
                continue
            raise syntax_error(None, f"No table named {name}.", tag="unknown table")
        if type(rows) is not dict:
            raise syntax_error(rows, "object expected")
        for text, columns in rows.items():
            uuid = uuid_from_text(text)
            if uuid is None:
                raise syntax_error(text, f'"{text}" is not a valid UUID')
            _apply_row(transaction, table, uuid, columns, is_diff=is_diff, ignore_unknown=ignore_unknown)


def _apply_row(
    transaction: Transaction, table: Table, uuid: str, columns: Any, *, is_diff: bool, ignore_unknown: bool
) -> None:
    row = table.rows.get(uuid)
    if columns is None:
        if row is None:
            raise syntax_error(None, f"transaction deletes row {uuid} that does not exist")
        transaction.delete(table, row)
        return
    if type(columns) is not dict:
        raise syntax_error(columns, "row must be JSON object")
    is_new = row is None
    target = table.new_row(uuid) if row is None else transaction.modify(table, row)
    for name, json in columns.items():
        if ignore_unknown and name not in table.schema.columns:
            continue
        type_ = table.column(name, columns).type
        old = target.fields[name]
        if is_diff and old != table.schema.defaults[name]:
            target.fields[name] = type_.apply_diff(old, type_.relaxed(n_min=0, n_max=2**63).parse(json))
        else:
            target.fields[name] = type_.parse(json)
    if is_new:
        transaction.insert(table, target)
