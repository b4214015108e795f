"""Values of a column: atoms, and the sets and maps made of them (RFC 7047 §3.2, §5.1).

The schema comes parsed from the ``ovs`` package; its ``Type`` is turned into a `DatumType` once. The values do
without that package's ``Atom`` and ``Datum`` objects: with a thousand ports one tick of statistics is forty
thousand pairs, and a Python object with Python comparison for each costs more than all the rest.

A *datum* is a plain dict: ``{key: value}`` for a map, ``{key: None}`` for a set, a scalar being a set of one.
Atoms are ``int``, ``float``, ``bool``, ``str``; a UUID is its lower-case text, which sorts as its bytes do.
Invariant: a datum is never changed after it was made, so rows, change sets and monitors may share it.
"""

from __future__ import annotations

import json as stdlib_json
import math
import re
import sys
import uuid
from dataclasses import dataclass, replace
from typing import Any

from ovsvhost.store.server.error import OvsdbError, constraint_violation, syntax_error

Datum = dict[Any, Any]

INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1
UNLIMITED = sys.maxsize
ZERO_UUID = str(uuid.UUID(int=0))

_DEFAULTS: dict[str, Any] = {"integer": 0, "real": 0.0, "boolean": False, "string": "", "uuid": ZERO_UUID}
_UUID = re.compile(r"[0-9a-fA-F]{8}-(?:[0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}")
_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_BARE_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")
# What the error texts call "unlimited": ovsdb-server counts members in 32 bits.
_UINT_MAX = 2**32 - 1


def is_identifier(text: Any) -> bool:
    """Whether ``text`` is an ``<id>`` (RFC 7047 §3.1)."""
    return isinstance(text, str) and _IDENTIFIER.fullmatch(text) is not None


def uuid_from_text(text: Any) -> str | None:
    """The canonical form of a UUID written as text, or None if it is none."""
    return text.lower() if isinstance(text, str) and _UUID.fullmatch(text) else None


def new_uuid() -> str:
    """A fresh random UUID."""
    return str(uuid.uuid4())


class Symbols:
    """The named UUIDs of one transaction (RFC 7047 §3.1 ``<named-uuid>``): a name may be used before its insert."""

    def __init__(self) -> None:
        self._uuids: dict[str, str] = {}
        self.created: set[str] = set()

    def resolve(self, name: str) -> str:
        """The UUID that ``name`` stands for, chosen at its first use."""
        if name not in self._uuids:
            self._uuids[name] = new_uuid()
        return self._uuids[name]

    def assign(self, name: str, row_uuid: str) -> None:
        """Let ``name`` stand for a UUID that the client chose."""
        self._uuids[name] = row_uuid


