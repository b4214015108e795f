"""Changing a value in place: the ``mutations`` of RFC 7047 §5.1 ``<mutation>``."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from ovsvhost.store.server.datum import INT64_MAX, INT64_MIN, UNLIMITED, Datum, DatumType, Symbols
from ovsvhost.store.server.error import OvsdbError, constraint_violation, syntax_error

if TYPE_CHECKING:
    from ovsvhost.store.server.table import Row, Table

_ARITHMETIC = ("+=", "-=", "*=", "/=", "%=")


class Mutation:
    """One ``[<column>, <mutator>, <value>]``.

    Args:
        json: the mutation as the client wrote it.
        table: the table it is about.
        symbols: the transaction's named UUIDs.

    Errors: `OvsdbError` for an unknown or immutable column, or a mutator that its type does not have.
    """

    __slots__ = ("argument", "column", "has_pairs", "mutator", "type")

    def __init__(self, json: Any, table: Table, symbols: Symbols) -> None:
        if type(json) is not list or len(json) != 3 or type(json[0]) is not str or type(json[1]) is not str:
            raise syntax_error(json, "Parse error in mutation.")
        column = table.column(json[0], json)
        if not column.is_mutable:
            raise syntax_error(
                json, f"Cannot mutate immutable column {column.name} in table {table.name}.", tag="constraint violation"
            )
        self.column, self.mutator, self.type = column.name, json[1], column.type
        self.has_pairs = self.type.is_map
        if self.mutator in _ARITHMETIC:
            self.argument = self._number_type(json).parse(json[2], symbols)
        elif self.mutator in ("insert", "delete"):
            self.argument = self._members(json, symbols)
        else:
            raise OvsdbError(f"No mutator named {self.mutator}.", tag="unknown mutator")

    def _mismatch(self, json: Any) -> OvsdbError:
        return syntax_error(
            json,
            f'Type mismatch: "{self.mutator}" operator may not be applied to column {self.column} '
            f"of type {self.type.english()}.",
        )

    def _number_type(self, json: Any) -> DatumType:
        kind = self.type.key.kind
        if self.type.is_map or kind not in ("integer", "real") or (self.mutator == "%=" and kind == "real"):
            raise self._mismatch(json)
        return DatumType(self.type.key.unconstrained())

    def _members(self, json: Any, symbols: Symbols) -> Datum:
        if self.type.is_scalar:
            raise self._mismatch(json)
        if self.mutator == "insert":
            return self.type.relaxed(n_min=0).parse(json[2], symbols)
        pairs = self.type.relaxed(n_min=0, n_max=UNLIMITED)
        try:
            return pairs.parse(json[2], symbols)
        except OvsdbError:
            if not self.type.is_map:
                raise
        # From a map one may delete by key alone (RFC 7047 §5.1).
        self.has_pairs = False
        return DatumType(self.type.key, None, 0, UNLIMITED).parse(json[2], symbols)

    def apply(self, row: Row) -> None:
        """Change ``row``, which the transaction owns. Errors: `OvsdbError` if the result is not allowed."""
        old = row.fields[self.column]
        if self.mutator == "insert":
            new = self.argument | old
        elif self.mutator == "delete":
            gone = self.argument
            new = {k: v for k, v in old.items() if k not in gone or (self.has_pairs and gone[k] != v)}
        else:
            new = self._calculate(old)
        if not self.type.has_room_for(new):
            raise constraint_violation(f"Attempted to store {len(new)} elements in {self.type.english()}.")
        row.fields[self.column] = new

    def _calculate(self, old: Datum) -> Datum:
        operand = next(iter(self.argument))
        calculate = _integer if self.type.key.kind == "integer" else _real
        new: Datum = {calculate(atom, self.mutator, operand): None for atom in old}
        self.type.check(new)
        if len(new) != len(old):
            raise constraint_violation(f'Result of "{self.mutator}" operation contains duplicates.')
        return new


def _integer(atom: int, mutator: str, operand: int) -> int:
    if mutator in ("/=", "%="):
        if operand == 0:
            raise OvsdbError("Division by zero.", tag="domain error")
        # C's division: towards zero, the remainder with the dividend's sign.
        quotient = abs(atom) // abs(operand)
        quotient = quotient if (atom < 0) == (operand < 0) else -quotient
        # INT64_MIN % -1 is refused like the division that overflows.
        result = quotient if mutator == "/=" or quotient > INT64_MAX else atom - quotient * operand
    else:
        result = atom + operand if mutator == "+=" else atom - operand if mutator == "-=" else atom * operand
    if not INT64_MIN <= result <= INT64_MAX:
        raise OvsdbError(f'Result of "{mutator}" operation is out of range.', tag="range error")
    return result


def _real(atom: float, mutator: str, operand: float) -> float:
    if mutator == "/=":
        if operand == 0:
            raise OvsdbError("Division by zero.", tag="domain error")
        result = atom / operand
    else:
        result = atom + operand if mutator == "+=" else atom - operand if mutator == "-=" else atom * operand
    if not math.isfinite(result):
        raise OvsdbError(f'Result of "{mutator}" operation is out of range.', tag="range error")
    return result


def mutations_from_json(json: list[Any], table: Table, symbols: Symbols) -> list[Mutation]:
    """The mutations of one operation, in the order in which they apply."""
    return [Mutation(mutation, table, symbols) for mutation in json]
