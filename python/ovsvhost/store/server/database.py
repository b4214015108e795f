"""One database: its schema, its tables, and the file behind them.

Order of a commit: the transaction settles, its record is in the file (on the disk, if it has to be durable), then the
change is real and the listeners hear of it. What fails before that leaves everything as it was.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from ovsvhost.errors import ConfigError, KernelError
from ovsvhost.store.log import DatabaseFile
from ovsvhost.store.server.error import OvsdbError
from ovsvhost.store.server.record import annotate, apply_record, record_of_changes, record_of_tables
from ovsvhost.store.server.schema import DatabaseSchema
from ovsvhost.store.server.table import Table
from ovsvhost.store.server.transaction import Change, Transaction

if TYPE_CHECKING:
    from pathlib import Path

Listener = Callable[[list[Change]], None]

_log = logging.getLogger(__name__)


class Database:
    """A schema and its rows.

    Args:
        schema: what the rows look like.
        file: where transactions are recorded, or None for a database that lives in memory only.
    """

    def __init__(self, schema: DatabaseSchema, file: DatabaseFile | None = None) -> None:
        self.schema = schema
        self.tables = {name: Table(table) for name, table in schema.tables.items()}
        self.listeners: list[Listener] = []
        self._file = file
        self._compact_above = 0

    @property
    def name(self) -> str:
        """The name clients ask for."""
        return self.schema.name

    @property
    def is_reserved(self) -> bool:
        """Whether only the server itself may change it (ovsdb-server(7))."""
        return self.name.startswith("_")

    @classmethod
    def open(cls, path: Path, schema: DatabaseSchema) -> Database:
        """Open the database file at ``path``; make one without rows if there is none.

        A file made by an older Open vSwitch is brought to ``schema`` (what ``ovsdb-tool convert`` does); one made by a
        newer keeps its own.

        Errors: `ConfigError` for a file that is damaged, in use, or something else; `KernelError` if the system
        refuses.
        """
        file = DatabaseFile(path, initial=[schema.to_json()])
        try:
            return cls._load(file, schema)
        except BaseException:
            file.close()
            raise

    @classmethod
    def _load(cls, file: DatabaseFile, schema: DatabaseSchema) -> Database:
        records = file.read()
        if not records:
            raise ConfigError(
                f"{file.path} is empty, not an OVSDB database; remove it to start with a new one, "
                "or name another with --state-dir"
            )
        try:
            stored = DatabaseSchema(records[0][1])
        except ConfigError as error:
            raise ConfigError(
                f"{file.path} does not begin with a database schema ({error}); "
                "move it away to start with an empty one, or name another with --state-dir"
            ) from error
        if stored.name != schema.name:
            raise ConfigError(
                f"{file.path} holds the database {stored.name}, not {schema.name}; name another with --state-dir"
            )
        database = cls(stored, file)
        for offset, record in records[1:]:
            transaction = database.begin()
            try:
                apply_record(transaction, record)
                transaction.settle()
            except OvsdbError as error:
                transaction.abort()
                raise ConfigError(
                    f"{file.path}: the record at offset {offset} does not fit its schema ({error}); nothing was "
                    f"changed. Restore a backup, or keep what stands before it: truncate -s {offset} {file.path}"
                ) from error
            transaction.finish()
        if stored.version_key() < schema.version_key():
            database = database._converted(schema)
        return database

    def _converted(self, schema: DatabaseSchema) -> Database:
        converted = Database(schema, self._file)
        transaction = converted.begin()
        try:
            apply_record(transaction, record_of_tables(self.tables.values()), ignore_unknown=True)
            transaction.settle()
        except OvsdbError as error:
            raise ConfigError(
                f"the database was made by schema version {self.schema.version} and cannot be brought to "
                f"{schema.version} ({error}); convert it with ovsdb-tool convert, or name another with --state-dir"
            ) from error
        transaction.finish()
        converted.compact(f"converted from schema version {self.schema.version}")
        _log.info("brought the database from schema version %s to %s", self.schema.version, schema.version)
        return converted

    def begin(self) -> Transaction:
        """A new transaction. One at a time: finish it with `commit` or its own ``abort``."""
        return Transaction(self.schema, self.tables)

    def commit(self, transaction: Transaction) -> None:
        """Make a transaction's changes real, or none of them.

        Errors: `OvsdbError` for a broken constraint, or a file that could not be written.
        """
        try:
            changes = transaction.settle()
            record = record_of_changes(changes)
            if record and self._file is not None:
                annotate(record, "\n".join(transaction.comments))
                self._file.append(record, durable=transaction.is_durable)
        except KernelError as error:
            transaction.abort()
            _log.error("a transaction was not applied: %s", error.strerror)
            raise OvsdbError(
                f"{error.strerror}; the transaction was not applied",
                tag="I/O error",
                io_error=str(error.strerror),
            ) from error
        except BaseException:
            transaction.abort()
            raise
        transaction.finish()
        if changes:
            for listener in list(self.listeners):
                listener(changes)
            self._compact_if_grown()

    def _compact_if_grown(self) -> None:
        file = self._file
        if file is None or not file.has_grown or file.size < self._compact_above:
            return
        try:
            self.compact("compacting database online")
        except KernelError as error:
            # The long file serves as well; try again when it has doubled.
            self._compact_above = 2 * file.size
            _log.warning("the database was not compacted: %s", error.strerror)

    def compact(self, comment: str) -> None:
        """Write the file anew with only what is. Errors: `KernelError`; the old file stays in use."""
        if self._file is not None:
            rows = annotate(record_of_tables(self.tables.values()), comment)
            self._file.replace([self.schema.to_json(), rows])

    def close(self) -> None:
        """Let go of the file; what was acknowledged is on the disk afterwards."""
        if self._file is not None:
            self._file.close()
            self._file = None