@dataclass(frozen=True, slots=True)
class BaseType:
    """One atom's type and constraints (RFC 7047 §3.2 ``<base-type>``).

    ``low`` and ``high`` bound the value of a number and the length of a string, in characters.
    """

    kind: str
    choices: frozenset[Any] | None = None
    low: float | None = None
    high: float | None = None
    ref_table: str | None = None
    is_strong: bool = False

    @classmethod
    def from_ovs(cls, base: Any) -> BaseType:
        """From an ``ovs.db.types.BaseType``."""
        kind = base.type.name
        choices = None
        if base.enum is not None:
            choices = frozenset(str(a.value) if kind == "uuid" else a.value for a in base.enum.values)
        low, high = base.min, base.max
        if kind == "string":
            low = base.min_length or None
            high = None if base.max_length == sys.maxsize else base.max_length
        table = base.ref_table_name if kind == "uuid" else None
        return cls(kind, choices, low, high, table, bool(table) and base.ref_type == "strong")

    @property
    def is_weak(self) -> bool:
        """Whether it refers to a row without keeping it alive."""
        return self.ref_table is not None and not self.is_strong

    def unconstrained(self) -> BaseType:
        """The same kind of atom without limits."""
        return BaseType(self.kind)

    def default(self) -> Any:
        """The atom a column has before anything was stored (RFC 7047 §5.2.1)."""
        return _DEFAULTS[self.kind]

    def parse(self, json: Any, symbols: Symbols | None) -> Any:
        """The atom written in ``json``. Errors: `OvsdbError` for another type or a broken constraint."""
        kind = self.kind
        if kind == "string":
            if type(json) is not str:
                raise syntax_error(json, "expected string")
            atom: Any = json
        elif kind == "uuid":
            atom = _parse_uuid(json, symbols)
        elif kind == "integer":
            # A client may write 1.0 or 1e3: JSON knows numbers only.
            atom = int(json) if type(json) is float and json.is_integer() else json
            if type(atom) is not int or not INT64_MIN <= atom <= INT64_MAX:
                raise syntax_error(json, "expected integer")
        elif kind == "boolean":
            if type(json) is not bool:
                raise syntax_error(json, "expected boolean")
            atom = json
        else:
            atom = _parse_real(json)
        if self.choices is not None or self.low is not None or self.high is not None:
            self.check(atom)
        return atom

    def check(self, atom: Any) -> None:
        """Errors: `OvsdbError` if ``atom`` breaks a constraint."""
        if self.choices is not None and atom not in self.choices:
            allowed = ", ".join(atom_text(self.kind, c) for c in sorted(self.choices))
            allowed = f"[{allowed}]" if len(self.choices) > 1 else allowed
            raise constraint_violation(f"{atom_text(self.kind, atom)} is not one of the allowed values ({allowed})")
        if self.kind == "string":
            if self.low is not None and len(atom) < self.low:
                raise constraint_violation(
                    f'"{atom}" length {len(atom)} is less than minimum allowed length {self.low}'
                )
            if self.high is not None and len(atom) > self.high:
                raise constraint_violation(
                    f'"{atom}" length {len(atom)} is greater than maximum allowed length {self.high}'
                )
        elif (self.low is not None and atom < self.low) or (self.high is not None and atom > self.high):
            if self.low is None:
                problem = f"greater than maximum allowed value {self.high:.15g}"
            elif self.high is None:
                problem = f"less than minimum allowed value {self.low:.15g}"
            else:
                problem = f"not in the valid range {self.low:.15g} to {self.high:.15g} (inclusive)"
            raise constraint_violation(f"{atom_text(self.kind, atom)} is {problem}")

    def to_json(self, atom: Any) -> Any:
        """The wire form of an atom (RFC 7047 §5.1 ``<atom>``)."""
        return ["uuid", atom] if self.kind == "uuid" else atom


def _parse_uuid(json: Any, symbols: Symbols | None) -> str:
    if type(json) is list and len(json) == 2 and type(json[1]) is str:
        if json[0] == "uuid":
            text = uuid_from_text(json[1])
            if text is None:
                raise syntax_error(json, f'"{json[1]}" is not a valid UUID')
            return text
        if json[0] == "named-uuid" and symbols is not None:
            if not is_identifier(json[1]):
                raise syntax_error(json, "named-uuid string is not a valid <id>")
            return symbols.resolve(json[1])
    raise syntax_error(json, 'expected ["uuid", <string>]')


def _parse_real(json: Any) -> float:
    if type(json) is int or type(json) is float:
        try:
            real = float(json) + 0.0
        except OverflowError:
            real = math.inf
        if math.isfinite(real):
            return real
    raise syntax_error(json, "expected real")


def atom_text(kind: str, atom: Any) -> str:
    """An atom as the error texts write it."""
    if kind == "boolean":
        return "true" if atom else "false"
    if kind == "real":
        return f"{atom:.15g}"
    if kind == "string" and (
        not _BARE_WORD.fullmatch(atom) or atom in ("true", "false") or uuid_from_text(atom) is not None
    ):
        return stdlib_json.dumps(atom, ensure_ascii=False)
    return str(atom)


