"""What goes back into the rows."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ovsvhost.daemon.verdict import Verdict
from ovsvhost.daemon.writeback import EMPTY, Written, interface, number_map, stopped, string_map, text
from ovsvhost.nic.device import Facts
from ovsvhost.nic.rtnetlink import Link

if TYPE_CHECKING:
    from ovsvhost._core import PortState


@dataclass(frozen=True)
class State:
    """A port's state as the core gives it; only its shape matters here."""

    name: str = "v0"
    bridge: str = "br0"
    ofport: int = 1
    admin_up: bool = True
    link_up: bool = True
    link_resets: int = 3
    mtu: int = 9000
    error: str | None = None
    status: dict[str, str] = field(default_factory=lambda: {"mode": "client"})
    statistics: dict[str, int] = field(default_factory=dict)


ACTIVE = Verdict(uuid="u", name="v0", bridge="br0", kind="active", ofport=1)


def state(**changes: Any) -> PortState:
    return cast("PortState", replace(State(), **changes))


def test_a_port_that_works_shows_its_state_and_no_error() -> None:
    assert interface(ACTIVE, state(), None, ()) == {
        "ofport": 1,
        "error": EMPTY,
        "admin_state": "up",
        "link_state": "up",
        "link_resets": 3,
        "mac_in_use": "00:00:00:00:00:00",
        "mtu": 9000,
        "link_speed": EMPTY,
        "duplex": EMPTY,
        "ifindex": EMPTY,
        "lacp_current": EMPTY,
        "status": ["map", [["mode", "client"]]],
    }


NIC = replace(ACTIVE, device="eth1")


@pytest.mark.rows("A22", "B1")
def test_a_nics_row_shows_what_the_kernel_tells_of_its_device() -> None:
    link = Link(7, "eth1", "02:00:00:00:00:07", 9000, admin_up=True, carrier=True)
    columns = interface(NIC, state(), None, (), (link, Facts(speed=10_000_000_000, duplex="full")))
    shown = ("ofport", "mac_in_use", "admin_state", "link_state", "link_speed", "duplex", "ifindex", "mtu")
    assert [columns[name] for name in shown] == [
        *(1, "02:00:00:00:00:07", "up", "up", 10_000_000_000, "full", 7, 9000),
    ]  # fmt: skip


@pytest.mark.rows("A22", "B1")
def test_a_nic_that_is_not_there_has_no_number_so_that_ovs_vsctl_says_its_error() -> None:
    columns = interface(NIC, state(link_up=False, error="no such device"), None, (), None)
    assert (columns["ofport"], columns["link_state"], columns["error"]) == (-1, "down", "no such device")
    assert {columns[name] == EMPTY for name in ("admin_state", "mtu", "link_speed", "duplex", "ifindex")} == {True}


@pytest.mark.rows("A22", "B1", "C1")
def test_a_nic_that_is_not_there_is_named_beside_its_number_before_the_datapath_has_missed_it() -> None:
    columns = interface(NIC, state(link_up=False), None, (), None)
    assert (columns["ofport"], columns["error"]) == (-1, "there is no network device eth1: create it, or name another")


def test_what_a_driver_does_not_know_stays_empty() -> None:
    columns = interface(NIC, state(), None, (), (Link(7, "eth1"), Facts()))
    assert (columns["link_speed"], columns["duplex"], columns["admin_state"]) == (EMPTY, EMPTY, "down")


def test_what_configuration_and_datapath_have_to_say_stands_in_one_error() -> None:
    complaining = replace(ACTIVE, errors=("options:foo is unknown",))
    assert interface(complaining, state(error="nobody listens"), None, ())["error"] == (
        "options:foo is unknown; nobody listens"
    )


def test_a_refused_row_shows_minus_one_the_reason_and_nothing_stale() -> None:
    refused = replace(ACTIVE, kind="refused", ofport=-1, errors=("no",))
    columns = interface(refused, None, None, ())
    assert (columns["ofport"], columns["error"]) == (-1, "no")
    assert {columns[name] == EMPTY for name in ("link_state", "admin_state", "mtu", "mac_in_use", "link_resets")} == {
        True
    }


def test_a_port_that_the_datapath_refused_shows_minus_one_and_why() -> None:
    columns = interface(ACTIVE, None, "socket /run/x/v0: permission denied", ())
    assert (columns["ofport"], columns["error"]) == (-1, "socket /run/x/v0: permission denied")


def test_L4_an_option_that_waits_for_a_restart_stands_in_status() -> None:
    columns = interface(ACTIVE, state(), None, ("pmd-cpu-mask", "vhost-sock-dir"))
    assert ["pending-restart", "pmd-cpu-mask,vhost-sock-dir"] in columns["status"][1]


def test_the_bridges_own_port_has_a_number_and_a_mac() -> None:
    local = Verdict(uuid="u", name="br0", bridge="br0", kind="local", ofport=65534, mac="02:00:00:00:00:01")
    columns = interface(local, None, None, ("pmd-cpu-mask",))
    assert (columns["ofport"], columns["error"], columns["mac_in_use"]) == (65534, EMPTY, "02:00:00:00:00:01")
    assert columns["status"] == ["map", []]


def test_a_stopped_switch_leaves_no_link_up() -> None:
    assert stopped(interface(ACTIVE, state(), None, ()))["link_state"] == "down"


def test_only_what_changed_is_written() -> None:
    written = Written()
    assert written.update("Interface", "u", {"ofport": 1, "mtu": 1500})[0]["row"] == {"ofport": 1, "mtu": 1500}
    assert written.update("Interface", "u", {"ofport": 1, "mtu": 1500}) == []
    assert written.update("Interface", "u", {"ofport": 1, "mtu": 9000})[0]["row"] == {"mtu": 9000}
    assert written.update("Interface", "w", {"mtu": 9000})[0]["where"] == [["_uuid", "==", ["uuid", "w"]]]


def test_after_a_lost_connection_everything_is_written_again() -> None:
    written = Written()
    written.update("Interface", "u", {"ofport": 1})
    written.forget()
    assert written.update("Interface", "u", {"ofport": 1}) != []


def test_a_row_that_comes_back_is_written_whole() -> None:
    written = Written()
    written.update("Interface", "u", {"ofport": 1})
    written.keep_only(["w"])
    assert written.update("Interface", "u", {"ofport": 1}) != []


def test_counters_stop_at_what_a_column_can_hold() -> None:
    assert number_map({"rx_packets": 2**64 - 1}) == ["map", [["rx_packets", 2**63 - 1]]]


@given(st.text())
def test_every_text_becomes_one_that_a_database_takes(value: str) -> None:
    clean = text(value)
    clean.encode()
    assert "\0" not in clean
    assert string_map({"k": value}) == ["map", [["k", clean]]]
