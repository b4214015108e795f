"""One transaction: what it changed, and the way back.

Operations work on the tables themselves, so each sees what the ones before it did (RFC 7047 §4.1.3); the
transaction remembers the row that was. In the end either `settle` approves, the log has the record and `finish`
brings indexes and counts up to date, or `abort` puts every old row back::

    insert, modify, delete ──▶ settle ──▶ (log) ──▶ finish
             │                   │           │
             └───────────────────┴───────────┴─────▶ abort

There is one transaction at a time: the server is one thread, and a transaction never waits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ovsvhost.store.server import integrity
from ovsvhost.store.server.datum import new_uuid
from ovsvhost.store.server.schema import VERSION_COLUMN, DatabaseSchema
from ovsvhost.store.server.table import Row, Table, row_key

if TYPE_CHECKING:
    from collections.abc import Iterator


class Change:
    """What a transaction did to one row: inserted (no ``old``), deleted (no ``new``) or modified it.

    ``columns`` names what differs; it is filled by `Transaction.settle`, and for a modified row only.
    """

    __slots__ = ("columns", "new", "old", "table", "uuid")

    def __init__(self, table: Table, uuid: str, old: Row | None, new: Row | None) -> None:
        self.table = table
        self.uuid = uuid
        self.old = old
        self.new = new
        self.columns: set[str] = set()

    def compare(self) -> None:
        """Find the columns in which ``old`` and ``new`` differ."""
        if self.old is None or self.new is None:
            return
        old, new = self.old.fields, self.new.fields
        # Rows start as copies, so an untouched column is the very same object.
        self.columns = {name for name, datum in new.items() if datum is not old[name] and datum != old[name]}


class Transaction:
    """The changes since the last commit.

    Args:
        schema: the database's schema.
        tables: its tables, which the transaction changes.
    """

    def __init__(self, schema: DatabaseSchema, tables: dict[str, Table]) -> None:
        self.schema = schema
        self.tables = tables
        self.comments: list[str] = []
        self.is_durable = False
        self._changes: dict[str, dict[str, Change]] = {}
        self._reference_deltas: dict[str, dict[str, int]] = {}

    def changes(self) -> Iterator[Change]:
        """Every row that was touched."""
        for by_uuid in self._changes.values():
            yield from by_uuid.values()

    def changes_by_table(self) -> Iterator[tuple[Table, dict[str, Change]]]:
        """The touched rows of each touched table."""
        for name, by_uuid in self._changes.items():
            yield self.tables[name], by_uuid

    def change_of(self, table: Table, uuid: str) -> Change | None:
        """What happened to one row, or None."""
        return self._changes.get(table.name, {}).get(uuid)

    def may_create(self, table: Table, uuid: str) -> bool:
        """Whether a new row may have this UUID: neither in use nor deleted in this very transaction."""
        return uuid not in table.rows and self.change_of(table, uuid) is None

    def insert(self, table: Table, row: Row) -> None:
        """Add ``row``, which is the transaction's from now on."""
        row.fields[VERSION_COLUMN] = {new_uuid(): None}
        table.rows[row.uuid] = row
        self._changes.setdefault(table.name, {})[row.uuid] = Change(table, row.uuid, None, row)

    def modify(self, table: Table, row: Row) -> Row:
        """The row to write into: ``row`` itself if this transaction made it, else a copy in its place."""
        by_uuid = self._changes.setdefault(table.name, {})
        change = by_uuid.get(row.uuid)
        if change is not None and change.new is not None:
            return change.new
        new = row.copy()
        by_uuid[row.uuid] = Change(table, row.uuid, row, new)
        table.rows[row.uuid] = new
        return new

    def delete(self, table: Table, row: Row) -> None:
        """Take ``row`` away; a row this transaction inserted is forgotten."""
        del table.rows[row.uuid]
        by_uuid = self._changes.setdefault(table.name, {})
        change = by_uuid.get(row.uuid)
        if change is None:
            by_uuid[row.uuid] = Change(table, row.uuid, row, None)
        elif change.old is None:
            del by_uuid[row.uuid]
        else:
            change.new = None

    def forget(self, change: Change) -> None:
        """Drop a change that changes nothing; the old row comes back."""
        del self._changes[change.table.name][change.uuid]
        if change.old is not None:
            change.table.rows[change.uuid] = change.old

    def count_references(self, table: Table, uuid: str, delta: int = 0) -> int:
        """The strong references to a row, after adding ``delta`` to them."""
        deltas = self._reference_deltas.setdefault(table.name, {})
        if delta:
            deltas[uuid] = deltas.get(uuid, 0) + delta
        return table.references.get(uuid, 0) + deltas.get(uuid, 0)

    def rows_with_fewer_references(self) -> Iterator[tuple[Table, str]]:
        """Rows that lost references so far."""
        for name, deltas in self._reference_deltas.items():
            for uuid, delta in deltas.items():
                if delta < 0:
                    yield self.tables[name], uuid

    def settle(self) -> list[Change]:
        """Check everything that holds between rows, and find out what really changed.

        Returns:
            The changes to write and to tell; empty if the transaction did nothing.

        Errors: `OvsdbError` for a broken rule; the caller has to `abort`.
        """
        for change in list(self.changes()):
            change.compare()
            if change.old is not None and change.new is not None and not change.columns:
                self.forget(change)
        if any(self._changes.values()):
            integrity.check(self)
        changes = list(self.changes())
        for change in changes:
            if change.new is not None and change.columns:
                change.new.fields[VERSION_COLUMN] = {new_uuid(): None}
                change.columns.add(VERSION_COLUMN)
        return changes

    def finish(self) -> None:
        """Make the changes the committed state: indexes and reference counts follow. Cannot fail."""
        for table, by_uuid in self.changes_by_table():
            for number, columns in enumerate(table.schema.indexes):
                index = table.indexes[number]
                moved = [
                    c for c in by_uuid.values() if c.old is None or c.new is None or c.columns.intersection(columns)
                ]
                for change in moved:
                    if change.old is not None:
                        index.pop(row_key(change.old, columns), None)
                for change in moved:
                    if change.new is not None:
                        index[row_key(change.new, columns)] = change.uuid
        for name, deltas in self._reference_deltas.items():
            table = self.tables[name]
            for uuid, delta in deltas.items():
                count = table.references.get(uuid, 0) + delta
                if count and uuid in table.rows:
                    table.references[uuid] = count
                else:
                    table.references.pop(uuid, None)

    def abort(self) -> None:
        """Put everything back as it was before the transaction. Cannot fail."""
        for change in self.changes():
            if change.old is None:
                change.table.rows.pop(change.uuid, None)
            else:
                change.table.rows[change.uuid] = change.old
        self._changes.clear()
        self._reference_deltas.clear()
