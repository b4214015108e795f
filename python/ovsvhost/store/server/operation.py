"""The ten operations of a transaction (RFC 7047 §5.2), and the reading of their members.

Each is a function of the running `Execution` and the members of its JSON object, and returns its result object. A
member that nobody read is an error, so that a typing mistake is not silently ignored.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ovsvhost.store.server.condition import Condition
from ovsvhost.store.server.datum import Datum, Symbols, is_identifier, new_uuid, uuid_from_text
from ovsvhost.store.server.error import OvsdbError, syntax_error
from ovsvhost.store.server.mutation import mutations_from_json
from ovsvhost.store.server.schema import UUID_COLUMN
from ovsvhost.store.server.table import Row, Table, row_key

if TYPE_CHECKING:
    from ovsvhost.store.server.transaction import Transaction

_CHECKS: dict[str, Callable[[Any], bool]] = {
    "id": is_identifier,
    "string": lambda json: type(json) is str,
    "integer": lambda json: type(json) is int,
    "boolean": lambda json: type(json) is bool,
    "array": lambda json: type(json) is list,
    "object": lambda json: type(json) is dict,
}


class WaitUnsatisfied(Exception):  # noqa: N818 - not an error: the transaction is tried again after the next commit
    """A ``wait`` does not hold yet and has time left.

    Args:
        timeout_ms: the shortest time-out among the transaction's waits so far, or None.
    """

    def __init__(self, timeout_ms: int | None) -> None:
        super().__init__("a wait operation does not hold yet")
        self.timeout_ms = timeout_ms


class Members:
    """The members of one JSON object, each to be read once.

    Args:
        json: the object.
        name: what it is, for error texts.
    """

    def __init__(self, json: Any, name: str) -> None:
        self.json = json
        self.name = name
        self.has_problem = False
        self._used: set[str] = set()
        if type(json) is not dict:
            raise syntax_error(None, f"Parsing {name} failed: Object expected.")

    def problem(self, text: str) -> OvsdbError:
        """An error about this object."""
        self.has_problem = True
        return syntax_error(self.json, f"Parsing {self.name} failed: {text}")

    def read(self, name: str, kind: str, *, optional: bool = False) -> Any:
        """One member, or None if it is optional and absent. Errors: `OvsdbError` for another type."""
        if name not in self.json:
            if optional:
                return None
            raise self.problem(f"Required '{name}' member is missing.")
        if not _CHECKS[kind](self.json[name]):
            raise self.problem(f"Type mismatch for member '{name}'.")
        self._used.add(name)
        return self.json[name]

    def finish(self) -> None:
        """Errors: `OvsdbError` if there is a member that nobody asked for."""
        unknown = [name for name in self.json if name not in self._used]
        if len(unknown) > 1:
            plural = "s" if len(unknown) > 2 else ""
            raise self.problem(
                f"Member '{unknown[0]}' and {len(unknown) - 1} other member{plural} are present but not allowed here."
            )
        if unknown:
            raise self.problem(f"Member '{unknown[0]}' is present but not allowed here.")


@dataclass
class Execution:
    """What the operations of one transaction share.

    Args:
        transaction: where they work.
        owns_lock: whether the client holds the lock of that name.
        elapsed_ms: how long the transaction has been waiting already.
    """

    transaction: Transaction
    owns_lock: Callable[[str], bool]
    elapsed_ms: int = 0
    symbols: Symbols = field(default_factory=Symbols)
    timeout_ms: int | None = None

    def table(self, members: Members) -> Table:
        """The table that the member ``table`` names."""
        name = members.read("table", "id")
        table = self.transaction.tables.get(name)
        if table is None:
            raise members.problem(f"No table named {name}.")
        return table

    def fields(self, table: Table, json: Any) -> dict[str, Datum]:
        """The columns of a ``<row>`` (RFC 7047 §5.1)."""
        if type(json) is not dict:
            raise syntax_error(json, "row must be JSON object")
        return {name: table.column(name, json).type.parse(value, self.symbols) for name, value in json.items()}


def _insert(execution: Execution, members: Members) -> dict[str, Any]:
    table = execution.table(members)
    uuid_text = members.read("uuid", "string", optional=True)
    name = members.read("uuid-name", "id", optional=True)
    row_json = members.read("row", "object")
    uuid = new_uuid()
    if uuid_text is not None:
        chosen = uuid_from_text(uuid_text)
        if chosen is None:
            raise syntax_error(uuid_text, "bad uuid")
        if not execution.transaction.may_create(table, chosen):
            raise syntax_error(
                uuid_text,
                "This UUID would duplicate a UUID already present within the table or deleted within the same "
                "transaction.",
                tag="duplicate uuid",
            )
        uuid = chosen
    if name is not None:
        symbols = execution.symbols
        if name in symbols.created:
            raise syntax_error(
                name, 'This "uuid-name" appeared on an earlier "insert" operation.', tag="duplicate uuid-name"
            )
        symbols.created.add(name)
        if uuid_text is None:
            uuid = symbols.resolve(name)
        else:
            symbols.assign(name, uuid)
    row = table.new_row(uuid)
    # A row may spell out _uuid and _version; the server's own win.
    row.fields.update(execution.fields(table, row_json))
    row.fields[UUID_COLUMN] = {uuid: None}
    for column in table.schema.columns.values():
        if column.name not in row_json and len(row.fields[column.name]) == 1:
            column.type.check(row.fields[column.name])
    execution.transaction.insert(table, row)
    return {"uuid": ["uuid", uuid]}


def _select(execution: Execution, members: Members) -> dict[str, Any]:
    table = execution.table(members)
    where = members.read("where", "array")
    columns_json = members.read("columns", "array", optional=True)
    sort_json = members.read("sort", "array", optional=True)
    condition = Condition(where, table, execution.symbols)
    columns = table.columns_from_json(columns_json)
    rows = condition.rows(table)
    names = tuple(column.name for column in columns)
    if UUID_COLUMN not in names:
        rows = list({row_key(row, names): row for row in reversed(rows)}.values())[::-1]
    if sort_json is not None:
        sort = tuple(column.name for column in table.columns_from_json(sort_json))
        rows.sort(key=lambda row: row_key(row, sort))
    return {"rows": [{c.name: c.type.to_json(row.fields[c.name]) for c in columns} for row in rows]}


def _update(execution: Execution, members: Members) -> dict[str, Any]:
    table = execution.table(members)
    where = members.read("where", "array")
    row_json = members.read("row", "object")
    fields = execution.fields(table, row_json)
    for name in fields:
        if not table.schema.columns[name].is_mutable:
            raise syntax_error(
                members.json,
                f"Cannot update immutable column {name} in table {table.name}.",
                tag="constraint violation",
            )
    rows = Condition(where, table, execution.symbols).rows(table)
    for row in rows:
        if any(row.fields[name] != datum for name, datum in fields.items()):
            execution.transaction.modify(table, row).fields.update(fields)
    return {"count": len(rows)}


def _mutate(execution: Execution, members: Members) -> dict[str, Any]:
    table = execution.table(members)
    where = members.read("where", "array")
    mutations_json = members.read("mutations", "array")
    mutations = mutations_from_json(mutations_json, table, execution.symbols)
    rows = Condition(where, table, execution.symbols).rows(table)
    for row in rows if mutations else ():
        new = execution.transaction.modify(table, row)
        for mutation in mutations:
            mutation.apply(new)
    return {"count": len(rows)}


def _delete(execution: Execution, members: Members) -> dict[str, Any]:
    where = members.read("where", "array")
    table = execution.table(members)
    rows = Condition(where, table, execution.symbols).rows(table)
    for row in rows:
        execution.transaction.delete(table, row)
    return {"count": len(rows)}


def _wait(execution: Execution, members: Members) -> dict[str, Any]:
    timeout_ms = members.read("timeout", "integer", optional=True)
    where = members.read("where", "array")
    columns_json = members.read("columns", "array", optional=True)
    until = members.read("until", "string")
    rows_json = members.read("rows", "array")
    table = execution.table(members)
    condition = Condition(where, table, execution.symbols)
    names = tuple(column.name for column in table.columns_from_json(columns_json))
    if timeout_ms is not None:
        if timeout_ms < 0:
            raise syntax_error(timeout_ms, "timeout must be nonnegative")
        if execution.timeout_ms is None or timeout_ms < execution.timeout_ms:
            execution.timeout_ms = timeout_ms
    if until not in ("==", "!="):
        raise syntax_error(until, '"until" must be "==" or "!="')
    expected = set()
    for row_json in rows_json:
        row = Row("", dict(table.schema.defaults))
        row.fields.update(execution.fields(table, row_json))
        expected.add(row_key(row, names))
    actual = {row_key(row, names) for row in condition.rows(table)}
    if (actual == expected) == (until == "=="):
        return {}
    if timeout_ms is None or execution.elapsed_ms < timeout_ms:
        raise WaitUnsatisfied(execution.timeout_ms)
    if execution.elapsed_ms:
        raise OvsdbError(f'"wait" timed out after {execution.elapsed_ms} ms', tag="timed out")
    raise OvsdbError('"where" clause test failed', tag="timed out")


def _commit(execution: Execution, members: Members) -> dict[str, Any]:
    if members.read("durable", "boolean"):
        execution.transaction.is_durable = True
    return {}


def _abort(_execution: Execution, _members: Members) -> dict[str, Any]:
    raise OvsdbError("aborted by request", tag="aborted")


def _comment(execution: Execution, members: Members) -> dict[str, Any]:
    execution.transaction.comments.append(members.read("comment", "string"))
    return {}


def _assert(execution: Execution, members: Members) -> dict[str, Any]:
    lock = members.read("lock", "id")
    if not execution.owns_lock(lock):
        raise OvsdbError(f"Asserted lock {lock} not held.", tag="not owner")
    return {}


Operation = Callable[[Execution, Members], dict[str, Any]]

OPERATIONS: dict[str, Operation] = {
    "insert": _insert,
    "select": _select,
    "update": _update,
    "mutate": _mutate,
    "delete": _delete,
    "wait": _wait,
    "commit": _commit,
    "abort": _abort,
    "comment": _comment,
    "assert": _assert,
}
READ_ONLY = frozenset({"select", "wait", "abort", "comment", "assert"})