@dataclass(frozen=True, slots=True)
class DatumType:
    """A column's type: what its keys and values are and how many it holds (RFC 7047 §3.2 ``<type>``)."""

    key: BaseType
    value: BaseType | None = None
    n_min: int = 1
    n_max: int = 1

    @classmethod
    def from_ovs(cls, type_: Any) -> DatumType:
        """From an ``ovs.db.types.Type``."""
        value = None if type_.value is None else BaseType.from_ovs(type_.value)
        return cls(BaseType.from_ovs(type_.key), value, type_.n_min, type_.n_max)

    @property
    def is_map(self) -> bool:
        """Whether each key has a value."""
        return self.value is not None

    @property
    def is_scalar(self) -> bool:
        """Whether it always holds one atom."""
        return self.value is None and self.n_min == 1 and self.n_max == 1

    @property
    def is_optional_scalar(self) -> bool:
        """Whether it holds one atom or none."""
        return self.value is None and self.n_min == 0 and self.n_max == 1

    @property
    def is_set(self) -> bool:
        """Whether it is a set that is not a plain scalar."""
        return self.value is None and not self.is_scalar

    def relaxed(self, *, n_min: int | None = None, n_max: int | None = None) -> DatumType:
        """The same type with other bounds on its size."""
        return replace(
            self,
            n_min=self.n_min if n_min is None else n_min,
            n_max=self.n_max if n_max is None else n_max,
        )

    def default(self) -> Datum:
        """The value of a column that was never set (RFC 7047 §5.2.1)."""
        if self.n_min == 0:
            return {}
        return {self.key.default(): None if self.value is None else self.value.default()}

    def has_room_for(self, datum: Datum) -> bool:
        """Whether the number of members is allowed."""
        return self.n_min <= len(datum) <= self.n_max

    def parse(self, json: Any, symbols: Symbols | None = None) -> Datum:
        """The datum written in ``json`` (RFC 7047 §5.1 ``<value>``). Errors: `OvsdbError`."""
        if self.value is None and not (type(json) is list and json and json[0] == "set"):
            return {self.key.parse(json, symbols): None}
        word = "set" if self.value is None else "map"
        if not (type(json) is list and len(json) == 2 and json[0] == word and type(json[1]) is list):
            raise syntax_error(json, f'expected ["{word}", <array>]')
        members = json[1]
        if not self.n_min <= len(members) <= self.n_max:
            raise syntax_error(json, self._size_text(word, len(members)))
        parse_key = self.key.parse
        if self.value is None:
            datum = {parse_key(member, symbols): None for member in members}
        else:
            parse_value = self.value.parse
            datum = {}
            for pair in members:
                if type(pair) is not list or len(pair) != 2:
                    raise syntax_error(pair, "expected 2-element array")
                datum[parse_key(pair[0], symbols)] = parse_value(pair[1], symbols)
        if len(datum) != len(members):
            raise OvsdbError("set contains duplicate" if self.value is None else "map contains duplicate key")
        return datum

    def _size_text(self, word: str, n: int) -> str:
        if self.n_min == 1 and self.n_max == 1:
            return f"{word} must have exactly one member but {n} are present"
        n_max = min(self.n_max, _UINT_MAX)
        return f"{word} must have {self.n_min} to {n_max} members but {n} are present"

    def to_json(self, datum: Datum) -> Any:
        """The wire form of a datum, members in order."""
        key_json = self.key.to_json
        if self.value is None:
            if len(datum) == 1:
                return key_json(next(iter(datum)))
            return ["set", [key_json(k) for k in sorted(datum)]]
        value_json = self.value.to_json
        return ["map", [[key_json(k), value_json(datum[k])] for k in sorted(datum)]]

    def check(self, datum: Datum) -> None:
        """Errors: `OvsdbError` if an atom breaks a constraint of the schema."""
        for key, value in datum.items():
            self.key.check(key)
            if self.value is not None:
                self.value.check(value)

    def diff(self, old: Datum, new: Datum) -> Datum:
        """What turns ``old`` into ``new`` (ovsdb-server(7), *Update2*): the new value of a scalar or optional.

        For larger sets it holds the members in one of the two only; for maps the pairs added, changed (with their
        new value) and removed.
        """
        if self.n_max == 1:
            return new
        changes = {k: v for k, v in new.items() if k not in old or old[k] != v}
        changes.update((k, v) for k, v in old.items() if k not in new)
        return changes

    def apply_diff(self, old: Datum, diff: Datum) -> Datum:
        """The reverse of `diff`. Errors: `OvsdbError` if the result has a forbidden size."""
        if self.n_max == 1:
            return diff
        new = dict(old)
        for key, value in diff.items():
            if key in old and old[key] == value:
                del new[key]
            else:
                new[key] = value
        if not self.has_room_for(new):
            raise OvsdbError("datum created by diff has a size that its column forbids")
        return new

    def text(self, datum: Datum) -> str:
        """A datum as the error texts write it."""
        if self.value is not None:
            pairs = (f"{atom_text(self.key.kind, k)}={atom_text(self.value.kind, datum[k])}" for k in sorted(datum))
            return "{" + ", ".join(pairs) + "}"
        atoms = ", ".join(atom_text(self.key.kind, k) for k in sorted(datum))
        return f"[{atoms}]" if self.n_max > 1 or not datum else atoms

    def english(self) -> str:
        """The type in words, as the error texts write it."""
        if self.is_scalar:
            return self.key.kind
        if self.n_max == UNLIMITED:
            size = f" of {self.n_min} or more" if self.n_min else " of"
        elif self.n_min:
            size = f" of {self.n_min} to {self.n_max}"
        else:
            size = f" of up to {self.n_max}"
        if self.value is None:
            return f"set{size} {self.key.kind}s"
        return f"map{size} ({self.key.kind}, {self.value.kind}) pairs"
