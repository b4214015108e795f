"""Values as people type them: ``42``, ``"a b"``, ``[1, 2-5]``, ``{a=b, "c d"=e}``, ``@new``.

The grammar is that of ``ovs-vsctl(8)``, "Database Values". The texts of the errors are those of OVS, because
scripts match on them. Nothing here reads the database; a name after ``@`` goes through :class:`Symbols`.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID, uuid4

from ovs.db import types

from ovsvhost.errors import ConfigError
from ovsvhost.vsctl.datum import UUID_TEXT, Atom, Datum, Pair, atom_text

UNLIMITED = 2**32 - 1  # UINT_MAX in OVS: the schema's "unlimited"

_DELIMITERS = frozenset(":=, []{}!<>")
_SPACES = " \t\n\v\f\r"
_INTEGER = re.compile(r"[ \t\n\v\f\r]*[+-]?\d+", re.ASCII)
_RANGE = re.compile(rf"({_INTEGER.pattern})-({_INTEGER.pattern})", re.ASCII)
_REAL = re.compile(
    r"[ \t\n\v\f\r]*[+-]?(?:(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?|inf(?:inity)?|nan)", re.ASCII | re.IGNORECASE
)
_RANGE_MAX = 4096
_UNDECODABLE = range(0xDC80, 0xDD00)  # how Python carries the bytes of argv that are not UTF-8
_INT64_MIN, _INT64_MAX = -(2**63), 2**63 - 1
_TRUE = frozenset({"true", "yes", "on", "1"})
_FALSE = frozenset({"false", "no", "off", "0"})


@dataclass(slots=True)
class Symbol:
    """What ``@name`` stands for within one transaction.

    Attributes:
        uuid: the row's provisional uuid.
        created: whether a command gave the name to a row.
        strong: whether a strong reference to it was written (or none is needed).
        weak: whether a weak reference to it was written.
    """

    uuid: UUID = field(default_factory=uuid4)
    created: bool = False
    strong: bool = False
    weak: bool = False


class Symbols(dict[str, Symbol]):
    """The ``@name``s of one transaction; a name that is used before it is defined is made on the spot."""

    def __missing__(self, name: str) -> Symbol:
        """A new symbol, in use from now on."""
        return self.setdefault(name, Symbol())

    def define(self, name: str) -> Symbol:
        """The symbol that ``--id=@name`` makes.

        Raises:
            ConfigError: the name does not start with ``@`` or was defined before.
        """
        if not name.startswith("@"):
            raise ConfigError(f'row id "{name}" does not begin with "@"')
        symbol = self[name]
        if symbol.created:
            raise ConfigError(f'row id "{name}" may only be specified on one --id option')
        symbol.created = True
        return symbol


def token(text: str, start: int = 0) -> tuple[str, int]:
    """Cuts one token off a text.

    A token ends at the first of ``:=, []{}!<>`` that is neither quoted nor behind a backslash.

    Returns:
        The token (empty if a delimiter stands at ``start``) and the position behind it.

    Raises:
        ConfigError: the text ends within quotes or after a backslash.
    """
    out: list[str] = []
    in_quotes = False
    at = start
    while at < len(text):
        char = text[at]
        at += 1
        if char == "\\":
            if in_quotes:
                out.append(char)
            if at == len(text):
                raise ConfigError(f"{text[start:]}: backslash at end of argument")
            out.append(text[at])
            at += 1
        elif not in_quotes and char in _DELIMITERS:
            at -= 1
            break
        else:
            out.append(char)
            if char == '"':
                in_quotes = not in_quotes
    if in_quotes:
        raise ConfigError(f"{text[start:]}: quoted string extends past end of argument")
    return "".join(out), at


def atom(text: str, base: Any, symbols: Symbols) -> Atom:
    """One value of a column's key or value type.

    Args:
        text: what was typed, already cut into a token.
        base: the ``ovs.db.types.BaseType`` to read it as.
        symbols: the ``@name``s of this transaction.

    Raises:
        ConfigError: the text is no such value, or the schema forbids it.
    """
    value = _read_atom(text, base, symbols)
    _check(value, base)
    return value


def datum(text: str, type_: Any, symbols: Symbols) -> Datum:
    """A whole column's value, with or without its brackets.

    Args:
        text: what was typed, for instance ``1,2,5-9`` or ``{a=b}``.
        type_: the ``ovs.db.types.Type`` to read it as.
        symbols: the ``@name``s of this transaction.

    Raises:
        ConfigError: the text is malformed, has too few or too many elements, or a duplicate.
    """
    is_map = type_.is_map()
    at = _skip_spaces(text, 0)
    end = ""
    if text[at : at + 1] == ("{" if is_map else "["):
        end = "}" if is_map else "]"
        at = _skip_spaces(text, at + 1)
    elif at == len(text):
        raise ConfigError(
            'use "{}" to specify the empty map' if is_map else 'use "[]" to specify the empty set',
        )
    pairs: list[Pair] = []
    while at < len(text) and text[at] != end:
        if text[at] in _DELIMITERS:
            raise ConfigError(f'{text}: unexpected "{text[at]}" parsing {type_in_english(type_)}')
        found, at = _pairs(text, at, type_, symbols)
        pairs += found
        at = _skip_spaces(text, at)
        if text[at : at + 1] == ",":
            at = _skip_spaces(text, at + 1)
    if end:
        if at == len(text):
            raise ConfigError(f'{text}: missing "{end}" at end of data')
        if _skip_spaces(text, at + 1) < len(text):
            raise ConfigError(f'{text}: trailing garbage after "{end}"')
    noun = "pair(s)" if is_map else "value(s)"
    if len(pairs) < type_.n_min:
        raise ConfigError(f"{text}: {len(pairs)} {noun} specified but the minimum number is {type_.n_min}")
    if len(pairs) > type_.n_max:
        raise ConfigError(f"{text}: {len(pairs)} {noun} specified but the maximum number is {type_.n_max}")
    value = Datum.of(pairs)
    if len(value) < len(pairs):
        what = "map contains duplicate key" if is_map else "set contains duplicate value"
        raise ConfigError(f"{text}: {what}")
    return value


def widened(type_: Any, *, n_min: int = 1, keys_only: bool = False) -> Any:
    """A column's type without its upper limit, as ``add``, ``remove`` and the conditions read values."""
    return types.Type(type_.key, None if keys_only else type_.value, n_min, UNLIMITED)


