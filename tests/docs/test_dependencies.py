"""What is built in may be given away, comes from one place, and agrees on one version of what it shares."""

from __future__ import annotations

import json
import subprocess
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from license_expression import get_spdx_licensing

ROOT = Path(__file__).parents[2]
LICENSING = get_spdx_licensing()
#: Licences that ask for no more than a notice.
ALLOWED = {"Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "MIT", "Unicode-3.0", "Unlicense"}
#: Crates whose types meet each other's: two versions of one do not.
ONCE = {"vhost", "vm-memory", "vmm-sys-util"}


@cache
def packages() -> list[dict[str, Any]]:
    """Every crate of the lock file that a build for Linux may take in, tests and benches included."""
    command = "cargo metadata --locked --format-version 1 --all-features --filter-platform x86_64-unknown-linux-gnu"
    found = subprocess.run(command.split(), cwd=ROOT, check=True, capture_output=True, text=True)
    metadata = json.loads(found.stdout)
    taken_in = {node["id"] for node in metadata["resolve"]["nodes"]}
    return [package for package in metadata["packages"] if package["id"] in taken_in]


def may_be_given_away(licence: str) -> bool:
    """Whether the rights of an SPDX expression can be had under allowed licences alone."""
    # Older manifests write a slash where SPDX has OR; an exception only gives more.
    expression = LICENSING.parse(licence.replace("/", " OR "), validate=True)
    verdicts = {
        symbol: LICENSING.TRUE if getattr(symbol, "license_symbol", symbol).key in ALLOWED else LICENSING.FALSE
        for symbol in expression.symbols
    }
    return bool(expression.subs(verdicts, simplify=True) == LICENSING.TRUE)


@pytest.mark.parametrize(
    ("licence", "expected"),
    [
        ("MIT/Apache-2.0", True),
        ("(MIT OR Apache-2.0) AND Unicode-3.0", True),
        ("GPL-2.0-only OR MIT", True),
        ("Apache-2.0 WITH LLVM-exception", True),
        ("MIT AND GPL-2.0-only", False),
        ("EUPL-1.2", False),
    ],
)
def test_an_expression_is_read_as_spdx_means_it(licence: str, *, expected: bool) -> None:
    assert may_be_given_away(licence) is expected


def test_every_crate_may_be_given_away_with_the_wheel() -> None:
    assert [p["name"] for p in packages() if not may_be_given_away(p["license"] or "")] == []


def test_every_crate_comes_from_the_registry() -> None:
    registry = "registry+https://github.com/rust-lang/crates.io-index"
    elsewhere = [package["name"] for package in packages() if package["source"] != registry]
    assert elsewhere == ["ovsvhost"]


def test_crates_whose_types_meet_are_there_once() -> None:
    found = Counter(package["name"] for package in packages() if package["name"] in ONCE)
    assert found == dict.fromkeys(ONCE, 1)
