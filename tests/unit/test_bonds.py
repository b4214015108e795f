"""Bonds: rows to what is built, and what ``ovs-appctl`` shows of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest

from ovsvhost.daemon import bond_commands
from ovsvhost.daemon.configure import Configuration, configure
from ovsvhost.daemon.rows import BridgeRow, InterfaceRow, PortRow, RootRow
from ovsvhost.daemon.settings import Startup
from ovsvhost.model import Bond, Lacp, LacpPort, NicPort
from ovsvhost.observed import Observed
from ovsvhost.plan import AddBond, AddPort, DelBond, DelPort, SetBond, plan

if TYPE_CHECKING:
    from ovsvhost.daemon.verdict import Verdict

RUN = Path("/run/x")


def link(name: str, kind: str = "afxdp") -> InterfaceRow:
    return InterfaceRow(uuid=f"u-{name}", name=name, type=kind)


def bond_row(*links: InterfaceRow, **columns: Any) -> PortRow:
    return PortRow(uuid="p-bond0", name="bond0", interfaces=links or (link("p0"), link("p1")), **columns)


def configured(*ports: PortRow, sysfs: Path = Path("/nowhere")) -> Configuration:
    local = PortRow(uuid="p", name="br0", interfaces=(InterfaceRow(uuid="u", name="br0", type="internal"),))
    bridge = BridgeRow(uuid="b", name="br0", datapath_type="netdev", ports=(local, *ports))
    return configure(RootRow(uuid="r", bridges=(bridge,)), Startup({}), RUN, {}, sysfs=sysfs)


def the_bond(configuration: Configuration) -> Bond:
    (bond,) = configuration.desired.bridges[0].bonds
    return bond


def verdicts(configuration: Configuration) -> dict[str, Verdict]:
    return {verdict.name: verdict for verdict in configuration.verdicts if verdict.kind != "local"}


@pytest.mark.rows("A20", "A22")
def test_a_port_of_two_devices_is_a_bond_and_each_device_is_a_link_of_it() -> None:
    row = bond_row(bond_updelay=100, bond_downdelay=-5, other_config={"bond-primary": "p1"})
    configuration = configured(row)
    assert the_bond(configuration) == Bond(key="p-bond0", name="bond0", updelay_ms=100, primary="p1")
    ports = configuration.desired.bridges[0].ports
    assert [(port.name, port.ofport, cast("NicPort", port).bond) for port in ports] == [
        ("p0", 1, "bond0"),
        ("p1", 2, "bond0"),
    ]
    assert all(verdict.errors == () for verdict in verdicts(configuration).values())


@pytest.mark.rows("A22")
def test_a_guest_cannot_be_a_link_and_the_other_end_works_alone() -> None:
    guest = replace(link("v0", "dpdkvhostuserclient"), options={"vhost-server-path": "/s/v0"})
    configuration = configured(bond_row(link("p0"), guest))
    refused = verdicts(configuration)["v0"]
    assert refused.kind == "refused"
    assert "port 'bond0' bonds p0, v0, and 'v0' has type='dpdkvhostuserclient'" in refused.errors[0]
    assert "only network devices can be bonded (type=afxdp, dpdk or system)" in refused.errors[0]
    assert [port.name for port in configuration.desired.bridges[0].ports] == ["p0"]
    assert the_bond(configuration).name == "bond0"


@pytest.mark.rows("A22", "L5")
def test_a_mode_that_is_unknown_keeps_the_bond_out_with_the_cure() -> None:
    configuration = configured(bond_row(bond_mode="balance-xor"))
    assert configuration.desired.bridges[0].bonds == ()
    for verdict in verdicts(configuration).values():
        assert verdict.kind == "refused"
        assert "'bond0' has bond_mode=balance-xor, which is unknown" in verdict.errors[0]
        assert "bond_mode=active-backup, or bond_mode=balance-slb, or bond_mode=balance-tcp" in verdict.errors[0]


@pytest.mark.rows("A22")
def test_a_bond_that_speaks_lacp_is_the_bridge_and_each_link_its_number_unless_they_are_told_otherwise() -> None:
    (bridge,) = configured(bond_row(bond_mode="balance-tcp", lacp="active")).desired.bridges
    (bond,) = bridge.bonds
    assert bond.lacp is not None
    made = bond.lacp.system
    assert bond.lacp == Lacp(
        active=True, system=made, key=1, ports=(LacpPort(name="p0", port_id=1), LacpPort(name="p1", port_id=2))
    )
    assert int(made[:2], 16) & 3 == 2, "an address of nobody's make"
    second = replace(link("p1"), other_config={"lacp-port-priority": "7", "lacp-aggregation-key": "9"})
    first = replace(link("p0"), other_config={"lacp-port-id": "50"})
    options = {"lacp-time": "fast", "lacp-system-id": "0A:00:00:00:00:01", "lacp-system-priority": "1"}
    row = bond_row(first, second, lacp="passive", other_config={**options, "lacp-fallback-ab": "true"})
    configuration = configured(row)
    assert the_bond(configuration).lacp == Lacp(
        active=False,
        fast=True,
        system="0a:00:00:00:00:01",
        system_priority=1,
        fallback_ab=True,
        key=2,
        ports=(LacpPort(name="p0", port_id=50), LacpPort(name="p1", port_id=2, priority=7, key=9)),
    )
    assert all(verdict.errors == () for verdict in verdicts(configuration).values())
    for silent in (None, "off"):
        assert the_bond(configured(bond_row(lacp=silent))).lacp is None


@pytest.mark.rows("L5")
def test_what_is_asked_of_lacp_and_cannot_be_is_said_at_its_row_with_the_cure() -> None:
    options = {"lacp-time": "often", "lacp-system-id": "01:00:00:00:00:01", "lacp-system-priority": "0"}
    odd = replace(link("p0"), other_config={"lacp-port-id": "65536", "lacp-port-priority": "x"})
    row = bond_row(odd, link("p1"), lacp="active", other_config={**options, "lacp-fallback-ab": "perhaps"})
    configuration = configured(row)
    lacp = the_bond(configuration).lacp
    assert lacp is not None
    assert (lacp.fast, lacp.system_priority, lacp.fallback_ab, lacp.key) == (False, 65534, False, 1)
    system, time, fallback, priority, port_id, port_priority = verdicts(configuration)["p0"].errors
    assert f"lacp-system-id='01:00:00:00:00:01' of port 'bond0' is not in force ({lacp.system} is)" in system
    assert "lacp-time='often' of port 'bond0' is not in force (slow is): give fast or slow" in time
    assert "lacp-fallback-ab='perhaps' of port 'bond0' is not in force (false is): give true or false" in fallback
    assert "lacp-system-priority='0' of port 'bond0' is not in force (65534 is): give a number 1..65535" in priority
    assert "lacp-port-id='65536' of interface 'p0' is not in force (its ofport is): give a number 1..65535" in port_id
    assert "lacp-port-priority='x' of interface 'p0' is not in force (65535 is)" in port_priority
    assert len(verdicts(configuration)["p1"].errors) == 4, "what is the bond's"


@pytest.mark.rows("L5")
def test_a_bond_of_flows_without_lacp_says_that_it_carries_nothing() -> None:
    configuration = configured(bond_row(bond_mode="balance-tcp"))
    assert the_bond(configuration).mode == "balance-tcp"
    for verdict in verdicts(configuration).values():
        assert verdict.kind == "active"
        (error,) = verdict.errors
        assert error == (
            "port 'bond0' has bond_mode=balance-tcp and no LACP, so it does not forward: ovs-vsctl set port bond0 "
            "lacp=active"
        )


@pytest.mark.rows("A22")
@pytest.mark.parametrize(("text", "in_force_ms"), [(None, 10_000), ("0", 0), ("500", 500), ("3600000", 3_600_000)])
def test_stations_are_shared_out_and_evened_out_so_often(text: str | None, in_force_ms: int) -> None:
    options = {} if text is None else {"bond-rebalance-interval": text}
    configuration = configured(bond_row(bond_mode="balance-slb", other_config=options))
    bond = the_bond(configuration)
    assert (bond.mode, bond.rebalance_ms) == ("balance-slb", in_force_ms)
    assert all(verdict.errors == () for verdict in verdicts(configuration).values())


@pytest.mark.rows("L5")
def test_what_is_asked_for_wrongly_is_not_in_force_and_both_ends_say_so() -> None:
    options = {"bond-detect-mode": "miimon", "all-members-active": "true", "bond-rebalance-interval": "-1"}
    row = bond_row(bond_updelay=3_600_001, other_config=options)
    configuration = configured(row)
    assert the_bond(configuration).updelay_ms == 0
    for verdict in verdicts(configuration).values():
        assert verdict.kind == "active"
        detect, members, delay, rebalance = verdict.errors
        assert "bond-detect-mode='miimon' of port 'bond0' is not in force (carrier is)" in detect
        assert "all-members-active=true of port 'bond0' is not in force" in members
        assert "bond-rebalance-interval='-1' of port 'bond0' is not in force (10000 is)" in rebalance
        assert delay == "bond_updelay=3600001 of port 'bond0' is not in force (0 is): give milliseconds, 0..3600000"


def test_columns_of_bonds_mean_nothing_at_a_port_with_one_interface() -> None:
    row = PortRow(uuid="p-p0", name="p0", interfaces=(link("p0"),), bond_mode="balance-tcp", bond_updelay=10**10)
    configuration = configured(row)
    assert configuration.desired.bridges[0].bonds == ()
    assert verdicts(configuration)["p0"].errors == ()


@pytest.mark.rows("A22")
def test_the_link_that_was_active_in_an_earlier_run_is_found_by_its_address(tmp_path: Path) -> None:
    for device, address in (("p0", "02:00:00:00:00:01"), ("p1", "02:00:00:00:00:02")):
        folder = tmp_path / "class/net" / device
        folder.mkdir(parents=True)
        (folder / "address").write_text(f"{address}\n")
    found: list[tuple[str | None, str | None]] = [
        ("02:00:00:00:00:02", "p1"),
        ("02:00:00:00:00:09", None),
        (None, None),
    ]
    for active_mac, expected in found:
        row = bond_row(link("p0"), link("p1"), link("gone"), bond_active_slave=active_mac)
        assert the_bond(configured(row, sysfs=tmp_path)).last_active == expected


BOND = Bond(key="p-bond0", name="bond0")
LINK = NicPort(key="u-p0", name="p0", driver="afxdp", device="p0", ofport=1, mtu=1500, bond="bond0")


def test_a_bond_is_there_before_its_links_and_goes_after_them() -> None:
    wanted = configured(bond_row()).desired
    (bare,) = (replace(bridge, ports=(), bonds=()) for bridge in wanted.bridges)
    actions = plan(wanted, Observed({"br0": bare}))
    assert [type(action) for action in actions] == [AddBond, AddPort, AddPort]
    there = Observed({"br0": bare}, {"p0": ("br0", LINK)}, bonds={"bond0": ("br0", BOND)})
    assert plan(replace(wanted, bridges=(bare,)), there) == (DelPort("u-p0", "p0"), DelBond("p-bond0", "bond0"))


def test_settings_of_a_bond_change_live_and_another_bond_of_its_name_has_its_links_built_anew() -> None:
    (bridge,) = configured(bond_row()).desired.bridges
    bare = replace(bridge, ports=(), bonds=())
    there = Observed({"br0": bare}, {"p0": ("br0", LINK)}, bonds={"bond0": ("br0", BOND)})
    slow = replace(BOND, updelay_ms=500)

    def wanting(bond: Bond, port: NicPort) -> tuple[object, ...]:
        return plan(replace(configured().desired, bridges=(replace(bare, bonds=(bond,), ports=(port,)),)), there)

    assert wanting(replace(BOND, last_active="p1"), LINK) == (), "which was active before is no setting"
    assert wanting(slow, LINK) == (SetBond(slow),)
    other = replace(BOND, key="p-another")
    assert wanting(other, LINK) == (
        DelPort("u-p0", "p0"),
        DelBond("p-bond0", "bond0"),
        AddBond("br0", other),
        AddPort("br0", LINK),
    )
    alone = replace(LINK, bond=None)
    assert wanting(BOND, alone) == (DelPort("u-p0", "p0"), AddPort("br0", alone))


@dataclass
class ShownEnd:
    system: str
    system_priority: int
    port: int
    port_priority: int
    key: int
    state: list[str]


@dataclass
class ShownLacpLink:
    actor: ShownEnd
    partner: ShownEnd
    status: str = "current"
    attached: bool = True
    may_enable: bool = True


@dataclass
class ShownLacp:
    active: bool = True
    fast: bool = True
    fallback_ab: bool = True
    negotiated: bool = True
    system: str = "02:00:00:00:00:01"
    system_priority: int = 65534
    key: int = 3


@dataclass
class ShownLink:
    name: str
    enabled: bool = True
    may_enable: bool = True
    due_ms: int | None = None
    shares: tuple[tuple[int, int], ...] = ()
    lacp: ShownLacpLink | None = None


@dataclass
class Shown:
    name: str
    mode: str
    updelay_ms: int
    downdelay_ms: int
    primary: str | None
    active: str | None
    links: list[ShownLink]
    rebalance_ms: int | None = None
    lacp: ShownLacp | None = None


SHOWN = """\
---- bond0 ----
bond_mode: active-backup
bond may use recirculation: no, Recirc-ID : -1
bond-hash-basis: 0
lb_output action: disabled, bond-id: -1
updelay: 100 ms
downdelay: 0 ms
lacp_status: off
lacp_fallback_ab: false
active-backup primary: p7 (no such member)
active member mac: 02:00:00:00:00:01(p0)