def type_in_english(type_: Any) -> str:
    """A column's type in words, for an error's text."""
    key = type_.key.type.to_string()
    if type_.n_min == 1 and type_.n_max == 1 and not type_.is_map():
        return str(key)
    words = "map" if type_.is_map() else "set"
    if type_.n_max >= UNLIMITED:
        words += f" of {type_.n_min} or more" if type_.n_min else " of"
    else:
        words += f" of {type_.n_min} to {type_.n_max}" if type_.n_min else f" of up to {type_.n_max}"
    return f"{words} ({key}, {type_.value.type.to_string()}) pairs" if type_.is_map() else f"{words} {key}s"


def unquoted(text: str) -> str:
    """The string that a JSON string in quotes stands for.

    Raises:
        ConfigError: the quotes do not match, or an escape is unknown.
    """
    if len(text) < 2 or not text.endswith('"'):
        raise ConfigError(f"{text}: missing quote at end of quoted string")
    body = text[1:-1]
    at = 0
    while at < len(body):
        if body[at] == '"':
            raise ConfigError(f'{text}: quoted string may not include unescaped "')
        if body[at] != "\\":
            at += 1
            continue
        at += 2
        if at > len(body):
            raise ConfigError(f"{text}: quoted string may not end with backslash")
        escape = body[at - 1]
        if escape == "u":
            _check_unicode_escape(text, body[at : at + 4])
        elif escape not in '"\\/bfnrt':
            raise ConfigError(f"{text}: bad escape \\{escape}")
    # strict=False: a tab or newline typed between the quotes stands for itself.
    return str(json.loads(text, strict=False))


def _check_unicode_escape(text: str, digits: str) -> None:
    if len(digits) < 4:
        raise ConfigError(f"{text}: quoted string ends within \\u escape")
    if not re.fullmatch(r"[0-9a-fA-F]{4}", digits):
        raise ConfigError(f"{text}: malformed \\u escape")
    if digits == "0000":
        raise ConfigError(f"{text}: null bytes not supported in quoted strings")


