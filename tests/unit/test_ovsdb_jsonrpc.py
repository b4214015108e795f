"""Cutting a stream into messages: any cut gives the same messages, and nothing else gives any."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ovsvhost.errors import PeerError
from ovsvhost.store.server.jsonrpc import Framer, check_message, encode

quick = settings(max_examples=60, deadline=None)
TEXT = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0")) | st.text('{}[]",:\\ä𝄞u0\n')
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)
MESSAGES = st.lists(st.dictionaries(TEXT, JSON, max_size=4), min_size=1, max_size=4)


@quick
@given(
    messages=MESSAGES,
    cuts=st.lists(st.integers(0, 400), max_size=8),
    is_ascii=st.booleans(),
    blank=st.sampled_from(["", " \n"]),
)
def test_messages_come_out_whatever_the_cuts(messages: list[Any], cuts: list[int], is_ascii: bool, blank: str) -> None:
    stream = blank.join(json.dumps(message, ensure_ascii=is_ascii) for message in messages).encode()
    framer = Framer()
    edges = [0, *sorted(cut for cut in cuts if cut < len(stream)), len(stream)]
    received: list[Any] = []
    for start, end in pairwise(edges):
        received += framer.feed(stream[start:end])
    assert received == messages


@quick
@given(message=st.dictionaries(TEXT, JSON, min_size=1, max_size=3))
def test_a_message_is_there_with_its_last_byte_and_not_before(message: dict[str, Any]) -> None:
    stream = encode(message)
    framer = Framer()
    assert framer.feed(stream[:-1]) == []
    assert framer.feed(stream[-1:]) == [message]


def test_a_message_does_not_wait_for_the_next_one_to_end() -> None:
    framer = Framer()
    assert framer.feed(b'{"a":1} {"b"') == [{"a": 1}]
    assert framer.feed(b":2}") == [{"b": 2}]


@pytest.mark.parametrize(
    "stream",
    [
        b"hello",
        b"[]",
        b"5",
        b"}",
        b'{"a":1]',
        b'{"a" 1}',
        b"{a:1}",
        b'{"a":NaN}',
        b'{"a":Infinity}',
        b'{"a":"\xff"}',
        b'{"a":"\\ud800"}',
        b'{"a":"\\u0000"}',
        b'{"a":"\\\\\\u0000"}',
        b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    ],
)
def test_what_is_no_object_is_refused(stream: bytes) -> None:
    framer = Framer()
    with pytest.raises(PeerError, match="the stream is not"):
        framer.feed(stream)


def test_a_backslash_before_u0000_makes_it_text() -> None:
    assert Framer().feed(b'{"a":"\\\\u0000"}') == [{"a": "\\u0000"}]


def test_a_message_over_the_limit_is_refused_when_it_passes_it() -> None:
    framer = Framer(max_size=1000)
    assert framer.feed(b'{"a":"' + b"x" * 900) == []
    with pytest.raises(PeerError, match="longer than 1000 bytes"):
        framer.feed(b"x" * 200)


def test_messages_under_the_limit_may_be_many() -> None:
    framer = Framer(max_size=1000)
    assert len(framer.feed(b'{"a":1}' * 1000)) == 1000


@quick
@given(data=st.binary(max_size=200))
def test_no_bytes_make_it_raise_anything_else(data: bytes) -> None:
    framer = Framer()
    try:
        for message in framer.feed(data):
            check_message(message)
    except PeerError:
        return
    assert framer.feed(b"") == []


@pytest.mark.parametrize(
    ("message", "kind"),
    [
        ({"method": "echo", "params": [], "id": 0}, "request"),
        ({"method": "cancel", "params": [1], "id": None}, "notification"),
        ({"method": "cancel", "params": [1]}, "notification"),
        ({"id": 1, "result": [], "error": None}, "reply"),
        ({"id": 1, "result": None, "error": "no"}, "reply"),
    ],
)
def test_the_kinds_of_messages_are_told_apart(message: dict[str, Any], kind: str) -> None:
    assert check_message(message) == kind


@pytest.mark.parametrize(
    "message",
    [{}, {"method": "x"}, {"params": []}, {"method": 5, "params": []}, {"method": "x", "params": {}}, {"jsonrpc": 2}],
)
def test_messages_that_lack_something_are_refused(message: dict[str, Any]) -> None:
    with pytest.raises(PeerError):
        check_message(message)
