"""The wheel that was built runs where it says: its tag, the newest glibc symbol it needs, what is inside."""

from __future__ import annotations

import re
import subprocess
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel() -> Path:
    wheels = sorted((ROOT / "build/wheels").glob("ovsvhost-*.whl"))
    if not wheels:
        pytest.skip("no wheel in build/wheels: scripts/setup builds one")
    return wheels[-1]


def test_wheel_is_for_every_python_from_3_11_on_manylinux_2_28(wheel: Path) -> None:
    assert wheel.name.endswith("-cp311-abi3-manylinux_2_28_x86_64.whl")


def test_extension_needs_no_glibc_newer_than_2_28(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        extension = archive.extract("ovsvhost/_core.abi3.so", tmp_path)
    listing = subprocess.run(["readelf", "-V", extension], capture_output=True, text=True, check=True).stdout
    versions = {tuple(map(int, found.split("."))) for found in re.findall(r"GLIBC_(\d+(?:\.\d+)+)", listing)}
    assert versions
    assert max(versions) <= (2, 28)


def test_wheel_carries_types_schema_and_licences(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    for wanted in ("ovsvhost/py.typed", "ovsvhost/_core.pyi", "ovsvhost/store/vswitch.ovsschema"):
        assert wanted in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert any(name.endswith("licenses/NOTICE") for name in names)
