"""What must hold between rows when a transaction ends, in ovsdb-server's order.

1. *References*: a strong reference names a row that is there, and no row goes while one is left (RFC 7047 §3.2).
2. *Garbage*: a row of a table that is no root goes with its last reference, and so on down.
3. *Size*: ``maxRows``.
4. *Weak references* to rows that are not there vanish; a column may become too small by that.
5. *Indexes*: no two rows with the same values.

Only rows that the transaction touched are walked, and of a changed set only what was added or removed: a port more on
a bridge of a thousand costs the same as the first one. Deleting from a table that is the target of weak references
walks the tables that hold them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ovsvhost.store.server.datum import ZERO_UUID, Datum
from ovsvhost.store.server.error import OvsdbError, constraint_violation
from ovsvhost.store.server.table import Row, Table, row_key

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ovsvhost.store.server.schema import Reference
    from ovsvhost.store.server.transaction import Change, Transaction


def check(transaction: Transaction) -> None:
    """Complete the transaction and judge it. Errors: `OvsdbError` for the first broken rule."""
    _count_references(transaction)
    _collect_garbage(transaction)
    for table, _ in transaction.changes_by_table():
        if len(table.rows) > table.schema.max_rows:
            raise constraint_violation(
                f'transaction causes "{table.name}" table to contain {len(table.rows)} rows, '
                f"greater than the schema-defined limit of {table.schema.max_rows} row(s)"
            )
    _drop_dangling_weak_references(transaction)
    _check_indexes(transaction)


def _members_not_in(datum: Datum, other: Datum) -> Datum:
    return {k: v for k, v in datum.items() if k not in other or other[k] != v}


def _references_lost_and_gained(change: Change) -> Iterator[tuple[Reference, list[str], list[str]]]:
    for reference in change.table.schema.strong:
        name = reference.column
        old = change.old.fields[name] if change.old is not None else {}
        new = change.new.fields[name] if change.new is not None else {}
        if old is not new:
            lost = reference.uuids(_members_not_in(old, new))
            yield reference, lost, reference.uuids(_members_not_in(new, old))


def _count_references(transaction: Transaction) -> None:
    for change in transaction.changes():
        for reference, lost, gained in _references_lost_and_gained(change):
            target = transaction.tables[reference.target]
            for uuid in lost:
                if uuid != change.uuid:
                    transaction.count_references(target, uuid, -1)
            for uuid in gained:
                if uuid == change.uuid:
                    continue
                if uuid not in target.rows and transaction.change_of(target, uuid) is None:
                    raise OvsdbError(
                        f"Table {change.table.name} column {reference.column} row {change.uuid} references "
                        f"nonexistent row {uuid} in table {target.name}.",
                        tag="referential integrity violation",
                    )
                transaction.count_references(target, uuid, +1)
    for change in transaction.changes():
        if change.new is None:
            left = transaction.count_references(change.table, change.uuid)
            if left:
                raise OvsdbError(
                    f"cannot delete {change.table.name} row {change.uuid} because of {left} remaining reference(s)",
                    tag="referential integrity violation",
                )


def _collect_garbage(transaction: Transaction) -> None:
    suspects = [(change.table, change.uuid) for change in transaction.changes() if change.new is not None]
    suspects += transaction.rows_with_fewer_references()
    while suspects:
        table, uuid = suspects.pop()
        row = table.rows.get(uuid)
        if table.schema.is_root or row is None or transaction.count_references(table, uuid):
            continue
        transaction.delete(table, row)
        for reference in table.schema.strong:
            target = transaction.tables[reference.target]
            for target_uuid in reference.uuids(row.fields[reference.column]):
                if target_uuid != uuid:
                    transaction.count_references(target, target_uuid, -1)
                    suspects.append((target, target_uuid))


def _drop_dangling_weak_references(transaction: Transaction) -> None:
    for source, row in _rows_that_point_at_deleted_ones(transaction):
        transaction.modify(source, row)
    for change in list(transaction.changes()):
        if change.new is not None and change.table.schema.weak:
            _drop_in_row(transaction, change, change.new)
            change.compare()
            if change.old is not None and not change.columns:
                transaction.forget(change)


def _rows_that_point_at_deleted_ones(transaction: Transaction) -> list[tuple[Table, Row]]:
    found = []
    for table, by_uuid in transaction.changes_by_table():
        deleted = {uuid for uuid, change in by_uuid.items() if change.new is None}
        if not deleted:
            continue
        for source_name, reference in transaction.schema.weak_sources.get(table.name, ()):
            source = transaction.tables[source_name]
            found += [
                (source, row)
                for row in source.rows.values()
                if not deleted.isdisjoint(reference.uuids(row.fields[reference.column]))
            ]
    return found


def _drop_in_row(transaction: Transaction, change: Change, new: Row) -> None:
    schema = change.table.schema
    for name in {reference.column for reference in schema.weak}:
        datum = new.fields[name]
        kept = datum
        for reference in schema.weak:
            if reference.column == name:
                rows = transaction.tables[reference.target].rows
                kept = {k: v for k, v in kept.items() if (v if reference.in_values else k) in rows}
        if len(kept) == len(datum):
            continue
        new.fields[name] = kept
        if len(kept) >= schema.columns[name].type.n_min:
            continue
        if change.old is None and ZERO_UUID in datum:
            raise constraint_violation(
                f'Weak reference column "{name}" in "{schema.name}" row {change.uuid} (inserted within this '
                "transaction) contained all-zeros UUID (probably as the default value for this column) but deleting "
                "this value caused a constraint volation because this column is not allowed to be empty."
            )
        where = "" if change.old is not None else "(inserted within this transaction) "
        raise constraint_violation(
            f"Deletion of {len(datum) - len(kept)} weak reference(s) to deleted (or never-existing) rows from column "
            f'"{name}" in "{schema.name}" row {change.uuid} {where}caused this column to become empty, but '
            "constraints on this column disallow an empty column."
        )


def _check_indexes(transaction: Transaction) -> None:
    for table, by_uuid in transaction.changes_by_table():
        for number, columns in enumerate(table.schema.indexes):
            seen: dict[object, Change] = {}
            for change in by_uuid.values():
                if change.new is None:
                    continue
                key = row_key(change.new, columns)
                other = seen.setdefault(key, change)
                if other is not change:
                    raise _duplicate(table, columns, other, change)
                uuid = table.indexes[number].get(key)
                if uuid is not None and uuid not in by_uuid:
                    raise _duplicate(table, columns, uuid, change)


def _duplicate(table: Table, columns: tuple[str, ...], first: Change | str, second: Change) -> OvsdbError:
    row = second.new
    values = [] if row is None else [table.schema.columns[name].type.text(row.fields[name]) for name in columns]
    quoted = [f'"{name}"' for name in columns]
    noun = "column" if len(columns) == 1 else "columns"
    return constraint_violation(
        f'Transaction causes multiple rows in "{table.name}" table to have identical values ({_listed(values)}) '
        f"for index on {noun} {_listed(quoted)}.  First row, with UUID {_origin(columns, first)}  "
        f"Second row, with UUID {_origin(columns, second)}"
    )


def _listed(words: list[str]) -> str:
    if len(words) < 3:
        return " and ".join(words)
    return ", ".join(words[:-1]) + ", and " + words[-1]


def _origin(columns: tuple[str, ...], change: Change | str) -> str:
    if isinstance(change, str):
        return f"{change}, existed in the database before this transaction and was not modified by the transaction."
    if change.old is None:
        return f"{change.uuid}, was inserted by this transaction."
    if not change.columns.intersection(columns):
        return (
            f"{change.uuid}, existed in the database before this transaction, which modified some of the row's columns "
            "but not any columns in this index."
        )
    types = change.table.schema.columns
    values = [types[name].type.text(change.old.fields[name]) for name in columns]
    return f"{change.uuid}, had the following index values before the transaction: {_listed(values)}."
