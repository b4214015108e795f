"""The wheel installed here is the one to give away: one file for every Python from 3.11, on old systems too."""

from __future__ import annotations

import re
from importlib import metadata
from pathlib import Path

import pytest

from ovsvhost.testing.errors import MissingError

_OLDEST_GLIBC = (2, 28)


@pytest.fixture
def installed() -> metadata.Distribution:
    try:
        distribution = metadata.distribution("ovsvhost")
    except metadata.PackageNotFoundError:
        raise MissingError("ovsvhost is not installed from its wheel here: run scripts/setup test") from None
    if distribution.read_text("WHEEL") is None:
        raise MissingError("ovsvhost is not installed from its wheel here: run scripts/setup test")
    return distribution


def located(installed: metadata.Distribution, name: str) -> Path:
    return Path(str(installed.locate_file(name)))


def test_tag_promises_every_python_from_3_11_and_glibc_from_2_28(installed: metadata.Distribution) -> None:
    assert "Tag: cp311-abi3-manylinux_2_28_x86_64" in (installed.read_text("WHEEL") or "").splitlines()


def test_no_symbol_of_the_extension_is_younger_than_the_tag(installed: metadata.Distribution) -> None:
    extension = located(installed, "ovsvhost/_core.abi3.so").read_bytes()
    versions = {(int(major), int(minor)) for major, minor in re.findall(rb"GLIBC_(\d+)\.(\d+)", extension)}
    assert versions
    assert max(versions) <= _OLDEST_GLIBC


@pytest.mark.parametrize(
    "name",
    ["py.typed", "_core.pyi", "store/vswitch.ovsschema", "testing/guest-init.sh"],
)
def test_wheel_carries_more_than_code(installed: metadata.Distribution, name: str) -> None:
    assert located(installed, f"ovsvhost/{name}").stat().st_size >= 0


def test_wheel_carries_its_licence(installed: metadata.Distribution) -> None:
    assert installed.metadata["License-Expression"] == "Apache-2.0"
    names = {path.name for path in installed.files or []}
    assert {"LICENSE", "NOTICE"} <= names