member p0: enabled
  active member
  may_enable: true

member p1: disabled
  updelay expires in 42 ms
  may_enable: true

member p2: disabled
  may_enable: false

"""


def test_a_bond_is_shown_as_open_vswitch_shows_it() -> None:
    links = [ShownLink("p0"), ShownLink("p1", enabled=False, due_ms=42), ShownLink("p2", False, False)]
    bonds = [cast("Any", Shown("bond0", "active-backup", 100, 0, "p7", "p0", links))]
    assert bond_commands.bond_show(bonds, {"p0": "02:00:00:00:00:01"}) == SHOWN
    assert bond_commands.bond_list(bonds) == ("bond\ttype\trecircID\tmembers\nbond0\tactive-backup\t0\tp0, p1, p2\n")
    loaded = [ShownLink("p0", shares=((7, 5000), (9, 1000))), ShownLink("p1")]
    slb = [cast("Any", Shown("bond0", "balance-slb", 0, 0, None, "p0", loaded, rebalance_ms=4321))]
    text = bond_commands.bond_show(slb, {})
    assert "\nall members active: false\nupdelay: 0 ms\n" in text
    assert "\nnext rebalance: 4321 ms\nlacp_status: off\n" in text
    assert "  may_enable: true\n  hash 7: 4 kB load\n\nmember p1" in text
    nobody = [cast("Any", Shown("bond0", "active-backup", 0, 0, None, None, []))]
    text = bond_commands.bond_show(nobody, {})
    assert "active-backup primary: <none>\nactive member mac: 00:00:00:00:00:00(none)\n\n" in text


LACP_SHOWN = """\
---- bond0 ----
  status: active negotiated
  sys_id: 02:00:00:00:00:01
  sys_priority: 65534
  aggregation key: 3
  lacp_time: fast

