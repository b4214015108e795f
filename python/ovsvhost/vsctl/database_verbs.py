"""The commands that work on the database itself: ``list``, ``find``, ``get``, ``set``, ``create`` and so on."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any
from uuid import UUID

from ovs.db import types

from ovsvhost.errors import ConfigError
from ovsvhost.vsctl import conditions, records, values
from ovsvhost.vsctl.console import warn
from ovsvhost.vsctl.context import TryAgain
from ovsvhost.vsctl.datum import UUID_TEXT, Datum, atom_text
from ovsvhost.vsctl.grammar import UNBOUNDED, Verb
from ovsvhost.vsctl.names import column_named, columns_named, table_named
from ovsvhost.vsctl.table import Cell, Table

if TYPE_CHECKING:
    from ovsvhost.vsctl.context import Context
    from ovsvhost.vsctl.grammar import Command
    from ovsvhost.vsctl.names import Needs

_MODULE = "db_ctl_base"
_UUID = types.Type(types.BaseType(types.UuidType))
_ROW_ID_NAMES = frozenset({"_uuid", "-uuid"})


def _target(context: Context) -> tuple[Any, Any | None]:
    """The table and row of a command that starts with ``TABLE RECORD``; no row if it need not exist."""
    table = table_named(context.arguments[0])
    find = records.find if context.has("--if-exists") else records.existing
    return table, find(context.db, table, context.arguments[1])


def _need_settings(needs: Needs, command: Command) -> None:
    """For ``TABLE RECORD COLUMN…``, with or without keys and values."""
    needs.settings(needs.records(command.words[1]), command.words[3:])


def _need_column(needs: Needs, command: Command) -> None:
    """For ``TABLE RECORD COLUMN VALUE…``."""
    table = needs.records(command.words[1])
    needs.add(table.name, column_named(table, command.words[3]).name)


def _need_columns(needs: Needs, command: Command) -> None:
    """For ``TABLE RECORD COLUMN…`` without keys."""
    table = needs.records(command.words[1])
    needs.add(table.name, *(column_named(table, word).name for word in command.words[3:]))


def _comment(_context: Context) -> None:
    """Does nothing: the command line itself goes into the database's log."""


def _need_get(needs: Needs, command: Command) -> None:
    if "--id" not in command.options and len(command.words) <= 3 and sys.stdout.isatty():
        warn(_MODULE, '"get" command without row arguments or "--id" is possibly erroneous')
    table = needs.records(command.words[1])
    needs.settings(table, (word for word in command.words[3:] if word.lower() not in _ROW_ID_NAMES))


def _get(context: Context) -> None:
    name = context.option("--id")
    if name is not None and context.has("--if-exists"):
        raise ConfigError("--if-exists and --id may not be specified together")
    table, row = _target(context)
    if row is None:
        return
    if name is not None:
        _name_existing(context, name, row)
    for argument in context.arguments[2:]:
        if argument.lower() in _ROW_ID_NAMES:
            context.put(f"{row.uuid}\n")
        else:
            context.put(f"{_got(context, table, row, argument)}\n")


def _name_existing(context: Context, name: str, row: Any) -> None:
    used_before = name in context.shared.symbols
    symbol = context.shared.symbols.define(name)
    if used_before:
        raise ConfigError(f'row id "{name}" specified on "get" command was used before it was defined')
    symbol.uuid = row.uuid
    symbol.strong = True  # the row is there already: nobody needs to refer to it


def _got(context: Context, table: Any, row: Any, argument: str) -> str:
    wanted = records.setting(argument, table, operators=())
    column, type_ = wanted.column, wanted.column.type
    context.db.verify(row, column.name)
    value = context.db.read(row, column.name)
    if wanted.key is None:
        return value.text(type_)
    if not type_.is_map():
        raise ConfigError(f"cannot specify key to get for non-map column {column.name}")
    found = value.lookup(values.atom(wanted.key, type_.key, context.shared.symbols))
    if found is not None:
        return atom_text(found)
    if not context.has("--if-exists"):
        record = context.arguments[1]
        raise ConfigError(f'no key "{wanted.key}" in {table.name} record "{record}" column {column.name}')
    return ""


