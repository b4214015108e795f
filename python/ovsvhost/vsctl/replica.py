"""The part of the database that one command line needs, and the transaction on it.

A thin layer over ``ovs.db.idl``, for two reasons. The IDL's rows turn references into rows and forget those that
they cannot see or that the transaction deleted; a database tool must see, print and write back the value itself.
And the IDL tries for ever to connect, where a tool fails at once unless ``--retry`` was given.

A row is an ``ovs.db.idl.Row``, which has no type information, so it is Any here and nobody outside this file
looks inside one, except for its ``uuid``.
"""

from __future__ import annotations

import os
from typing import Any
from uuid import UUID

import ovs.timeval
from ovs import poller
from ovs.db import data, idl
from ovs.stream import Stream

from ovsvhost.errors import PeerError
from ovsvhost.vsctl.datum import Atom, Datum
from ovsvhost.vsctl.names import Needs, vswitch_schema
from ovsvhost.vsctl.values import check_utf8

Transaction = idl.Transaction

_PROBE_TIMEOUT_MS = 1000


class DeadlinePassed(Exception):  # noqa: N818 - not an error of the program: the user's own limit
    """The time that ``--timeout`` gave is over."""


class _NeededColumns(idl.SchemaHelper):  # type: ignore[misc]  # ovs has no type information
    """Hands the IDL the schema cut down to what is needed, from the one that is already parsed."""

    def __init__(self, needs: Needs) -> None:
        self._needs = needs

    def get_idl_schema(self) -> Any:
        whole = vswitch_schema()
        kept = type(whole)(whole.name, whole.version, {})
        kept.readonly = {}
        for name, columns in self._needs.columns.items():
            table = whole.tables[name]
            # A monitor of no column is a monitor of all of them; one short column tells of the rows.
            names = columns or {min(table.columns)}
            cut = type(table)(name, {}, table.mutable, table.max_rows, table.is_root, table.indexes)
            cut.columns = {column: table.columns[column] for column in sorted(names)}
            kept.tables[name] = cut
        return kept


