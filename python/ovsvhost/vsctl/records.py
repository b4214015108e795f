"""Finding records, and arguments of the form ``COLUMN[:KEY][OP VALUE]``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from uuid import UUID

from ovsvhost.errors import ConfigError
from ovsvhost.vsctl import names, values
from ovsvhost.vsctl.datum import UUID_TEXT, Datum

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ovsvhost.vsctl.context import Context
    from ovsvhost.vsctl.replica import Replica

_SHORTEST_UUID = 4
_UUID_TEMPLATE = "xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx"
_LEADING_DIGITS = re.compile(r"\d+", re.ASCII)


@dataclass(frozen=True, slots=True)
class Setting:
    """An argument taken apart.

    Attributes:
        column: the ``ovs.db.schema.ColumnSchema`` meant.
        key: the text behind the colon, None without one.
        operator: the operator, empty if none was allowed.
        value: the text behind the operator.
    """

    column: Any
    key: str | None
    operator: str = ""
    value: str = ""


def setting(argument: str, table: Any, operators: Sequence[str] = ("=",)) -> Setting:
    """Takes ``COLUMN[:KEY]OPERATOR VALUE`` apart; of two operators that fit, the longer is meant.

    Args:
        argument: what was typed.
        table: the table whose column it names.
        operators: those allowed; without any, nothing may follow the column and key.

    Raises:
        ConfigError: the argument is malformed, or its column is unknown.
    """
    name, at = values.token(argument)
    if not name:
        raise ConfigError(f"{argument}: missing column name")
    column = names.column_named(table, name)
    key = None
    if argument[at : at + 1] == ":":
        key, at = values.token(argument, at + 1)
    rest = argument[at:]
    if not operators:
        if rest:
            raise ConfigError(f'{argument}: trailing garbage "{rest}" in argument')
        return Setting(column, key)
    fitting = [each for each in operators if rest.startswith(each) and len(rest) > len(each)]
    if not fitting:
        raise ConfigError(f"{argument}: argument does not end in {_alternatives(operators)} followed by a value.")
    operator = max(fitting, key=len)
    return Setting(column, key, operator, rest[len(operator) :])


def find(db: Replica, table: Any, record: str) -> Any | None:
    """The row that a record's name, ``.``, uuid or four and more leading digits of a uuid mean.

    Returns:
        The row, None if there is none.

    Raises:
        ConfigError: several rows match.
    """
    row = db.row(table.name, UUID(record)) if UUID_TEXT.fullmatch(record) else None
    if row is None and record == ".":
        rows = db.rows(table.name)
        row = rows[0] if len(rows) == 1 else None
    if row is None:
        row = _row_by_name(db, table, record)
    if row is None and len(record) >= _SHORTEST_UUID and _is_partial_uuid(record):
        row = _row_by_partial_uuid(db, table, record)
    return row


def existing(db: Replica, table: Any, record: str) -> Any:
    """As :func:`find`, but the row must be there.

    Raises:
        ConfigError: no row matches, or several do.
    """
    row = find(db, table, record)
    if row is None:
        raise ConfigError(f'no row "{record}" in table {table.name}')
    return row


def check_mutable(db: Replica, table: Any, row: Any, column: Any) -> None:
    """Refuses a column that the schema lets nobody change once its row exists.

    Raises:
        ConfigError: it cannot be modified.
    """
    if not column.mutable and not db.is_new(row):
        raise ConfigError(f"cannot modify read-only column {column.name} in table {table.name}")


def assign(context: Context, table: Any, row: Any, argument: str, *, may_merge: bool) -> None:
    """Does what ``COLUMN[:KEY]=VALUE`` says.

    Args:
        context: the command that says it.
        table: the row's table.
        row: the row to change.
        argument: what was typed.
        may_merge: whether a key may be set on the server's side, unseen by later commands.

    Raises:
        ConfigError: the argument is malformed, or the column cannot hold the value.
    """
    wanted = setting(argument, table)
    column, type_ = wanted.column, wanted.column.type
    check_mutable(context.db, table, row, column)
    symbols = context.shared.symbols
    if wanted.key is None:
        context.db.write(row, column.name, values.datum(wanted.value, type_, symbols))
        return
    if not type_.is_map():
        raise ConfigError(f"cannot specify key to set for non-map column {column.name}")
    key = values.atom(wanted.key, type_.key, symbols)
    pair = Datum.of([(key, values.atom(wanted.value, type_.value, symbols))])
    if may_merge:
        context.db.merge(row, column.name, pair)
        return
    context.db.verify(row, column.name)
    context.db.write(row, column.name, pair.union(context.db.read(row, column.name)))


def _alternatives(operators: Sequence[str]) -> str:
    quoted = [f'"{each}"' for each in operators]
    if len(quoted) == 1:
        return quoted[0]
    comma = "," if len(quoted) > 2 else ""
    return f"{', '.join(quoted[:-1])}{comma} or {quoted[-1]}"


def _row_by_name(db: Replica, table: Any, record: str) -> Any | None:
    row_id = names.ROW_IDS.get(table.name)
    if row_id is None:
        return None
    matches = [row for row in db.rows(row_id.table) if _is_called(db.read(row, row_id.column), record)]
    if len(matches) > 1:
        raise ConfigError(f'multiple rows in {row_id.table} match "{record}"')
    if not matches or row_id.reference is None:
        return matches[0] if matches else None
    db.verify(matches[0], row_id.reference)
    referred = db.referred(matches[0], row_id.reference)
    return referred[0] if len(referred) == 1 else None


def _is_called(name: Datum, record: str) -> bool:
    """Whether a column's value is the record's name; a name that is a uuid may be cut short."""
    if len(name) != 1:
        return False
    atom = name.keys[0]
    if isinstance(atom, int):
        return bool(_LEADING_DIGITS.fullmatch(record)) and atom == int(record)
    text = str(atom)
    if text == record:
        return True
    return len(record) >= _SHORTEST_UUID and bool(UUID_TEXT.fullmatch(text)) and text.startswith(record)


def _is_partial_uuid(record: str) -> bool:
    if len(record) > len(_UUID_TEMPLATE):
        return False
    pairs = zip(record, _UUID_TEMPLATE, strict=False)
    return all(char == "-" if wanted == "-" else char in "0123456789abcdefABCDEF" for char, wanted in pairs)


def _row_by_partial_uuid(db: Replica, table: Any, record: str) -> Any | None:
    matches = [row for row in db.rows(table.name) if str(row.uuid).startswith(record)]
    if len(matches) > 1:
        raise ConfigError(
            f"{table.name} contains 2 or more rows whose UUIDs begin with {record}: "
            f"at least {matches[0].uuid} and {matches[1].uuid}",
        )
    return matches[0] if matches else None
