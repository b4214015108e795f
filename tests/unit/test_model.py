from __future__ import annotations

from dataclasses import replace

import pytest

from ovsvhost.errors import ConfigError
from ovsvhost.model import OFPORT_MAX, Bridge, Desired, Port, free_ofport

PORT = Port(key="p", name="v0", type="dpdkvhostuserclient", socket="/s/v0", ofport=1)
OTHER = Port(key="q", name="v1", type="dpdkvhostuserclient", socket="/s/v1", ofport=2)


@pytest.mark.parametrize(
    ("twice", "what"),
    [
        (replace(OTHER, name="v0"), "port 'v0'"),
        (replace(OTHER, socket="/s/v0"), "socket '/s/v0'"),
        (replace(OTHER, ofport=1), "port number on bridge 'br0', 1"),
    ],
)
def test_what_must_be_unique_is_refused_by_name(twice: Port, what: str) -> None:
    with pytest.raises(ConfigError, match=what):
        Desired((Bridge(key="b", name="br0", ports=(PORT, twice)),))


def test_two_bridges_of_one_name_are_refused() -> None:
    with pytest.raises(ConfigError, match="bridge 'br0'"):
        Desired((Bridge(key="b", name="br0"), Bridge(key="c", name="br0")))


def test_a_number_may_be_used_once_on_each_bridge() -> None:
    other = replace(OTHER, ofport=1)
    Desired((Bridge(key="b", name="br0", ports=(PORT,)), Bridge(key="c", name="br1", ports=(other,))))


def test_the_lowest_free_number_is_taken() -> None:
    assert free_ofport([]) == 1
    assert free_ofport([1, 2, 4, 65534]) == 3


def test_when_every_number_is_taken_the_cure_is_said() -> None:
    with pytest.raises(ConfigError, match="delete a port first"):
        free_ofport(range(1, OFPORT_MAX + 1))
