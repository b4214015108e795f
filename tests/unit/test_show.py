"""What ``ovsvhost show`` says to people of a guest that moves, and to all of bonds."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from ovsvhost.cli.show import lines, switch


def shown(**status: str) -> list[str]:
    port: dict[str, Any] = {
        "name": "v0", "bond": None, "ofport": 1, "type": "dpdkvhostuserclient", "link_state": "up", "error": None,
        "statistics": {},
        "status": {"mode": "client", **{key.replace("_", "-"): value for key, value in status.items()}},
    }  # fmt: skip
    bridge = {"name": "br0", "ports": [port], "bonds": []}
    tree = {"system_id": "s", "version": "1", "pending_restart": [], "bridges": [bridge]}
    return [line.strip() for line in lines(tree)][3:]


@pytest.mark.rows("B1")
def test_a_port_that_is_not_about_to_move_says_nothing_of_it() -> None:
    assert shown() == ["mode=client"]


@pytest.mark.rows("B1", "C7")
def test_a_guest_on_its_way_is_told_and_what_would_stop_it() -> None:
    said = shown(migration="logging", **{"stops-move-to-ovs-3.1": "HOST_USO"})
    assert said == [
        "mode=client",
        "its guest is on its way to another host: what is written to it is marked",
        "to Open vSwitch 3.1 it cannot move with: HOST_USO",
    ]


@pytest.mark.rows("B1", "A15")
def test_a_guest_that_comes_by_post_copy_is_told_with_its_pages() -> None:
    counts = {"postcopy_faults_served": "12", "postcopy_stall_ms": "34"}
    on = shown(postcopy="on", postcopy_pages_missing="7", **counts)
    assert on[1] == "its guest came by post-copy: 7 pages are missing yet; 12 were waited for, 34 ms in all"
    assert shown(postcopy="over", **counts)[1:] == [
        "its guest came by post-copy: all pages are here; 12 were waited for, 34 ms in all"
    ]


def interface(name: str, ofport: int, mac: str) -> SimpleNamespace:
    return SimpleNamespace(
        name=name, type="afxdp", options={}, ofport=[ofport], error=[], link_state=["up"], link_resets=[1], mtu=[1500],
        mac_in_use=[mac], status={"if_name": name}, statistics={},
    )  # fmt: skip


def tables(*ports: SimpleNamespace) -> dict[str, SimpleNamespace]:
    bridge = SimpleNamespace(name="br0", datapath_type="netdev", ports=ports)
    root = SimpleNamespace(bridges=[bridge], external_ids={"system-id": "s"}, ovs_version=["1"])
    return {"Open_vSwitch": SimpleNamespace(rows={"r": root})}


def port(name: str, *interfaces: SimpleNamespace, mode: str = "", active: str = "") -> SimpleNamespace:
    return SimpleNamespace(
        name=name,
        interfaces=interfaces,
        bond_mode=[mode] if mode else [],
        bond_active_slave=[active] if active else [],
    )


@pytest.mark.rows("A22", "B1")
def test_a_bond_is_shown_with_its_mode_its_active_link_and_its_links_below() -> None:
    links = [interface(f"eth{number}", number, f"02:00:00:00:00:0{number}") for number in (2, 1)]
    alone = port("aaa", interface("aaa", 3, "02:00:00:00:00:03"))
    tree = switch(tables(port("bond0", *links, active="02:00:00:00:00:01"), alone))
    (bridge,) = tree["bridges"]
    assert bridge["bonds"] == [{"name": "bond0", "mode": "active-backup", "active": "eth1"}]
    assert [(each["name"], each["bond"]) for each in bridge["ports"]] == [
        ("aaa", None),
        ("eth1", "bond0"),
        ("eth2", "bond0"),
    ]
    assert list(lines(tree)) == [
        "switch s  1",
        "  bridge br0",
        "    port aaa  3  afxdp  link up",
        "      if_name=aaa",
        "    bond bond0  active-backup  active eth1",
        "      interface eth1  1  afxdp  link up",
        "        if_name=eth1",
        "      interface eth2  2  afxdp  link up",
        "        if_name=eth2",
    ]


def test_a_bond_without_an_active_link_says_so() -> None:
    links = [interface("eth1", -1, "02:00:00:00:00:01"), interface("eth2", -1, "02:00:00:00:00:02")]
    tree = switch(tables(port("bond0", *links, mode="balance-slb")))
    assert tree["bridges"][0]["bonds"] == [{"name": "bond0", "mode": "balance-slb", "active": None}]
    assert "    bond bond0  balance-slb  active -" in lines(tree)
