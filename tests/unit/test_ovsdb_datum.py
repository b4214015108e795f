"""Values of columns: what goes in comes out, and a difference leads from one value to the other."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ovsvhost.store.server.datum import UNLIMITED, BaseType, DatumType, is_identifier, uuid_from_text
from ovsvhost.store.server.error import OvsdbError

quick = settings(max_examples=60, deadline=None)
ATOMS: dict[str, st.SearchStrategy[Any]] = {
    "integer": st.integers(-(2**63), 2**63 - 1),
    "real": st.floats(allow_nan=False, allow_infinity=False),
    "boolean": st.booleans(),
    "string": st.text(),
    "uuid": st.uuids().map(str),
}
KINDS = st.sampled_from(sorted(ATOMS))


@st.composite
def types(draw: st.DrawFn) -> DatumType:
    value = draw(st.none() | KINDS.map(BaseType))
    n_min = draw(st.integers(0, 1))
    n_max = draw(st.sampled_from([1, 3, UNLIMITED]))
    return DatumType(BaseType(draw(KINDS)), value, n_min, n_max)


@st.composite
def typed_datums(draw: st.DrawFn, number: int) -> tuple[DatumType, list[dict[Any, Any]]]:
    type_ = draw(types())
    values = st.none() if type_.value is None else ATOMS[type_.value.kind]
    datums = st.dictionaries(ATOMS[type_.key.kind], values, min_size=type_.n_min, max_size=min(type_.n_max, 5))
    return type_, [draw(datums) for _ in range(number)]


@quick
@given(typed_datums(1))
def test_the_wire_form_is_read_as_the_same_datum(pair: tuple[DatumType, list[dict[Any, Any]]]) -> None:
    type_, (datum,) = pair
    assert type_.parse(type_.to_json(datum)) == datum


@quick
@given(typed_datums(2))
def test_a_difference_leads_from_the_old_value_to_the_new(pair: tuple[DatumType, list[dict[Any, Any]]]) -> None:
    type_, (old, new) = pair
    before = dict(old)
    assert type_.apply_diff(old, type_.diff(old, new)) == new
    assert old == before


@quick
@given(types())
def test_a_default_has_an_allowed_size(type_: DatumType) -> None:
    assert type_.has_room_for(type_.default())


def test_a_difference_that_gives_a_forbidden_size_is_refused() -> None:
    type_ = DatumType(BaseType("string"), None, 0, 2)
    with pytest.raises(OvsdbError, match="size"):
        type_.apply_diff({"a": None}, {"b": None, "c": None})


@pytest.mark.parametrize("json", [True, "1", None, [], 1.5, 2**63, 1e300, ["uuid", "x"]])
def test_what_is_no_integer_is_refused(json: Any) -> None:
    with pytest.raises(OvsdbError, match="expected integer"):
        BaseType("integer").parse(json, None)


@pytest.mark.parametrize("json", [True, "1", None, 10**400])
def test_what_is_no_real_is_refused(json: Any) -> None:
    with pytest.raises(OvsdbError, match="expected real"):
        BaseType("real").parse(json, None)


@pytest.mark.parametrize("text", ["", "1a", "a-b", "a b", "a\n", "ä"])
def test_what_is_no_identifier_is_recognised(text: str) -> None:
    assert not is_identifier(text)


def test_a_uuid_is_read_strictly_and_kept_in_small_letters() -> None:
    text = "2F77B348-9768-4866-B761-89D5177ECDA0"
    assert uuid_from_text(text) == text.lower()
    assert uuid_from_text(text + "\n") is None
    assert uuid_from_text(text[:-1]) is None
