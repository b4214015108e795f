"""Values as people type them, and as they are printed again."""

from __future__ import annotations

import sys
from typing import Any
from uuid import UUID

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from ovs.db import types

from ovsvhost.errors import ConfigError
from ovsvhost.vsctl import values
from ovsvhost.vsctl.datum import Datum
from ovsvhost.vsctl.names import vswitch_schema
from ovsvhost.vsctl.values import Symbols

# What a database can hold: any text that is UTF-8 and has no NUL.
TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20)
ATOMS: dict[Any, st.SearchStrategy[Any]] = {
    types.IntegerType: st.integers(-(2**63), 2**63 - 1),
    types.BooleanType: st.booleans(),
    types.StringType: TEXT,
    types.UuidType: st.uuids(),
    # 15 digits are printed, as OVS prints a double: what has more cannot come back the same.
    types.RealType: st.integers(-(10**6), 10**6).map(lambda number: number / 64),
}


def column(key: Any, value: Any = None, n_min: int = 0, n_max: int = sys.maxsize) -> Any:
    return types.Type(types.BaseType(key), types.BaseType(value) if value else None, n_min, n_max)


@given(st.data(), st.sampled_from(list(ATOMS)))
def test_printed_set_reads_back_as_itself(data: st.DataObject, kind: Any) -> None:
    value = Datum.of_keys(data.draw(st.lists(ATOMS[kind], max_size=5)))
    assert values.datum(value.text(column(kind)), column(kind), Symbols()) == value


@given(st.data(), st.sampled_from(list(ATOMS)), st.sampled_from(list(ATOMS)))
def test_printed_map_reads_back_as_itself(data: st.DataObject, key: Any, value_kind: Any) -> None:
    pairs = data.draw(st.dictionaries(ATOMS[key], ATOMS[value_kind], max_size=5))
    value = Datum.of(pairs.items())
    type_ = column(key, value_kind)
    assert values.datum(value.text(type_), type_, Symbols()) == value


@given(st.data(), st.sampled_from(list(ATOMS)))
def test_printed_scalar_reads_back_as_itself(data: st.DataObject, kind: Any) -> None:
    value = Datum.of_keys([data.draw(ATOMS[kind])])
    type_ = column(kind, n_min=1, n_max=1)
    assert values.datum(value.text(type_), type_, Symbols()) == value


@example("\0", types.StringType, False)
@given(st.text(max_size=30), st.sampled_from(list(ATOMS)), st.booleans())
def test_any_text_is_refused_or_read_as_something_that_reads_back(text: str, kind: Any, as_map: bool) -> None:
    type_ = column(kind, types.StringType if as_map else None)
    try:
        printed = values.datum(text, type_, Symbols()).text(type_)
    except ConfigError:
        return
    assert values.datum(printed, type_, Symbols()).text(type_) == printed


@given(st.text(max_size=30))
def test_token_is_cut_off_the_front_or_refused(text: str) -> None:
    try:
        word, end = values.token(text)
    except ConfigError:
        assert "\\" in text or '"' in text
        return
    assert 0 <= end <= len(text)
    assert end == len(text) or text[end] in ":=, []{}!<>"
    assert len(word) <= end


@given(st.lists(st.integers(0, 50)), st.lists(st.integers(0, 50)))
def test_sets_follow_the_algebra_of_sets(first: list[int], second: list[int]) -> None:
    a, b = Datum.of_keys(first), Datum.of_keys(second)
    assert set(a.union(b).keys) == set(first) | set(second)
    assert set(a.without(b, keys_only=False).keys) == set(first) - set(second)
    assert a.within(b) == (set(first) <= set(second))
    assert a.apart_from(b) == (not set(first) & set(second))


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("1", [1]),
        ("+1", [1]),
        ("[]", []),
        ("1,2 3", [1, 2, 3]),
        ("[ 3 , 1 ]", [1, 3]),
        ("2-5", [2, 3, 4, 5]),
        ("-5--3", [-5, -4, -3]),
        ("9,2-4", [2, 3, 4, 9]),
    ],
)
def test_integers_are_read(text: str, want: list[int]) -> None:
    assert list(values.datum(text, column(types.IntegerType), Symbols()).keys) == want


