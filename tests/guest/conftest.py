"""Pairs of guests, booted once and shared: a boot is the dear part of these tests.

A pair is one combination of QEMU release, port type and order of appearance. A test that asks for ``pair`` runs on
every one of them, and leaves it as it found it: both guests up and reachable. One marked ``multiqueue`` runs on those
with several queues. One marked ``long`` runs on the first two, which differ in all there is, and in ``make soak`` on
the others. One that asks for ``one_family`` too runs over IPv4 on one pair and over IPv6 on the next, and in ``make
soak`` over the other one.
"""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ovsvhost.testing.errors import RigError
from ovsvhost.testing.pair import Pair, Setting
from ovsvhost.testing.qemu import find_qemu

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ovsvhost.qemu import PortType
    from ovsvhost.testing.image import GuestImage


_HEALTHY_S = 10
FAMILIES = ("ipv4", "ipv6")


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


# Several queues first: pytest groups by position, so the multiqueue tests share the pairs of the others.
COMBINATIONS = (
    Combination("10.0", "dpdkvhostuserclient", guest_first=True, queues=2),
    Combination("7.2", "dpdkvhostuser", guest_first=True, queues=2),
    Combination("10.0", "dpdkvhostuser", guest_first=False),
    Combination("7.2", "dpdkvhostuserclient", guest_first=False),
)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "multiqueue: runs on the pairs whose guests have several queues")
    config.addinivalue_line("markers", "long: runs on two of the pairs, and in the soak on the others")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "shared_pair" not in metafunc.fixturenames:
        return
    several = metafunc.definition.get_closest_marker("multiqueue") is not None
    is_long = metafunc.definition.get_closest_marker("long") is not None
    names = ["shared_pair", *(name for name in metafunc.fixturenames if name == "one_family")]
    cells = []
    for number, combination in enumerate(made for made in COMBINATIONS if made.queues > 1 or not several):
        for family in FAMILIES if "one_family" in names else FAMILIES[:1]:
            left_out = (is_long and number > 1) or ("one_family" in names and family != FAMILIES[number % 2])
            values = (combination, family)[: len(names)]
            marks = pytest.mark.soak if left_out else ()
            cells.append(pytest.param(*values, id="-".join(map(str, values)), marks=marks))
    metafunc.parametrize(names, cells, indirect=["shared_pair"], scope="session")


class Shared:
    """One combination's pair, made anew when a test left it broken: a failure shall not fail those after it."""

    def __init__(self, made: Combination, image: GuestImage) -> None:
        self._made = made
        self._image = image
        self._stack = ExitStack()
        self._pair: Pair | None = None

    def healthy(self) -> Pair:
        """The pair, both guests within reach."""
        if self._pair:
            try:
                self._pair.wait_reachable(_HEALTHY_S)
            except (RigError, OSError):
                self.close()
        if self._pair is None:
            made = self._made
            setting = Setting(
                qemu=find_qemu(made.qemu), type=made.type, guest_first=made.guest_first, queues=made.queues
            )
            folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="ov-")))
            self._pair = self._stack.enter_context(Pair(setting, folder, self._image)).start()
        return self._pair

    def close(self) -> None:
        self._stack.close()
        self._pair = None


@pytest.fixture(scope="session")
def shared_pair(request: pytest.FixtureRequest, guest_image: GuestImage) -> Iterator[Shared]:
    shared = Shared(request.param, guest_image)
    yield shared
    shared.close()


@pytest.fixture
def pair(shared_pair: Shared) -> Pair:
    """Two guests that reach each other, on a switch of their own."""
    return shared_pair.healthy()
