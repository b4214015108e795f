"""Pairs of guests, booted once and shared: a boot is the dear part of these tests.

A pair is one combination of QEMU release, port type and order of appearance. A test that asks for ``pair`` runs on
every one of them, and leaves it as it found it: both guests up and reachable. One marked ``multiqueue`` runs on those
with several queues.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ovsvhost.testing.pair import Pair, Setting
from ovsvhost.testing.qemu import find_qemu

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ovsvhost.qemu import PortType
    from ovsvhost.testing.image import GuestImage


@dataclass(frozen=True)
class Combination:
    """What one pair is made of."""

    qemu: str
    type: PortType
    guest_first: bool
    queues: int = 1

    def __str__(self) -> str:
        side = "client-port" if self.type == "dpdkvhostuserclient" else "server-port"
        return f"qemu-{self.qemu}-{side}-{'guest' if self.guest_first else 'port'}-first"


# Several queues first: pytest groups by position, so the multiqueue tests share the pair of the others.
COMBINATIONS = (
    Combination("10.0", "dpdkvhostuserclient", guest_first=True, queues=2),
    Combination("10.0", "dpdkvhostuser", guest_first=False),
    Combination("7.2", "dpdkvhostuserclient", guest_first=False),
    Combination("7.2", "dpdkvhostuser", guest_first=True),
)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "multiqueue: runs on the pairs whose guests have several queues")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "pair" in metafunc.fixturenames:
        several = metafunc.definition.get_closest_marker("multiqueue") is not None
        chosen = [combination for combination in COMBINATIONS if combination.queues > 1 or not several]
        metafunc.parametrize("pair", chosen, indirect=True, ids=str, scope="session")


@pytest.fixture(scope="session")
def pair(request: pytest.FixtureRequest, guest_image: GuestImage) -> Iterator[Pair]:
    """Two guests that reach each other, on a switch of their own."""
    made: Combination = request.param
    setting = Setting(qemu=find_qemu(made.qemu), type=made.type, guest_first=made.guest_first, queues=made.queues)
    with tempfile.TemporaryDirectory(prefix="ov-") as name, Pair(setting, Path(name), guest_image) as running:
        yield running.start()