class Replica(idl.Idl):  # type: ignore[misc]  # ovs has no type information
    """A live copy of some columns of the ``Open_vSwitch`` database.

    Args:
        remote: where the server is, for instance ``unix:/run/openvswitch/db.sock``; several with commas.
        needs: the tables and columns to copy.
        deadline_ms: when to give up, on ``ovs.timeval.msec``'s clock; None never.
        retry: whether to go on trying while the server does not answer.
        leader_only: whether to talk to a cluster's leader only.
    """

    def __init__(
        self,
        remote: str,
        needs: Needs,
        *,
        deadline_ms: int | None = None,
        retry: bool = False,
        leader_only: bool = True,
    ) -> None:
        super().__init__(remote, _NeededColumns(needs), leader_only=leader_only)
        self._remote = remote
        self._deadline_ms = deadline_ms
        self._deleted: dict[UUID, Any] = {}
        if not retry:
            self._session.reconnect.set_max_tries(len(_remotes(remote)))

    def keep_reconnecting(self) -> None:
        """From now on outlives a restart of the server: for the wait on ``cur_cfg``."""
        self._session.reconnect.set_max_tries(None)

    def step(self) -> None:
        """Takes in what the server sent.

        Raises:
            PeerError: the connection is lost for good.
        """
        self.run()
        if not self._session.is_alive():
            raise PeerError(f"{self._remote}: database connection failed ({_why_unreachable(self._remote)})")

    def block(self, transaction: Any = None) -> None:
        """Sleeps until the server has something to say or the transaction is done.

        Raises:
            DeadlinePassed: the time is over.
        """
        if self._deadline_ms is not None and ovs.timeval.msec() >= self._deadline_ms:
            raise DeadlinePassed
        waiter = poller.Poller()
        self.wait(waiter)
        if transaction is not None:
            transaction.wait(waiter)
        if self._deadline_ms is not None:
            waiter.timer_wait_until(self._deadline_ms)
        waiter.block()

    def begin(self) -> Any:
        """Starts a transaction; it ends with :meth:`commit` or its own ``abort()``."""
        self._deleted.clear()
        return Transaction(self)

    def commit(self) -> Any:
        """Commits the open transaction and waits for the answer.

        Returns:
            A status of ``ovs.db.idl.Transaction``, never INCOMPLETE.

        Raises:
            PeerError: the connection is lost for good.
            DeadlinePassed: the time is over.
        """
        transaction = self.txn
        status = transaction.commit()
        while status == Transaction.INCOMPLETE:
            self.step()
            status = transaction.commit()
            if status == Transaction.INCOMPLETE:
                self.block(transaction)
        return status

    def rows(self, table: str) -> list[Any]:
        """A table's rows, in ascending order of their uuids."""
        return sorted(self.tables[table].rows.values(), key=lambda row: row.uuid)

    def row(self, table: str, uuid: UUID) -> Any | None:
        """The row with a uuid, None if there is none."""
        return self.tables[table].rows.get(uuid)

    def row_of(self, table: str, reference: Atom | None) -> Any | None:
        """The row that an atom of a column refers to, None if it refers to none."""
        return self.row(table, reference) if isinstance(reference, UUID) else None

    def insert(self, table: str, *, uuid: UUID | None = None, persist: bool = False) -> Any:
        """Adds a row; ``persist`` asks the server to keep the given uuid."""
        extra = {"persist_uuid": True} if persist else {}
        return self.txn.insert(self.tables[table], uuid, **extra)

    def delete(self, row: Any) -> None:
        """Deletes a row. Where its table is not a root the server keeps it while something refers to it."""
        if row.uuid not in self._deleted:
            self._deleted[row.uuid] = row
            row.delete()

    def is_new(self, row: Any) -> bool:
        """Whether this transaction inserted a row."""
        return row._data is None  # noqa: SLF001 - see the head of this file

    def read(self, row: Any, column: str) -> Datum:
        """A column's value, as this transaction left it."""
        self._settle(row, column)
        for version in (row._changes, row._data):  # noqa: SLF001 - see the head of this file
            if version is not None and column in version:
                return Datum.of(
                    (key.value, None if value is None else value.value) for key, value in version[column].values.items()
                )
        return default(self._column(row, column).type)

    def text(self, row: Any, column: str) -> str:
        """The one string or number in a column; empty if there is none."""
        keys = self.read(row, column).keys
        return str(keys[0]) if keys else ""

    def referred(self, row: Any, column: str) -> list[Any]:
        """The rows that a column of references names, in the column's order, deleted ones included."""
        base = self._column(row, column).type.key
        found = (
            self.row(base.ref_table_name, key) or self._deleted.get(key)
            for key in self.read(row, column).keys
            if isinstance(key, UUID)
        )
        return [each for each in found if each is not None]

    def write(self, row: Any, column: str, value: Datum) -> None:
        """Sets a whole column; a row that this transaction deleted stays deleted.

        Raises:
            ConfigError: a string is not UTF-8.
        """
        for atom in (each for pair in value.pairs for each in pair if isinstance(each, str)):
            check_utf8(atom)
        if row.uuid not in self._deleted:
            self._settle(row, column)
            setattr(row, column, value.plain(self._column(row, column).type))

    def merge(self, row: Any, column: str, value: Datum) -> None:
        """Adds pairs to a column on the server's side, whatever it holds by then.

        The change is not seen by :meth:`read` within this transaction.
        """
        have = self.read(row, column)
        for key, each in value.pairs:
            if each is None:
                row.addvalue(column, key)
            elif (key, each) not in have.pairs:
                row.setkey(column, key, each)

    def verify(self, row: Any, column: str) -> None:
        """Lets the commit fail, to be tried again, if someone else changes this column meanwhile."""
        if row.uuid not in self._deleted:
            self._settle(row, column)
            row.verify(column)

    def _column(self, row: Any, column: str) -> Any:
        return self.tables[row._table.name].columns[column]  # noqa: SLF001 - see the head of this file

    def _settle(self, row: Any, column: str) -> None:
        """Gives the committed row the default of a column that the server left out because it has the default.

        What the IDL makes up instead is an atom within an atom: it equals nothing and cannot be sent.
        """
        committed = row._data  # noqa: SLF001 - see the head of this file
        if committed is None:
            return
        known = committed.get(column)
        if known is None or any(isinstance(atom.value, data.Atom) for atom in known.values):
            type_ = self._column(row, column).type
            committed[column] = data.Datum.from_python(type_, default(type_).plain(type_), lambda value: value)


def default(type_: Any) -> Datum:
    """What a column of a type holds in a new row."""
    if type_.n_min == 0:
        return Datum()
    return Datum.of([(type_.key.type.default, None if type_.value is None else type_.value.type.default)])


def _why_unreachable(remote: str) -> str:
    """Connects once more to see what stands in the way: the IDL does not say why it gave up."""
    reason = "End of file"
    for each in _remotes(remote):
        if not Stream.is_valid_name(each):
            return "Address family not supported by protocol"
        problem, stream = Stream.open_block(Stream.open(each), timeout=_PROBE_TIMEOUT_MS)
        if problem:
            reason = os.strerror(problem)
        else:
            stream.close()
    return reason


def _remotes(remote: str) -> list[str]:
    """A list of remotes taken apart; a word without a colon belongs to the remote before it."""
    parts: list[str] = []
    for word in remote.split(","):
        if parts and ":" not in word:
            parts[-1] += f",{word}"
        else:
            parts.append(word)
    return parts
