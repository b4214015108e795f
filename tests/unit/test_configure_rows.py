"""Rows to verdicts: what is served, what waits, what is refused and with which words."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ovsvhost.daemon.configure import Configuration, configure
from ovsvhost.daemon.rows import BridgeRow, InterfaceRow, PortRow, RootRow
from ovsvhost.daemon.settings import Startup, startup
from ovsvhost.model import AnyPort, Desired, NicPort, Port

if TYPE_CHECKING:
    from ovsvhost.daemon.verdict import Verdict

RUN = Path("/run/x")


def client(name: str, path: str | None = "", **columns: Any) -> InterfaceRow:
    options = {} if path is None else {"vhost-server-path": path or f"/s/{name}"}
    return InterfaceRow(
        uuid=f"u-{name}", name=name, type="dpdkvhostuserclient", options=options | columns.pop("options", {}), **columns
    )


def port(*interfaces: InterfaceRow, unserved: tuple[str, ...] = ()) -> PortRow:
    return PortRow(uuid=f"p-{interfaces[0].name}", name=interfaces[0].name, interfaces=interfaces, unserved=unserved)


LOCAL = port(InterfaceRow(uuid="u-br0", name="br0", type="internal"))


def root(*ports: PortRow, bridge: dict[str, Any] | None = None, **other_config: str) -> RootRow:
    row = BridgeRow(uuid="b", name="br0", datapath_type="netdev", ports=(LOCAL, *ports))
    options = {key.replace("_", "-"): value for key, value in other_config.items()}
    return RootRow(uuid="r", other_config=options, bridges=(replace(row, **(bridge or {})),))


def result(row: RootRow, held: dict[str, int] | None = None, at_start: Startup | None = None) -> Configuration:
    return configure(row, at_start or Startup({}), RUN, held or {})


def verdict(configuration: Configuration, name: str) -> Verdict:
    (found,) = [verdict for verdict in configuration.verdicts if verdict.name == name]
    return found


def ports(configuration: Configuration) -> dict[str, AnyPort]:
    return {port.name: port for bridge in configuration.desired.bridges for port in bridge.ports}


def guest_port(configuration: Configuration, name: str) -> Port:
    found = ports(configuration)[name]
    assert isinstance(found, Port)
    return found


def refusal(row: RootRow, name: str = "v0", held: dict[str, int] | None = None) -> str:
    configuration = result(row, held)
    found = verdict(configuration, name)
    assert (found.kind, found.ofport) == ("refused", -1)
    assert name not in ports(configuration)
    return "; ".join(found.errors)


def test_the_quick_example_gives_two_ports_numbered_by_name() -> None:
    configuration = result(root(port(client("dpdkvhostclient1")), port(client("dpdkvhostclient0"))))
    built = [guest_port(configuration, name) for name in ports(configuration)]
    assert {port.name: (port.ofport, port.socket) for port in built} == {
        "dpdkvhostclient0": (1, "/s/dpdkvhostclient0"),
        "dpdkvhostclient1": (2, "/s/dpdkvhostclient1"),
    }
    assert all(not verdict.errors for verdict in configuration.verdicts)


def test_the_bridges_own_port_is_local_and_has_a_mac_and_no_error() -> None:
    local = verdict(result(root()), "br0")
    assert (local.kind, local.ofport, local.errors) == ("local", 65534, ())
    assert int(local.mac[:2], 16) & 3 == 2, "locally administered unicast"
    assert local.mac == verdict(result(root()), "br0").mac


def test_hwaddr_is_the_bridges_address() -> None:
    row = root(bridge={"other_config": {"hwaddr": "02:00:00:AA:00:01"}})
    assert verdict(result(row), "br0").mac == "02:00:00:aa:00:01"


def test_A1_a_port_on_a_bridge_that_is_not_netdev_says_what_to_set() -> None:
    row = root(port(client("v0")), bridge={"datapath_type": ""})
    assert "ovs-vsctl set bridge br0 datapath_type=netdev" in refusal(row)
    assert result(row).desired == Desired(())
    assert verdict(result(row), "br0").ofport == -1


def test_A3_a_client_port_without_a_path_waits_with_a_number_and_says_so() -> None:
    configuration = result(root(port(client("v0", None))))
    waiting = verdict(configuration, "v0")
    assert (waiting.kind, waiting.ofport) == ("waiting", 1)
    assert "set options:vhost-server-path" in waiting.errors[0]
    assert ports(configuration) == {}


def test_A3_the_number_stays_when_the_path_comes() -> None:
    held = {"u-v0": verdict(result(root(port(client("v0", None)))), "v0").ofport}
    assert ports(result(root(port(client("a0")), port(client("v0"))), held))["v0"].ofport == held["u-v0"]


def test_A5_a_server_port_with_a_slash_in_its_name_is_refused() -> None:
    row = InterfaceRow(uuid="u", name="a/b", type="dpdkvhostuser")
    assert "no '/' or '\\'" in refusal(root(port(row)), "a/b")


def test_A6_a_sock_dir_with_dots_refuses_server_ports_and_serves_client_ports() -> None:
    server = InterfaceRow(uuid="u-s0", name="s0", type="dpdkvhostuser")
    at_start = startup({"vhost-sock-dir": "../x"})
    configuration = result(root(port(server), port(client("v0")), vhost_sock_dir="../x"), at_start=at_start)
    assert "may not hold '..'" in verdict(configuration, "s0").errors[0]
    assert list(ports(configuration)) == ["v0"]


def test_A6_server_sockets_lie_in_the_sock_dir() -> None:
    server = InterfaceRow(uuid="u-s0", name="s0", type="dpdkvhostuser")
    at_start = startup({"vhost-sock-dir": "sub"})
    configuration = result(root(port(server), vhost_sock_dir="sub"), at_start=at_start)
    assert guest_port(configuration, "s0").socket == "/run/x/sub/s0"


def test_L4_an_option_read_at_start_and_changed_since_is_pending() -> None:
    assert result(root(vhost_sock_dir="other"), at_start=startup({"vhost-sock-dir": "sub"})).pending == (
        "vhost-sock-dir",
    )
    assert result(root(), at_start=startup({"pmd-cpu-mask": "2"})).pending == (), "that one is live"
    assert result(root(vhost_sock_dir="sub"), at_start=startup({"vhost-sock-dir": "sub"})).pending == ()


@pytest.mark.parametrize("kind", ["internal", "gre"])
def test_a_type_that_is_not_served_says_which_are(kind: str) -> None:
    text = refusal(root(port(replace(client("v0"), type=kind))))
    for served in ("type=dpdkvhostuserclient ", "type=dpdkvhostuser ", "type=afxdp "):
        assert served in text


def nic(name: str, kind: str = "afxdp", **columns: Any) -> InterfaceRow:
    return InterfaceRow(uuid=f"u-{name}", name=name, type=kind, **columns)


def nic_port(configuration: Configuration, name: str) -> NicPort:
    found = ports(configuration)[name]
    assert isinstance(found, NicPort)
    return found


@pytest.mark.rows("A22")
def test_A22_an_afxdp_port_is_called_like_its_device_and_may_wait_for_it() -> None:
    configuration = result(root(port(nic("eth1", options={"n_rxq": "2", "xdp-mode": "native"})), port(client("v0"))))
    found = nic_port(configuration, "eth1")
    assert (found.driver, found.device, found.mtu, found.brings_up) == ("afxdp", "eth1", None, False)
    assert (found.settings.n_rxq, found.settings.xdp_mode) == (2, "native")
    assert verdict(configuration, "eth1").errors == ()
    assert verdict(configuration, "eth1").device == "eth1"


@pytest.mark.rows("A20", "A22")
def test_A20_a_dpdk_port_is_the_device_that_its_devargs_name() -> None:
    row = nic("dpdkport", "dpdk", options={"dpdk-devargs": "net_af_xdp0,iface=eth1", "n_txq_desc": "128"})
    found = nic_port(result(root(port(row))), "dpdkport")
    assert (found.driver, found.device, found.settings.n_txq_desc, found.brings_up) == ("afxdp", "eth1", 128, True)


@pytest.mark.rows("A20", "L5")
def test_A20_a_ring_size_that_cannot_be_is_said_at_its_row_and_the_old_one_stays() -> None:
    configuration = result(root(port(nic("eth1", options={"n_txq_desc": "100"}))))
    assert nic_port(configuration, "eth1").keeps == {"n_txq_desc"}
    assert "options:n_txq_desc='100' is not in force" in verdict(configuration, "eth1").errors[0]


@pytest.mark.rows("A18")
def test_A18_a_nics_mtu_out_of_range_is_said_in_ovs_words_and_the_device_keeps_its_own() -> None:
    configuration = result(root(port(nic("eth1", mtu_request=9703)), port(nic("eth2", mtu_request=9000))))
    assert nic_port(configuration, "eth1").mtu is None
    assert nic_port(configuration, "eth2").mtu == 9000
    assert verdict(configuration, "eth1").errors[0].startswith("eth1: unsupported MTU 9703")


def test_a_dpdk_port_without_a_device_says_how_to_name_one() -> None:
    assert "has no options:dpdk-devargs" in refusal(root(port(nic("dpdk0", "dpdk"))), "dpdk0")
    row = nic("dpdk0", "dpdk", options={"dpdk-devargs": "net_tap0,iface=tap0"})
    assert "not served yet" in refusal(root(port(row)), "dpdk0")


@pytest.mark.rows("A22")
@pytest.mark.parametrize("kind", ["", "system"])
def test_A22_a_port_without_a_type_is_the_device_of_its_name_over_af_packet(kind: str) -> None:
    configuration = result(root(port(nic("eth1", kind, options={"n_rxq_desc": "256", "n_rxq": "2"}))))
    found = nic_port(configuration, "eth1")
    assert (found.driver, found.device, found.settings.n_rxq_desc, found.settings.n_rxq) == ("packet", "eth1", 256, 1)
    (complaint,) = verdict(configuration, "eth1").errors
    assert "options:n_rxq is not in force, remove it: it belongs to ports over AF_XDP" in complaint


def test_a_name_that_no_device_can_have_is_refused() -> None:
    assert "a name has 1..15 bytes" in refusal(root(port(nic("a-name-of-16-byt"))), "a-name-of-16-byt")


def test_two_ports_of_one_device_the_one_that_has_it_keeps_it() -> None:
    row = nic("dpdk0", "dpdk", options={"dpdk-devargs": "net_af_xdp0,iface=eth1"})
    both = root(port(nic("eth1")), port(row))
    assert "device 'eth1' belongs to port 'dpdk0' already: give 'eth1' another device" in refusal(both, "eth1")
    assert "belongs to port 'eth1' already" in refusal(both, "dpdk0", held={"u-eth1": 1})


@pytest.mark.parametrize("unserved", ["tag=3", "trunks=1,2", "vlan_mode=access", "protected=true", "qos", "mirror m0"])
def test_a_port_column_that_is_not_served_keeps_the_port_out_and_names_the_column(unserved: str) -> None:
    assert unserved in refusal(root(port(client("v0"), unserved=(unserved,)), port(client("v1"))))


def test_policing_that_is_not_served_keeps_the_port_out() -> None:
    text = refusal(root(port(replace(client("v0"), unserved=("ingress_policing_rate=1000",)))))
    assert "ingress_policing_rate=1000" in text


@pytest.mark.parametrize("unserved", ["stp_enable=true", "fail_mode=secure", "mirrors=m0"])
def test_a_bridge_column_that_is_not_served_keeps_every_port_out(unserved: str) -> None:
    row = root(port(client("v0")), bridge={"unserved": (unserved,)})
    assert unserved in refusal(row)
    assert unserved in refusal(row, "br0")


def test_two_ports_with_one_path_the_one_that_has_it_keeps_it() -> None:
    row = root(port(client("v0", "/s/same")), port(client("v1", "/s//same")))
    assert "port 'v0'" in refusal(row, "v1")
    assert "port 'v1'" in refusal(row, "v0", held={"u-v1": 1})


def test_an_ofport_request_is_given() -> None:
    assert ports(result(root(port(client("v0", ofport_request=7)))))["v0"].ofport == 7


def test_an_ofport_request_that_is_in_use_names_the_holder() -> None:
    row = root(port(client("v0", ofport_request=7)), port(client("v1", ofport_request=7)))
    assert "port 'v0' has it" in refusal(row, "v1")
    assert "port 'v1' has it" in refusal(row, "v0", held={"u-v1": 7})


def test_an_asked_for_number_is_not_given_to_a_port_that_asks_for_none() -> None:
    given_out = ports(result(root(port(client("a0")), port(client("v0", ofport_request=1)))))
    assert (given_out["a0"].ofport, given_out["v0"].ofport) == (2, 1)


def test_numbers_survive_a_restart_and_a_deleted_neighbour() -> None:
    held = {"u-v0": 1, "u-v1": 2}
    assert ports(result(root(port(client("v1"))), held))["v1"].ofport == 2


def test_an_mtu_out_of_range_keeps_the_old_one_and_says_so_in_ovs_words() -> None:
    configuration = result(root(port(client("v0", mtu_request=9703))))
    assert ports(configuration)["v0"].mtu is None
    assert verdict(configuration, "v0").errors[0].startswith("v0: unsupported MTU 9703")


def test_an_mtu_in_range_is_in_force_and_1500_without_a_request() -> None:
    configuration = result(root(port(client("v0", mtu_request=9702)), port(client("v1"))))
    assert [port.mtu for port in ports(configuration).values()] == [9702, 1500]


@pytest.mark.rows("A10", "L5")
def test_steering_and_backpressure_of_a_row_are_in_force() -> None:
    row = client("v0", options={"backpressure-us": "500"}, other_config={"tx-steering": "thread"})
    configuration = result(root(port(row), port(client("v1", other_config={"tx-steering": "cpu"}))))
    first, second = guest_port(configuration, "v0"), guest_port(configuration, "v1")
    assert (first.backpressure_us, first.tx_steering) == (500, "thread")
    assert (second.backpressure_us, second.tx_steering) == (0, "hash")
    assert verdict(configuration, "v0").errors == ()
    assert "tx-steering='cpu' of interface 'v1' is not in force" in verdict(configuration, "v1").errors[0]


@pytest.mark.rows("A10", "L5")
@pytest.mark.parametrize("kind", ["dpdkvhostuserclient", "dpdkvhostuser"])
def test_a_number_of_queues_set_by_hand_is_refused_aloud_and_the_guests_counts(kind: str) -> None:
    row = replace(client("v0", options={"n_rxq": "4"}), type=kind)
    configuration = result(root(port(row)))
    assert (
        "options:n_rxq is not in force, remove it: the number of queues follows the guest"
        in verdict(configuration, "v0").errors
    )
    assert "v0" in ports(configuration), "it works with as many as its guest has"


def test_an_unknown_option_is_said_and_the_port_works() -> None:
    configuration = result(root(port(client("v0", options={"foo": "1"}))))
    assert verdict(configuration, "v0").errors == ("options:foo is unknown: remove it or correct its name",)
    assert "v0" in ports(configuration)


def test_an_fdb_option_out_of_range_is_said_at_the_bridges_own_port() -> None:
    row = root(bridge={"other_config": {"mac-aging-time": "5", "mac-table-size": "100"}})
    (bridge,) = result(row).desired.bridges
    assert (bridge.mac_aging_time_s, bridge.mac_table_size) == (300, 100)
    local = verdict(result(row), "br0")
    assert local.kind == "local"
    assert "mac-aging-time='5'" in local.errors[0]


@pytest.mark.rows("L5")
def test_a_key_of_other_config_that_nobody_reads_is_said_at_its_row_and_the_row_works() -> None:
    foo = {"foo": "1"}
    own = InterfaceRow(uuid="u-br0", name="br0", type="internal", other_config=foo)
    local = replace(LOCAL, interfaces=(own,), other_config=foo)
    guest = replace(port(client("v0", other_config=foo)), other_config=foo)
    device = port(nic("eth1", other_config={"tx-steering": "thread"}))
    row = root(bridge={"other_config": foo | {"forward-bpdu": "yes"}, "ports": (local, guest, device)}, foo="1")
    configuration = result(row)
    assert list(ports(configuration)) == ["v0", "eth1"]
    assert configuration.refused.keys() == {"foo"}

    def said(*rows: str, key: str = "foo") -> tuple[str, ...]:
        return tuple(
            f"other_config:{key} of {row} is not in force: it is unknown or not served, clear it" for row in rows
        )

    bpdu = "other_config:forward-bpdu='yes' of bridge 'br0' is not in force (false is): give true or false"
    assert verdict(configuration, "br0").errors == (bpdu, *said("bridge 'br0'", "port 'br0'", "interface 'br0'"))
    assert verdict(configuration, "v0").errors == said("interface 'v0'", "port 'v0'")
    assert verdict(configuration, "eth1").errors == said("interface 'eth1'", key="tx-steering")


@pytest.mark.rows("L5")
@pytest.mark.parametrize("address", ["02:00:00:aa:00", "03:00:00:00:00:01", "00:00:00:00:00:00", ""])
def test_an_address_that_no_bridge_can_have_is_said_and_not_shown(address: str) -> None:
    local = verdict(result(root(bridge={"other_config": {"hwaddr": address}})), "br0")
    assert local.mac == verdict(result(root()), "br0").mac
    assert f"other_config:hwaddr={address!r} of bridge 'br0' is not in force" in local.errors[0]


NAMES = st.sampled_from(["v0", "v1", "v2", "a/b", "br0", "br1"])
INTERFACES = st.builds(
    InterfaceRow,
    uuid=st.uuids().map(str),
    name=NAMES,
    type=st.sampled_from(["", "internal", "dpdkvhostuser", "dpdkvhostuserclient", "gre", "afxdp", "dpdk"]),
    options=st.dictionaries(
        st.sampled_from(
            ["vhost-server-path", "tx-retries-max", "backpressure-us", "socket-mode", "foo", "dpdk-devargs", "n_rxq"]
        ),
        st.text(max_size=120),
    ),
    other_config=st.dictionaries(st.sampled_from(["tx-steering", "pmd-rxq-affinity", "foo"]), st.text()),
    mac=st.none() | st.just("02:00:00:00:00:01"),
    mtu_request=st.none() | st.integers(1, 20000),
    ofport_request=st.none() | st.integers(1, 3),
    unserved=st.sampled_from([(), ("bfd:enable",)]),
    ofport=st.none() | st.integers(-1, 65534),
)
BRIDGES = st.builds(
    BridgeRow,
    uuid=st.uuids().map(str),
    name=st.sampled_from(["br0", "br1"]),
    datapath_type=st.sampled_from(["netdev", "netdev", "system"]),
    other_config=st.dictionaries(st.sampled_from(["mac-aging-time", "forward-bpdu", "hwaddr", "foo"]), st.text()),
    ports=st.lists(
        st.builds(
            PortRow,
            uuid=st.uuids().map(str),
            name=NAMES,
            interfaces=st.lists(INTERFACES, min_size=1, max_size=2, unique_by=lambda row: row.name).map(tuple),
            unserved=st.sampled_from([(), ("tag=1",)]),
        ),
        max_size=4,
        unique_by=lambda row: row.name,
    ).map(tuple),
)


def names_are_unique(bridges: list[BridgeRow]) -> bool:
    """What the schema's indexes hold."""
    names = [row.name for bridge in bridges for port in bridge.ports for row in port.interfaces]
    return len(names) == len(set(names))


@given(
    st.lists(BRIDGES, max_size=2, unique_by=lambda row: row.name).filter(names_are_unique),
    st.dictionaries(st.sampled_from(["vhost-sock-dir", "pmd-cpu-mask", "pmd-sleep-max", "foo"]), st.text()),
)
def test_no_database_is_refused_and_every_interface_gets_one_verdict(
    bridges: list[BridgeRow], other_config: dict[str, str]
) -> None:
    rows = [row for bridge in bridges for port in bridge.ports for row in port.interfaces]
    held = {row.uuid: row.ofport for row in rows if row.ofport}
    at_start = startup(other_config)
    configuration = configure(RootRow(uuid="r", bridges=tuple(bridges)), at_start, RUN, held)
    assert sorted(verdict.uuid for verdict in configuration.verdicts) == sorted(row.uuid for row in rows)
    built = {port.key for bridge in configuration.desired.bridges for port in bridge.ports}
    for found in configuration.verdicts:
        assert (found.kind == "active") == (found.uuid in built)
        assert (found.ofport == -1) == (found.kind == "refused")
        assert found.errors or found.kind in {"active", "local"}