member: p0: current attached
  port_id: 5
  port_priority: 65535
  may_enable: true

  actor sys_id: 02:00:00:00:00:01
  actor sys_priority: 65534
  actor port_id: 5
  actor port_priority: 65535
  actor key: 3
  actor state: activity timeout

  partner sys_id: 00:00:00:00:00:00
  partner sys_priority: 0
  partner port_id: 0
  partner port_priority: 0
  partner key: 0
  partner state:
"""


def test_lacp_is_shown_as_open_vswitch_shows_it() -> None:
    us = ShownEnd("02:00:00:00:00:01", 65534, 5, 65535, 3, ["activity", "timeout"])
    nobody = ShownEnd("00:00:00:00:00:00", 0, 0, 0, 0, [])
    bond = Shown("bond0", "balance-tcp", 0, 0, None, None, [ShownLink("p0", lacp=ShownLacpLink(us, nobody))])
    bond.lacp = ShownLacp()
    assert bond_commands.lacp_show([cast("Any", bond)]) == LACP_SHOWN
    assert "\nlacp_status: negotiated\nlacp_fallback_ab: true\n" in bond_commands.bond_show([cast("Any", bond)], {})
    bond.lacp.negotiated = False
    assert "\nlacp_status: configured\n" in bond_commands.bond_show([cast("Any", bond)], {})