def _need_list(needs: Needs, command: Command) -> None:
    table = needs.records(command.words[1])
    columns = columns_named(table, command.options.get("--columns"))
    needs.add(table.name, *(column.name for column in columns if column is not None))


def _need_find(needs: Needs, command: Command) -> None:
    _need_list(needs, command)
    needs.settings(table_named(command.words[1]), command.words[2:])


def _list(context: Context) -> None:
    table = table_named(context.arguments[0])
    if len(context.arguments) == 1:
        _put_records(context, table, context.db.rows(table.name))
        return
    find = records.find if context.has("--if-exists") else records.existing
    found = [find(context.db, table, record) for record in context.arguments[1:]]
    _put_records(context, table, [row for row in found if row is not None])


def _find(context: Context) -> None:
    table = table_named(context.arguments[0])
    tests = context.arguments[1:]
    rows = [
        row for row in context.db.rows(table.name) if all(conditions.holds(context, table, row, test) for test in tests)
    ]
    _put_records(context, table, rows)


def _put_records(context: Context, table: Any, rows: list[Any]) -> None:
    columns = columns_named(table, context.option("--columns"))
    shown = Table(["_uuid" if column is None else column.name for column in columns])
    for row in rows:
        shown.rows.append(
            [
                Cell(Datum.of_keys([row.uuid]), _UUID)
                if column is None
                else Cell(context.db.read(row, column.name), column.type)
                for column in columns
            ],
        )
    context.put_table(shown)


def _set(context: Context) -> None:
    table, row = _target(context)
    if row is None:
        return
    for argument in context.arguments[2:]:
        records.assign(context, table, row, argument, may_merge=context.is_last)
    context.forget_topology()


def _add(context: Context) -> None:
    table, row = _target(context)
    if row is None:
        return
    db, symbols = context.db, context.shared.symbols
    column = column_named(table, context.arguments[2])
    records.check_mutable(db, table, row, column)
    wide = values.widened(column.type)
    value = Datum() if context.is_last else db.read(row, column.name)
    for argument in context.arguments[3:]:
        value = value.union(values.datum(argument, wide, symbols))
    if context.is_last:
        db.merge(row, column.name, value)
    else:
        _check_count("add", table, column, value)
        db.verify(row, column.name)
        db.write(row, column.name, value)
    context.forget_topology()


def _remove(context: Context) -> None:
    table, row = _target(context)
    if row is None:
        return
    db, symbols = context.db, context.shared.symbols
    column = column_named(table, context.arguments[2])
    records.check_mutable(db, table, row, column)
    value = db.read(row, column.name)
    for argument in context.arguments[3:]:
        try:
            gone, keys_only = values.datum(argument, values.widened(column.type), symbols), False
        except ConfigError:
            if not column.type.is_map():
                raise
            gone, keys_only = values.datum(argument, values.widened(column.type, keys_only=True), symbols), True
        value = value.without(gone, keys_only=keys_only)
    _check_count("remove", table, column, value)
    db.verify(row, column.name)
    db.write(row, column.name, value)
    context.forget_topology()


def _check_count(verb: str, table: Any, column: Any, value: Datum) -> None:
    noun = "pairs" if column.type.is_map() else "values"
    would = f'"{verb}" operation would put {len(value)} {noun} in column {column.name} of table {table.name}'
    if verb == "add" and len(value) > column.type.n_max:
        raise ConfigError(f"{would} but the maximum number is {column.type.n_max}")
    if verb == "remove" and len(value) < column.type.n_min:
        raise ConfigError(f"{would} but the minimum number is {column.type.n_min}")


def _clear(context: Context) -> None:
    table, row = _target(context)
    if row is None:
        return
    for name in context.arguments[2:]:
        column = column_named(table, name)
        records.check_mutable(context.db, table, row, column)
        if column.type.n_min > 0:
            raise ConfigError(
                f'"clear" operation cannot be applied to column {column.name} of table {table.name}, '
                "which is not allowed to be empty",
            )
        context.db.write(row, column.name, Datum())
    context.forget_topology()


