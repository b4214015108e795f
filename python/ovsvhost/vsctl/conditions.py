"""The conditions of ``find`` and ``wait-until``: ``COLUMN[:KEY]OPERATOR VALUE``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ovs.db import types

from ovsvhost.errors import ConfigError
from ovsvhost.vsctl import values
from ovsvhost.vsctl.datum import Datum
from ovsvhost.vsctl.records import setting

if TYPE_CHECKING:
    from collections.abc import Callable

    from ovsvhost.vsctl.context import Context

OPERATORS: dict[str, Callable[[Datum, Datum], bool]] = {
    "=": lambda have, want: have == want,
    "!=": lambda have, want: have != want,
    "<": lambda have, want: have.order() < want.order(),
    ">": lambda have, want: have.order() > want.order(),
    "<=": lambda have, want: have.order() <= want.order(),
    ">=": lambda have, want: have.order() >= want.order(),
    "{=}": lambda have, want: have == want,
    "{!=}": lambda have, want: have != want,
    "{<}": lambda have, want: len(have) < len(want) and have.within(want),
    "{>}": lambda have, want: len(have) > len(want) and want.within(have),
    "{<=}": lambda have, want: have.within(want),
    "{>=}": lambda have, want: want.within(have),
    "{in}": lambda have, want: have.within(want),
    "{not-in}": lambda have, want: have.apart_from(want),
}
"""What each operator asks of (what the column has, what was typed); those in braces compare as sets."""


def holds(context: Context, table: Any, row: Any, argument: str) -> bool:
    """Whether a row meets a condition; an absent key meets a set operator's conditions only.

    Raises:
        ConfigError: the condition is malformed.
    """
    wanted = setting(argument, table, tuple(OPERATORS))
    column, type_ = wanted.column, wanted.column.type
    symbols = context.shared.symbols
    have = context.db.read(row, column.name)
    compare = OPERATORS[wanted.operator]
    if wanted.key is None:
        return compare(have, values.datum(wanted.value, type_, symbols))
    if not type_.is_map():
        raise ConfigError(f"cannot specify key to check for non-map column {column.name}")
    key = values.atom(wanted.key, type_.key, symbols)
    want = values.datum(wanted.value, types.Type(type_.value, None, type_.n_min, values.UNLIMITED), symbols)
    value = have.lookup(key)
    if value is None and not wanted.operator.startswith("{"):
        return False
    return compare(Datum() if value is None else Datum.of_keys([value]), want)
