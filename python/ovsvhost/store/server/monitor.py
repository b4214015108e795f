"""Telling a client what changed.

``monitor`` is RFC 7047 §4.1.5; ``monitor_cond`` and ``monitor_cond_since`` are ovsdb-server(7)'s.

A commit does not write to the client; it notes for each monitored row what it was and what it is. When the client can
take more, the note becomes one update. A client that reads slowly therefore costs one pair of rows for each row that
changed, however often it changed, and never the server's memory::

    commit ──▶ note: (table, row) → was, is ──▶ flush ──▶ update | update2 | update3
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ovsvhost.store.server.condition import Condition
from ovsvhost.store.server.datum import ZERO_UUID
from ovsvhost.store.server.error import syntax_error
from ovsvhost.store.server.operation import Members
from ovsvhost.store.server.schema import UUID_COLUMN

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ovsvhost.store.server.database import Database
    from ovsvhost.store.server.table import Row, Table
    from ovsvhost.store.server.transaction import Change

_EVENTS = ("initial", "insert", "delete", "modify")
_METHODS = {1: "update", 2: "update2", 3: "update3"}


class MonitoredTable:
    """What one monitor wants to know of one table.

    ``columns`` maps each column to the events for which it is sent; ``condition`` is None for a plain monitor.
    """

    def __init__(self, table: Table, *, is_conditional: bool) -> None:
        self.table = table
        self.columns: dict[str, frozenset[str]] = {}
        self.events: set[str] = set()
        self.condition = Condition([], table) if is_conditional else None

    def add_request(self, json: Any) -> None:
        """Take in one ``<monitor-request>``. Errors: `OvsdbError` for what it may not hold."""
        members = Members(json, f"table {self.table.name}")
        where = members.read("where", "array", optional=True) if self.condition is not None else None
        columns = members.read("columns", "array", optional=True)
        select = members.read("select", "object", optional=True)
        members.finish()
        events = self._events(select)
        self.events |= events
        names = [name for name in self.table.schema.columns if name != UUID_COLUMN] if columns is None else columns
        for name in names:
            if type(name) is not str:
                raise syntax_error(columns, "array of column names expected")
            if name not in self.table.schema.columns:
                raise syntax_error(columns, f"{name} is not a valid column name")
            if name in self.columns:
                raise syntax_error(columns, f"column {name} mentioned more than once")
            self.columns[name] = events
        if where is not None:
            self.condition = Condition(where, self.table)

    def _events(self, select: Any) -> frozenset[str]:
        if select is None:
            return frozenset(_EVENTS)
        members = Members(select, f"table {self.table.name} select")
        wanted = frozenset(e for e in _EVENTS if members.read(e, "boolean", optional=True) is not False)
        members.finish()
        return wanted

    def concerns(self, change: Change) -> bool:
        """Whether a change may have to be told."""
        if change.old is None or change.new is None:
            return True
        watched = self.columns.keys()
        return not change.columns.isdisjoint(watched) or (
            self.condition is not None and not change.columns.isdisjoint(self.condition.columns())
        )

    def matches(self, row: Row | None) -> bool:
        """Whether the client's condition lets it see this row."""
        return row is not None and (self.condition is None or self.condition.matches_any(row.fields))

    def changed_columns(self, old: Row, new: Row) -> list[str]:
        """The monitored columns in which two rows differ."""
        return [name for name in self.columns if old.fields[name] != new.fields[name]]

    def update1(self, old: Row | None, new: Row | None, *, initial: bool) -> dict[str, Any] | None:
        """The ``<row-update>`` of RFC 7047 §4.1.6, or None if there is nothing to say."""
        event = "initial" if initial else "insert" if old is None else "delete" if new is None else "modify"
        if event not in self.events:
            return None
        changed = list(self.columns)
        if old is not None and new is not None:
            changed = self.changed_columns(old, new)
            if not changed:
                return None
        update = {}
        if old is not None:
            update["old"] = self._to_json(old, changed, event)
        if new is not None:
            update["new"] = self._to_json(new, list(self.columns), event)
        return update

    def _to_json(self, row: Row, names: list[str], event: str) -> dict[str, Any]:
        types = self.table.schema.columns
        return {n: types[n].type.to_json(row.fields[n]) for n in names if event in self.columns[n]}

    def update2(self, old: Row | None, new: Row | None, *, initial: bool) -> dict[str, Any] | None:
        """The ``<row-update2>`` of ovsdb-server(7), or None; ``old`` and ``new`` are what the client may see."""
        event = "initial" if initial else "insert" if old is None else "delete" if new is None else "modify"
        if event not in self.events or (old is None and new is None):
            return None
        if new is None:
            return {"delete": None}
        types, defaults = self.table.schema.columns, self.table.schema.defaults
        if old is None:
            shown = [n for n, e in self.columns.items() if event in e and new.fields[n] != defaults[n]]
            return {event: {n: types[n].type.to_json(new.fields[n]) for n in shown}}
        changed = self.changed_columns(old, new)
        if not changed:
            return None
        diff = {}
        for name in changed:
            if event in self.columns[name]:
                type_ = types[name].type
                diff[name] = type_.to_json(type_.diff(old.fields[name], new.fields[name]))
        return {"modify": diff}