@pytest.mark.parametrize("word", ["true", "yes", "on", "1", "false", "no", "off", "0"])
def test_booleans_are_read(word: str) -> None:
    want = word in {"true", "yes", "on", "1"}
    assert values.datum(word, column(types.BooleanType), Symbols()).keys == (want,)


@pytest.mark.parametrize(
    ("text", "kind", "reason"),
    [
        ("1x", types.IntegerType, '"1x" is not a valid integer or range'),
        ("9223372036854775808", types.IntegerType, "is not a valid integer or range"),
        ("0-4096", types.IntegerType, "is too big. Maximum allowed size is 4096."),
        ("1,1", types.IntegerType, "set contains duplicate value"),
        ("", types.IntegerType, 'use "[]" to specify the empty set'),
        ("[1", types.IntegerType, 'missing "]" at end of data'),
        ("maybe", types.BooleanType, "is not a valid boolean"),
        ("1.2.3", types.RealType, "is not a valid real number"),
        ("nosuch", types.UuidType, '"nosuch" is not a valid UUID'),
        ('"\\ud800"', types.StringType, "half a surrogate pair"),
        ("\udcff", types.StringType, "not a valid UTF-8 string: invalid UTF-8 sequence 0xff"),
    ],
)
def test_malformed_value_is_refused_with_its_reason(text: str, kind: Any, reason: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        values.datum(text, column(kind), Symbols())
    assert reason in str(refusal.value)


def test_pair_without_its_value_is_refused_in_full() -> None:
    with pytest.raises(ConfigError) as refusal:
        values.datum("a", column(types.StringType, types.StringType), Symbols())
    assert str(refusal.value) == 'a: syntax error at "" expecting "="'


def test_schema_limits_are_named() -> None:
    tag = vswitch_schema().tables["Port"].columns["tag"].type
    with pytest.raises(ConfigError) as refusal:
        values.datum("4096", tag, Symbols())
    assert str(refusal.value) == "constraint violation: 4096 is not in the valid range 0 to 4095 (inclusive)"


def test_symbol_stands_for_one_row_all_along() -> None:
    symbols = Symbols()
    type_ = vswitch_schema().tables["Bridge"].columns["ports"].type
    first = values.datum("@new", type_, symbols).keys
    assert values.datum("@new", type_, symbols).keys == first
    assert symbols["@new"].strong
    assert symbols.define("@new").uuid == first[0]
    with pytest.raises(ConfigError, match="may only be specified on one --id option"):
        symbols.define("@new")
    with pytest.raises(ConfigError, match='does not begin with "@"'):
        symbols.define("new")


@pytest.mark.parametrize(
    ("value", "bare", "wire"),
    [
        (Datum(), "", ["set", []]),
        (Datum.of_keys(["a b"]), "a b", "a b"),
        (Datum.of_keys(["b", "a"]), "a b", ["set", ["a", "b"]]),
    ],
)
def test_sets_are_printed_for_scripts_and_programs(value: Datum, bare: str, wire: Any) -> None:
    assert value.bare() == bare
    assert value.wire(column(types.StringType)) == wire


def test_map_is_printed_for_scripts_and_programs() -> None:
    uuid = UUID(int=7)
    value = Datum.of([("b", uuid), ("a", UUID(int=8))])
    type_ = column(types.StringType, types.UuidType)
    assert value.bare() == f"a={UUID(int=8)} b={uuid}"
    assert value.wire(type_) == ["map", [["a", ["uuid", str(UUID(int=8))]], ["b", ["uuid", str(uuid)]]]]
