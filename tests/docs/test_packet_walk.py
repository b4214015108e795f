"""The packet's walk names functions: each of them exists, where the document says if it does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
WALK = (ROOT / "docs/packet-walk.md").read_text()
NAMED = re.findall(r"`(\w+(?:::\w+)?)` in `(rust/[\w/]+\.rs)`", WALK)
METHODS = sorted(set(re.findall(r"`([A-Z]\w+::[a-z_]\w*)`", WALK)))
SOURCES = [path.read_text() for path in (ROOT / "rust").rglob("*.rs")]


def test_walk_names_its_functions() -> None:
    assert len(NAMED) >= 20


@pytest.mark.parametrize(("function", "path"), NAMED)
def test_function_of_the_walk_exists(function: str, path: str) -> None:
    source = (ROOT / path).read_text()
    owner, _, name = function.rpartition("::")
    assert re.search(rf"\bfn {name}\b", source), f"{path} has no fn {name}"
    if owner:
        assert re.search(rf"\bimpl\b[^\n]*\b{owner}\b", source), f"{path} has no impl of {owner}"


@pytest.mark.parametrize("method", METHODS)
def test_method_of_the_walk_exists(method: str) -> None:
    owner, _, name = method.partition("::")
    assert any(
        re.search(rf"\bfn {name}\b", source) and re.search(rf"\b(?:impl|trait)\b[^\n]*\b{owner}\b", source)
        for source in SOURCES
    ), f"nothing in rust/ has {method}"