class Monitor:
    """One monitor of one client.

    Args:
        database: what is monitored.
        monitor_id: the client's name for it, any JSON value.
        requests: the ``<monitor-requests>`` object.
        version: 1 for ``monitor``, 2 for ``monitor_cond``, 3 for ``monitor_cond_since``.

    Errors: `OvsdbError` for an unknown table or column.
    """

    def __init__(self, database: Database, monitor_id: Any, requests: Any, version: int) -> None:
        if type(requests) is not dict:
            raise syntax_error(requests, "monitor-requests must be object")
        self.database = database
        self.id = monitor_id
        self._version = version
        self._tables: dict[str, MonitoredTable] = {}
        self._pending: dict[tuple[str, str], tuple[Row | None, Row | None]] = {}
        for name, request in requests.items():
            table = database.tables.get(name)
            if table is None:
                raise syntax_error(None, f"no table named {name}")
            monitored = MonitoredTable(table, is_conditional=version > 1)
            for one in request if type(request) is list else [request]:
                monitored.add_request(one)
            self._tables[name] = monitored

    def initial(self) -> Any:
        """The answer to the request: all rows, in the form of its version.

        For ``monitor_cond_since`` it says that the client's last transaction is not known: a standalone database
        keeps no history.
        """
        rows = (
            (monitored, None, row)
            for monitored in self._tables.values()
            if "initial" in monitored.events
            for row in monitored.table.rows.values()
        )
        updates = self._compose(rows, initial=True)
        return [False, ZERO_UUID, updates] if self._version == 3 else updates

    def note(self, changes: list[Change]) -> None:
        """Remember what a commit did."""
        for change in changes:
            monitored = self._tables.get(change.table.name)
            if monitored is None or not monitored.concerns(change):
                continue
            key = (change.table.name, change.uuid)
            was = self._pending[key][0] if key in self._pending else change.old
            if was is None and change.new is None:
                self._pending.pop(key, None)
            else:
                self._pending[key] = (was, change.new)

    def flush(self) -> dict[str, Any] | None:
        """The notification of everything noted since the last one, or None; the note is empty afterwards."""
        if not self._pending:
            return None
        rows = ((self._tables[name], was, now) for (name, _), (was, now) in self._pending.items())
        updates = self._compose(rows, initial=False)
        self._pending.clear()
        return self._notification(updates) if updates else None

    def _notification(self, updates: dict[str, Any]) -> dict[str, Any]:
        params = [self.id, ZERO_UUID, updates] if self._version == 3 else [self.id, updates]
        return {"method": _METHODS[self._version], "params": params, "id": None}

    def _compose(
        self, rows: Iterator[tuple[MonitoredTable, Row | None, Row | None]], *, initial: bool
    ) -> dict[str, dict[str, Any]]:
        updates: dict[str, dict[str, Any]] = {}
        for monitored, was, now in rows:
            row = was if now is None else now
            if row is None:
                continue
            if self._version == 1:
                update = monitored.update1(was, now, initial=initial)
            else:
                old = was if monitored.matches(was) else None
                new = now if monitored.matches(now) else None
                update = monitored.update2(old, new, initial=initial)
            if update is not None:
                updates.setdefault(monitored.table.name, {})[row.uuid] = update
        return updates

    def change_conditions(self, new_id: Any, requests: Any) -> dict[str, Any] | None:
        """``monitor_cond_change``: show other rows from now on.

        Returns:
            The notification of the rows that come and go by that, or None. What was noted has to be flushed before.

        Errors: `OvsdbError`, nothing changed.
        """
        if type(requests) is not dict:
            raise syntax_error(None, "monitor-cond-change-requests must be object")
        conditions: dict[str, Condition] = {}
        for name, changes in requests.items():
            if name not in self.database.tables:
                raise syntax_error(None, f"no table named {name}")
            if name not in self._tables:
                raise syntax_error(None, f"no table named {name} in monitor session")
            if type(changes) is not list:
                raise syntax_error(None, f"table {name} no monitor-cond-change JSON array")
            for change in changes:
                conditions[name] = self._parse_change(self._tables[name], change)
        self.id = new_id
        updates: dict[str, dict[str, Any]] = {}
        for name, condition in conditions.items():
            monitored = self._tables[name]
            if monitored.condition is None:
                continue
            before = {uuid for uuid, row in monitored.table.rows.items() if monitored.matches(row)}
            monitored.condition = condition
            for uuid, row in monitored.table.rows.items():
                old, new = (row if uuid in before else None), (row if monitored.matches(row) else None)
                update = monitored.update2(old, new, initial=False)
                if update is not None:
                    updates.setdefault(name, {})[uuid] = update
        return self._notification(updates) if updates else None

    @staticmethod
    def _parse_change(monitored: MonitoredTable, json: Any) -> Condition:
        members = Members(json, f"table {monitored.table.name}")
        columns = members.read("columns", "array", optional=True)
        where = members.read("where", "array", optional=True)
        members.finish()
        if columns is not None:
            raise syntax_error(json, "changing columns is unsupported")
        return Condition(where or [], monitored.table)


def monitor_from_params(database: Database, params: list[Any], version: int) -> Monitor:
    """A monitor as a request asks for it. Errors: `OvsdbError`."""
    expected = (3,) if version < 3 else (4,)
    if len(params) not in expected:
        raise syntax_error(params, "invalid parameters")
    if version == 3 and type(params[3]) is not str:
        raise syntax_error(params[3], "last-txn-id must be string")
    return Monitor(database, params[1], params[2], version)
