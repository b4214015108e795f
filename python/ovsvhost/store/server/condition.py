"""The ``where`` of an operation or a monitor (RFC 7047 §5.1 ``<condition>``)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ovsvhost.store.server.datum import UNLIMITED, Datum, DatumType, Symbols
from ovsvhost.store.server.error import OvsdbError, syntax_error
from ovsvhost.store.server.schema import UUID_COLUMN

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from ovsvhost.store.server.table import Row, Table

_COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {
    "<": lambda a, b: bool(a < b),
    "<=": lambda a, b: bool(a <= b),
    ">": lambda a, b: bool(a > b),
    ">=": lambda a, b: bool(a >= b),
}
_FUNCTIONS = (*_COMPARISONS, "==", "!=", "includes", "excludes")


class Clause:
    """One ``[<column>, <function>, <value>]``, or ``true`` or ``false`` (ovsdb-server(7), *Monitor_Cond*).

    Args:
        json: the clause as the client wrote it.
        table: the table it is about.
        symbols: the transaction's named UUIDs, or None where there are none.

    Errors: `OvsdbError` for an unknown column or function, or a value of the wrong type.
    """

    __slots__ = ("argument", "column", "function", "type")

    def __init__(self, json: Any, table: Table, symbols: Symbols | None) -> None:
        if type(json) is bool:
            self.column, self.function, self.argument = UUID_COLUMN, "true" if json else "false", {}
            self.type = table.schema.columns[UUID_COLUMN].type
            return
        if type(json) is not list or len(json) != 3 or type(json[0]) is not str or type(json[1]) is not str:
            raise syntax_error(json, "Parse error in condition.")
        column = table.column(json[0], json)
        self.column, self.function, self.type = column.name, json[1], column.type
        if self.function not in _FUNCTIONS:
            raise OvsdbError(f"No function named {self.function}.", tag="unknown function")
        self.argument = self._argument_type(json).parse(json[2], symbols)

    def _argument_type(self, json: Any) -> DatumType:
        type_ = self.type
        if self.function in _COMPARISONS:
            if not (type_.is_scalar or type_.is_optional_scalar) or type_.key.kind not in ("integer", "real"):
                raise syntax_error(
                    json,
                    f'Type mismatch: "{self.function}" operator may not be applied to column {self.column} '
                    f"of type {type_.english()}.",
                )
            return type_.relaxed(n_min=1)
        if self.function == "excludes" and not type_.is_scalar:
            return type_.relaxed(n_min=0, n_max=UNLIMITED)
        if self.function == "includes" and not type_.is_scalar:
            return type_.relaxed(n_min=0)
        return type_

    def matches(self, fields: dict[str, Datum]) -> bool:
        """Whether a row with these fields satisfies the clause."""
        function, argument = self.function, self.argument
        field = fields[self.column]
        if function == "==":
            return field == argument
        if function == "!=":
            return field != argument
        if function == "includes":
            return all(k in field and field[k] == v for k, v in argument.items())
        if function == "excludes":
            return not any(k in field and field[k] == v for k, v in argument.items())
        if function in _COMPARISONS:
            return bool(field) and _COMPARISONS[function](next(iter(field)), next(iter(argument)))
        return function == "true"


class Condition:
    """A list of clauses.

    Args:
        json: the list as the client wrote it.
        table: the table it is about.
        symbols: the transaction's named UUIDs.
    """

    __slots__ = ("clauses",)

    def __init__(self, json: Iterable[Any], table: Table, symbols: Symbols | None = None) -> None:
        self.clauses = [Clause(clause, table, symbols) for clause in json]

    def rows(self, table: Table) -> list[Row]:
        """The rows that satisfy every clause, as the running transaction sees them.

        A row named by ``_uuid`` costs one look-up, anything else a walk over the table.
        """
        return list(self._candidates(table))

    def _candidates(self, table: Table) -> Iterator[Row]:
        rows: Iterable[Row] = table.rows.values()
        for clause in self.clauses:
            if clause.column == UUID_COLUMN and clause.function == "==":
                row = table.rows.get(next(iter(clause.argument)))
                rows = () if row is None else (row,)
                break
        for row in rows:
            if all(clause.matches(row.fields) for clause in self.clauses):
                yield row

    def matches_any(self, fields: dict[str, Datum]) -> bool:
        """Whether one clause is satisfied, or there is none: how monitors read a condition."""
        return not self.clauses or any(clause.matches(fields) for clause in self.clauses)

    def columns(self) -> set[str]:
        """The columns that the answer depends on."""
        return {clause.column for clause in self.clauses if clause.function not in ("true", "false")}
