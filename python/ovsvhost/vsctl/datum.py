"""One column's value: what it holds, how it is compared and how it is printed.

A set of atoms and a map from atom to atom are the same thing here, as in RFC 7047: pairs in ascending order of
their keys, where a set's pairs have no value. The printed form is the one ``ovs-vsctl`` prints, byte for byte,
and :mod:`ovsvhost.vsctl.values` reads it back.

This module knows nothing of rows, tables or the database connection.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from uuid import UUID

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

Atom = int | float | bool | str | UUID
"""One atomic value; its Python type says its OVSDB type."""

Pair = tuple[Atom, Atom | None]

UUID_TEXT = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_BARE_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")
_REAL_DIGITS = 15  # DBL_DIG: what C prints of a double


@dataclass(frozen=True, slots=True)
class Datum:
    """The value of one column in one row.

    Attributes:
        pairs: (key, value) in ascending order of the keys, which are unique; the value is None in a set.
    """

    pairs: tuple[Pair, ...] = ()

    @classmethod
    def of(cls, pairs: Iterable[Pair]) -> Datum:
        """A datum of pairs in any order; of two pairs with one key the later wins."""
        return cls(tuple(sorted(dict(pairs).items(), key=lambda pair: pair[0])))

    @classmethod
    def of_keys(cls, keys: Iterable[Atom]) -> Datum:
        """A set of atoms."""
        return cls.of((key, None) for key in keys)

    def __len__(self) -> int:
        """How many elements or pairs there are."""
        return len(self.pairs)

    @property
    def keys(self) -> tuple[Atom, ...]:
        """The atoms of a set, or the keys of a map, in ascending order."""
        return tuple(key for key, _ in self.pairs)

    def lookup(self, key: Atom) -> Atom | None:
        """The value that a map has for a key, None if it has none."""
        return dict(self.pairs).get(key)

    def __contains__(self, key: object) -> bool:
        """Whether an atom is in the set, or a key of the map."""
        return any(have == key for have, _ in self.pairs)

    def union(self, other: Datum) -> Datum:
        """This datum with the pairs of another whose keys are new to it."""
        return Datum.of((*other.pairs, *self.pairs))

    def without(self, other: Datum, *, keys_only: bool) -> Datum:
        """This datum less another's pairs; with ``keys_only`` a pair goes whatever its value is."""
        if keys_only:
            gone = set(other.keys)
            return Datum(tuple(pair for pair in self.pairs if pair[0] not in gone))
        gone_pairs = set(other.pairs)
        return Datum(tuple(pair for pair in self.pairs if pair not in gone_pairs))

    def within(self, other: Datum) -> bool:
        """Whether every pair of this datum is also in the other."""
        return set(self.pairs) <= set(other.pairs)

    def apart_from(self, other: Datum) -> bool:
        """Whether no pair of this datum is in the other."""
        return not set(self.pairs) & set(other.pairs)

    def order(self) -> tuple[Any, ...]:
        """A sort key: fewer elements first, then the keys, then the values (as ovs-vsctl's ``<`` has it)."""
        return (len(self.pairs), self.keys, tuple(value for _, value in self.pairs if value is not None))

    def text(self, type_: Any) -> str:
        """The value as ``get`` and ``list`` print it, which the grammar reads back.

        Args:
            type_: the column's ``ovs.db.types.Type``.
        """
        body = ", ".join(_pair_text(pair, atom_text) for pair in self.pairs)
        if type_.n_max <= 1 and self.pairs:
            return body
        return f"{{{body}}}" if type_.is_map() else f"[{body}]"

    def bare(self) -> str:
        """The value as ``--data=bare`` prints it: no brackets, no quotes, for shell scripts."""
        return " ".join(_pair_text(pair, _bare_atom) for pair in self.pairs)

    def wire(self, type_: Any) -> Any:
        """The value in the JSON of RFC 7047 §5.1, as ``--format=json`` prints it."""
        if type_.is_map():
            return ["map", [[_wire_atom(key), _wire_atom(value)] for key, value in self.pairs if value is not None]]
        if len(self.pairs) == 1:
            return _wire_atom(self.pairs[0][0])
        return ["set", [_wire_atom(key) for key in self.keys]]

    def plain(self, type_: Any) -> Any:
        """The value as an attribute of an IDL row takes it: a scalar, a list or a dict."""
        if type_.is_map():
            return dict(self.pairs)
        if type_.n_min == 1 and type_.n_max == 1 and self.pairs:
            return self.pairs[0][0]
        return list(self.keys)


def atom_text(atom: Atom) -> str:
    """One atom as it is printed: a string in quotes unless it is a bare word."""
    if isinstance(atom, str):
        word = _BARE_WORD.fullmatch(atom) and atom not in {"true", "false"} and not UUID_TEXT.fullmatch(atom)
        return atom if word else json_text(atom)
    return _bare_atom(atom)


def json_text(value: Any, *, pretty: bool = False) -> str:
    """JSON as OVS writes it: sorted members, no spaces, UTF-8 unescaped; ``pretty`` indents by two."""
    if pretty:
        return _pretty(value, "\n")
    return json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"))


def _pretty(value: Any, line: str) -> str:
    """OVS's own indentation: two columns a level, and what closes stands behind the last element."""
    deeper = f"{line}  "
    if isinstance(value, dict) and value:
        members = (f"{json_text(key)}: {_pretty(value[key], deeper)}" for key in sorted(value))
        return f"{{{deeper}{f',{deeper}'.join(members)}}}"
    if isinstance(value, list) and value:
        return f"[{deeper}{f',{deeper}'.join(_pretty(each, deeper) for each in value)}]"
    return json_text(value)


def _pair_text(pair: Pair, text_of: Callable[[Atom], str]) -> str:
    key, value = pair
    return text_of(key) if value is None else f"{text_of(key)}={text_of(value)}"


def _bare_atom(atom: Atom) -> str:
    if isinstance(atom, bool):
        return "true" if atom else "false"
    if isinstance(atom, float):
        return f"{atom:.{_REAL_DIGITS}g}"
    return str(atom)


def _wire_atom(atom: Atom) -> Any:
    return ["uuid", str(atom)] if isinstance(atom, UUID) else atom
