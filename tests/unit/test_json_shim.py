"""The standard library's JSON in the place of the one of ovs: the same documents, piece by piece."""

from __future__ import annotations

import json
from typing import Any

import ovs.json
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ovsvhost.store import json_shim

TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=20,
)
DOCUMENTS = st.lists(VALUES, max_size=4) | st.dictionaries(TEXT, VALUES, max_size=4)


def fed(pieces: list[str]) -> list[Any]:
    """The documents in a stream, taken in as ``ovs.jsonrpc`` does."""
    found: list[Any] = []
    parser = None
    for text in pieces:
        rest = text
        while rest:
            parser = parser or json_shim.Parser()
            rest = rest[parser.feed(rest) :]
            if parser.is_done():
                found.append(parser.finish())
                parser = None
                if isinstance(found[-1], str):
                    return found
    return found


@given(st.lists(DOCUMENTS, max_size=4), st.booleans(), st.sampled_from(["", " ", "\n \t"]), st.integers(1, 40))
def test_documents_come_out_however_they_are_cut(documents: list[Any], ascii_only: bool, space: str, size: int) -> None:
    stream = space.join(json.dumps(each, ensure_ascii=ascii_only) for each in documents)
    assert fed([stream[at : at + size] for at in range(0, len(stream), size)]) == documents


@given(DOCUMENTS)
def test_document_is_the_one_that_ovs_reads(document: Any) -> None:
    text = json.dumps(document)
    reader = json_shim.Parser(check_trailer=True)
    assert reader.feed(text) == len(text)
    assert reader.finish() == document


REFUSED = ("5", '"x"', "x", "{]", "{", "[1,", "[1]x", "[01]", "[NaN]", "[Infinity]", "[" * 3000)
REFUSED_STRINGS = ('["\\u0000"]', '["\\ud800"]', '["\t"]')


@pytest.mark.parametrize("text", [*REFUSED, *REFUSED_STRINGS])
def test_what_ovs_refuses_is_refused_with_a_reason(text: str) -> None:
    reader = json_shim.Parser(check_trailer=True)
    reader.feed(text)
    assert isinstance(reader.finish(), str)


def test_pair_of_surrogates_is_one_character() -> None:
    reader = json_shim.Parser()
    reader.feed('["\\ud83d\\ude00"]')
    assert reader.finish() == ["😀"]


def test_connections_of_ovs_use_it_once_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ovs.json, "Parser", ovs.json.Parser)  # put back afterwards
    json_shim.install()
    json_shim.install()
    if ovs.json.PARSER != ovs.json.PARSER_C:
        assert ovs.json.Parser is json_shim.Parser
    assert ovs.json.from_string('{"a": [1, true, null]}') == {"a": [1, True, None]}