def _pairs(text: str, at: int, type_: Any, symbols: Symbols) -> tuple[list[Pair], int]:
    """One element of a set or map; a range of integers gives several."""
    start = at
    word, at = token(text, at)
    keys = _range(word, type_.key) or [atom(word, type_.key, symbols)]
    if not type_.is_map():
        return [(key, None) for key in keys], at
    at = _skip_spaces(text, at)
    if text[at : at + 1] != "=":
        # At the end of the text stock cuts its own message short here; the empty quotes say the same in full.
        raise ConfigError(f'{text[start:]}: syntax error at "{text[at : at + 1]}" expecting "="')
    word, at = token(text, _skip_spaces(text, at + 1))
    value = atom(word, type_.value, symbols)
    return [(key, value) for key in keys], at


def _range(word: str, base: Any) -> list[Atom]:
    """The integers of ``first-last``; empty if the word is no range."""
    match = _RANGE.fullmatch(word) if base.type == types.IntegerType else None
    if match is None:
        return []
    first, last = int(match[1]), int(match[2])
    if last < first:
        raise ConfigError(f'"{word}" is not a valid range. Range end cannot be before start.')
    _check(first, base)
    _check(last, base)
    if last - first >= _RANGE_MAX:
        raise ConfigError(
            f'constraint violation: Range "{first}-{last}" is too big. Maximum allowed size is {_RANGE_MAX}.',
        )
    return list(range(first, last + 1))


def _read_atom(text: str, base: Any, symbols: Symbols) -> Atom:
    kind = base.type
    if kind == types.IntegerType:
        if not _INTEGER.fullmatch(text) or not _INT64_MIN <= int(text) <= _INT64_MAX:
            raise ConfigError(f'"{text}" is not a valid integer or range')
        return int(text)
    if kind == types.RealType:
        if not _REAL.fullmatch(text):
            raise ConfigError(f'"{text}" is not a valid real number')
        return float(text) or 0.0  # a minus zero becomes zero, as in JSON
    if kind == types.BooleanType:
        if text not in _TRUE | _FALSE:
            raise ConfigError(f'"{text}" is not a valid boolean (use "true" or "false")')
        return text in _TRUE
    if kind == types.StringType:
        if not text:
            raise ConfigError('An empty string is not valid as input; use "" to represent the empty string')
        if "\0" in text:
            raise ConfigError("null bytes not supported in strings")
        return unquoted(text) if text.startswith('"') else text
    if text.startswith("@"):
        symbol = symbols[text]
        if base.ref_table_name:
            symbol.strong |= base.is_strong_ref()
            symbol.weak |= base.is_weak_ref()
        return symbol.uuid
    if not UUID_TEXT.fullmatch(text):
        raise ConfigError(f'"{text}" is not a valid UUID')
    return UUID(text)


def _check(value: Atom, base: Any) -> None:
    """The schema's limits on one atom."""
    if base.enum is not None:
        allowed = Datum.of_keys(each.value for each in base.enum.values)
        if value not in allowed:
            valid = allowed.text(types.Type(types.BaseType(base.type), None, 1, UNLIMITED))
            raise _violation(f"{atom_text(value)} is not one of the allowed values ({valid})")
    if isinstance(value, str):
        _check_string(value, base)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        above = base.min is None or value >= base.min
        below = base.max is None or value <= base.max
        if above and below:
            return
        shown, least, most = atom_text(value), base.min, base.max
        if least is not None and most is not None:
            raise _violation(f"{shown} is not in the valid range {least} to {most} (inclusive)")
        if least is not None:
            raise _violation(f"{shown} is less than minimum allowed value {least}")
        raise _violation(f"{shown} is greater than maximum allowed value {most}")


def check_utf8(text: str) -> None:
    """Refuses a string that no database can hold.

    Raises:
        ConfigError: it was typed with bytes that are not UTF-8, or with half a surrogate pair.
    """
    try:
        text.encode()
    except UnicodeEncodeError as bad:
        code = ord(text[bad.start])
        what = f"invalid UTF-8 sequence 0x{code & 0xFF:02x}" if code in _UNDECODABLE else "half a surrogate pair"
        raise _violation(f"not a valid UTF-8 string: {what}") from None


def _check_string(value: str, base: Any) -> None:
    check_utf8(value)
    if len(value) < base.min_length:
        raise _violation(f'"{value}" length {len(value)} is less than minimum allowed length {base.min_length}')
    if len(value) > base.max_length:
        raise _violation(f'"{value}" length {len(value)} is greater than maximum allowed length {base.max_length}')


def _violation(text: str) -> ConfigError:
    return ConfigError(f"constraint violation: {text}")


def _skip_spaces(text: str, at: int) -> int:
    while at < len(text) and text[at] in _SPACES:
        at += 1
    return at