def _need_create(needs: Needs, command: Command) -> None:
    table = table_named(command.words[1])
    needs.add(table.name)
    if "--id" not in command.options and not table.is_root:
        warn(_MODULE, f'applying "create" command to table {table.name} without --id option will have no effect')
    for argument in command.words[2:]:
        try:
            needs.settings(table, [argument])
        except ConfigError:
            continue  # the verb itself says so, in its turn


def _create(context: Context) -> None:
    table = table_named(context.arguments[0])
    name = context.option("--id")
    if name is None:
        row = context.db.insert(table.name)
    elif UUID_TEXT.fullmatch(name):
        row = context.db.insert(table.name, uuid=UUID(name), persist=True)
    else:
        symbol = context.shared.symbols.define(name)
        symbol.strong |= table.is_root  # a root's rows stay without anything that refers to them
        row = context.db.insert(table.name, uuid=symbol.uuid)
    for argument in context.arguments[1:]:
        records.assign(context, table, row, argument, may_merge=False)
    context.put(str(row.uuid))


def _name_created(context: Context) -> None:
    """Puts the uuid that the server gave the row in the place of the provisional one."""
    provisional = context.command.output[0]
    real = context.shared.committed_uuid(UUID(provisional))
    context.command.output[:] = [f"{real or provisional}\n"]


def _need_destroy(needs: Needs, command: Command) -> None:
    needs.records(command.words[1])


def _destroy(context: Context) -> None:
    table = table_named(context.arguments[0])
    every, named = context.has("--all"), context.arguments[1:]
    if every and named:
        raise ConfigError("--all and records argument should not be specified together")
    if every and context.has("--if-exists"):
        raise ConfigError("--all and --if-exists should not be specified together")
    if not every and not named:
        warn(_MODULE, "either --all or records argument should be specified")
        return
    if every:
        for row in context.db.rows(table.name):
            context.db.delete(row)
    find = records.find if context.has("--if-exists") else records.existing
    for record in named:
        row = find(context.db, table, record)
        if row is not None:
            context.db.delete(row)
    context.forget_topology()


def _wait_until(context: Context) -> None:
    table = table_named(context.arguments[0])
    row = records.find(context.db, table, context.arguments[1])
    if row is None:
        raise TryAgain
    for argument in context.arguments[2:]:
        if not conditions.holds(context, table, row, argument):
            raise TryAgain


VERBS = (
    Verb("comment", 0, UNBOUNDED, "[ARG]...", _comment),
    Verb(
        "get",
        2,
        UNBOUNDED,
        "TABLE RECORD [COLUMN[:KEY]]...",
        _get,
        _need_get,
        options=("--if-exists", "--id="),
    ),
    Verb("list", 1, UNBOUNDED, "TABLE [RECORD]...", _list, _need_list, options=("--if-exists", "--columns=")),
    Verb("find", 1, UNBOUNDED, "TABLE [COLUMN[:KEY]=VALUE]...", _find, _need_find, options=("--columns=",)),
    Verb(
        "set",
        3,
        UNBOUNDED,
        "TABLE RECORD COLUMN[:KEY]=VALUE...",
        _set,
        _need_settings,
        options=("--if-exists",),
    ),
    Verb(
        "add",
        4,
        UNBOUNDED,
        "TABLE RECORD COLUMN [KEY=]VALUE...",
        _add,
        _need_column,
        options=("--if-exists",),
    ),
    Verb(
        "remove",
        4,
        UNBOUNDED,
        "TABLE RECORD COLUMN KEY|VALUE|KEY=VALUE...",
        _remove,
        _need_column,
        options=("--if-exists",),
    ),
    Verb(
        "clear",
        3,
        UNBOUNDED,
        "TABLE RECORD COLUMN...",
        _clear,
        _need_columns,
        options=("--if-exists",),
    ),
    Verb(
        "create",
        2,
        UNBOUNDED,
        "TABLE COLUMN[:KEY]=VALUE...",
        _create,
        _need_create,
        finish=_name_created,
        options=("--id=",),
    ),
    Verb(
        "destroy",
        1,
        UNBOUNDED,
        "TABLE [RECORD]...",
        _destroy,
        _need_destroy,
        options=("--if-exists", "--all"),
    ),
    Verb("wait-until", 2, UNBOUNDED, "TABLE RECORD [COLUMN[:KEY]=VALUE]...", _wait_until, _need_settings),
)
