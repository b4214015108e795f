"""Numbers as people and programs write them into options."""

from __future__ import annotations

_DIGITS_MAX = 18
"""No number that is meant here is longer, and Python reads none of many thousands of digits."""


def is_whole(text: str) -> bool:
    """Whether ``int`` reads ``text`` as a whole number: ASCII digits, 18 of them at most."""
    return text.isascii() and text.isdecimal() and len(text) <= _DIGITS_MAX
