"""The plan against a naive model of the datapath: whatever is there and whatever is wanted, one pass gets there."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ovsvhost.model import (
    RXQ_POLICIES,
    AnyPort,
    AutoBalance,
    Bond,
    Bridge,
    Desired,
    NicPort,
    NicSettings,
    PollThreads,
    Port,
)
from ovsvhost.nic.rtnetlink import Link
from ovsvhost.observed import Observed
from ovsvhost.plan import (
    AddBond,
    AddBridge,
    AddPort,
    DelBond,
    DelBridge,
    DelPort,
    LimitFeatures,
    SetAffinity,
    SetBond,
    SetBridge,
    SetNic,
    SetPmds,
    SetPort,
    SetSharing,
    SetSleep,
    SetUp,
    plan,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ovsvhost.model import FeatureLimit
    from ovsvhost.plan import Action, PortChanges

KEYS = st.sampled_from(["k1", "k2"])
PORT_NAMES = ["p0", "p1", "p2", "p3"]


def guest_port(draw: st.DrawFn, name: str, number: int, socket: str) -> Port:
    return Port(
        key=draw(KEYS),
        name=name,
        type=draw(st.sampled_from(["dpdkvhostuserclient", "dpdkvhostuser"])),
        socket=socket,
        ofport=number + draw(st.sampled_from([1, 10])),
        mtu=draw(st.sampled_from([None, 1500, 9000])),
        tx_retries_max=draw(st.sampled_from([0, 8])),
        backpressure_us=draw(st.sampled_from([0, 1000])),
        tx_steering=draw(st.sampled_from(["hash", "thread"])),
        dq_zero_copy=draw(st.booleans()),
        socket_mode=draw(st.sampled_from([0o600, 0o660])),
        rxq_affinity=draw(st.sampled_from([None, (), ((0, 1),), ((0, 2), (1, 1))])),
    )


def nic_port(draw: st.DrawFn, name: str, number: int, device: str) -> NicPort:
    return NicPort(
        key=draw(KEYS),
        name=name,
        driver="afxdp",
        device=device,
        ofport=number + draw(st.sampled_from([1, 10])),
        mtu=draw(st.sampled_from([None, 1500, 9000])),
        tx_retries_max=draw(st.sampled_from([0, 8])),
        brings_up=draw(st.booleans()),
        settings=NicSettings(n_txq_desc=draw(st.sampled_from([128, 2048])), n_rxq=draw(st.sampled_from([1, 2]))),
        keeps=draw(st.sampled_from([frozenset(), frozenset({"n_txq_desc"})])),
        rxq_affinity=draw(st.sampled_from([None, (), ((0, 1),)])),
    )


@st.composite
def desired(draw: st.DrawFn) -> Desired:
    names = draw(st.lists(st.sampled_from(["br0", "br1", "br2"]), unique=True))
    ports: dict[str, list[AnyPort]] = {name: [] for name in names}
    bonds: dict[str, list[Bond]] = {name: [] for name in names}
    for name in draw(st.lists(st.sampled_from(["bond0", "bond1"]), unique=True)) if names else []:
        bond = Bond(key=draw(KEYS), name=name, updelay_ms=draw(st.sampled_from([0, 100])))
        bonds[draw(st.sampled_from(names))].append(bond)
    places = draw(st.permutations(["0", "1", "2", "3"]))
    for number, name in enumerate(draw(st.lists(st.sampled_from(PORT_NAMES), unique=True)) if names else []):
        port: AnyPort
        bridge = draw(st.sampled_from(names))
        on = ports[bridge]
        if draw(st.booleans()):
            port = guest_port(draw, name, number, f"/s/{places[number]}")
        else:
            port = nic_port(draw, name, number, f"eth{places[number]}")
            port = replace(port, bond=draw(st.sampled_from([None, *(bond.name for bond in bonds[bridge])])))
        if all(other.ofport != port.ofport for other in on):
            on.append(port)
    return Desired(
        tuple(
            Bridge(
                key=draw(KEYS),
                name=name,
                mac_aging_time_s=draw(st.sampled_from([15, 300])),
                ports=tuple(ports[name]),
                bonds=tuple(bonds[name]),
            )
            for name in names
        ),
        PollThreads(
            cpus=draw(st.frozensets(st.integers(0, 3))),
            max_sleep_us=draw(st.sampled_from([None, 0, 50])),
            max_sleep_us_of=draw(st.sampled_from([(), ((1, 5),)])),
            assign=draw(st.sampled_from(RXQ_POLICIES)),
            isolate=draw(st.booleans()),
            auto_balance=draw(st.sampled_from([None, AutoBalance(), AutoBalance(every_min=2)])),
        ),
        draw(st.sampled_from(["all", "ovs-3.1", 0x8000])),
    )


class NaiveDatapath:
    """What the actions mean, with every precondition that the real one has."""

    def __init__(self) -> None:
        self.bridges: dict[str, Bridge] = {}
        self.ports: dict[str, tuple[str, AnyPort]] = {}
        self.bonds: dict[str, tuple[str, Bond]] = {}
        self.pmds = PollThreads()
        # a device that is down, one that is up, and two that are not there
        self.links = {"eth0": Link(2, "eth0"), "eth1": Link(3, "eth1", admin_up=True)}
        self.set_up: set[int] = set()
        self.feature_limit: FeatureLimit = "all"

    def carry_out(self, actions: Iterable[Action]) -> None:
        for action in actions:
            self._one(action)

    def _one(self, action: Action) -> None:
        match action:
            case DelPort(key=key, name=name):
                assert self.ports.pop(name)[1].key == key
            case DelBridge(key=key, name=name):
                assert all(bridge != name for bridge, _ in self.ports.values()), "a bridge went with ports on it"
                assert all(bridge != name for bridge, _ in self.bonds.values()), "a bridge went with bonds on it"
                assert self.bridges.pop(name).key == key
            case AddBridge(bridge=bridge):
                assert bridge.name not in self.bridges
                assert not bridge.ports
                self.bridges[bridge.name] = bridge
            case SetBridge(bridge=bridge):
                assert self.bridges[bridge.name].key == bridge.key
                self.bridges[bridge.name] = bridge
            case AddBond(bridge=on, bond=bond):
                assert on in self.bridges
                assert bond.name not in self.bonds
                self.bonds[bond.name] = (on, bond)
            case SetBond(bond=bond):
                on, before = self.bonds[bond.name]
                assert before.key == bond.key
                self.bonds[bond.name] = (on, bond)
            case DelBond(key=key, name=name):
                assert all(isinstance(port, Port) or port.bond != name for _, port in self.ports.values())
                assert self.bonds.pop(name)[1].key == key
            case AddPort(bridge=on, port=port):
                assert isinstance(port, Port) or port.bond is None or self.bonds[port.bond][0] == on
                assert on in self.bridges
                assert port.name not in self.ports
                assert place(port) not in {place(other) for _, other in self.ports.values()}
                assert not isinstance(port, NicPort) or not port.keeps, "nothing is left open when it is added"
                assert (on, port.ofport) not in {(bridge, other.ofport) for bridge, other in self.ports.values()}
                self.ports[port.name] = (
                    on,
                    replace(port, mtu=port.mtu or 1500, rxq_affinity=port.rxq_affinity or ()),
                )
            case SetPort(port=port, changes=changes):
                on, now = self.ports[port.name]
                assert now.key == port.key
                if isinstance(now, NicPort):
                    assert changes.keys() <= {"mtu", "tx_retries_max"}, "the rest means nothing to a device"
                    mtu, retries = changes.get("mtu", now.mtu), changes.get("tx_retries_max", now.tx_retries_max)
                    self.ports[port.name] = (on, replace(now, mtu=mtu, tx_retries_max=retries))
                else:
                    self.ports[port.name] = (on, replace(now, **changes))
            case SetUp(port=nic):
                link = self.links[nic.device]
                assert link.ifindex not in self.set_up
                self.set_up.add(link.ifindex)
                self.links[nic.device] = replace(link, admin_up=True)
            case SetNic(port=nic):
                on, now = self.ports[nic.name]
                assert isinstance(now, NicPort)
                assert (now.key, now.device) == (nic.key, nic.device)
                self.ports[nic.name] = (on, replace(now, settings=nic.settings))
            case SetAffinity(port=port, cpus=cpus):
                on, now = self.ports[port.name]
                assert now.key == port.key
                self.ports[port.name] = (on, replace(now, rxq_affinity=cpus))
            case SetPmds(cpus=cpus):
                self.pmds = replace(self.pmds, cpus=cpus)
            case SetSleep(pmds=pmds):
                self.pmds = replace(self.pmds, max_sleep_us=pmds.max_sleep_us, max_sleep_us_of=pmds.max_sleep_us_of)
            case SetSharing(pmds=pmds):
                self.pmds = replace(self.pmds, assign=pmds.assign, isolate=pmds.isolate, auto_balance=pmds.auto_balance)
            case LimitFeatures(limit=limit):
                self.feature_limit = limit

    def observed(self) -> Observed:
        return Observed(
            dict(self.bridges),
            dict(self.ports),
            self.pmds,
            self.feature_limit,
            dict(self.links),
            frozenset(self.set_up),
            dict(self.bonds),
        )


def place(port: AnyPort) -> str:
    return port.socket if isinstance(port, Port) else port.device


def assert_is(datapath: NaiveDatapath, wanted: Desired) -> None:
    assert datapath.pmds == wanted.pmds
    assert datapath.feature_limit == wanted.feature_limit
    assert datapath.bridges == {bridge.name: replace(bridge, ports=(), bonds=()) for bridge in wanted.bridges}
    assert datapath.bonds == {bond.name: (bridge.name, bond) for bridge in wanted.bridges for bond in bridge.bonds}
    assert {name: on for name, (on, _) in datapath.ports.items()} == {
        port.name: bridge.name for bridge in wanted.bridges for port in bridge.ports
    }
    for bridge in wanted.bridges:
        for port in bridge.ports:
            _, now = datapath.ports[port.name]
            wanted_now = replace(
                port,
                mtu=now.mtu if port.mtu is None else port.mtu,
                rxq_affinity=now.rxq_affinity if port.rxq_affinity is None else port.rxq_affinity,
            )
            if isinstance(wanted_now, NicPort) and isinstance(now, NicPort):
                kept = {name: getattr(now.settings, name) for name in wanted_now.keeps}
                wanted_now = replace(
                    wanted_now,
                    settings=replace(wanted_now.settings, **kept),
                    keeps=frozenset(),
                    brings_up=now.brings_up,  # says what is done with the device, not what the port is
                )
            assert now == wanted_now


@given(st.lists(desired(), min_size=1, max_size=4))
def test_carrying_a_plan_out_gives_what_was_wanted_and_the_next_plan_is_empty(history: list[Desired]) -> None:
    datapath = NaiveDatapath()
    for wanted in history:
        datapath.carry_out(plan(wanted, datapath.observed()))
        assert_is(datapath, wanted)
        assert plan(wanted, datapath.observed()) == ()


@given(desired(), st.data())
def test_a_plan_that_broke_off_anywhere_is_finished_by_the_next_one(wanted: Desired, data: st.DataObject) -> None:
    datapath = NaiveDatapath()
    actions = plan(wanted, datapath.observed())
    datapath.carry_out(actions[: data.draw(st.integers(0, len(actions)))])
    datapath.carry_out(plan(wanted, datapath.observed()))
    assert_is(datapath, wanted)


PORT = Port(key="p", name="v0", type="dpdkvhostuserclient", socket="/s/v0", ofport=1)
NIC = NicPort(key="n", name="eth0", driver="afxdp", device="eth0", ofport=3)
OTHER = Port(key="q", name="v1", type="dpdkvhostuserclient", socket="/s/v1", ofport=2)
BRIDGE = Bridge(key="b", name="br0")


def there(*ports: AnyPort) -> Observed:
    return Observed({"br0": BRIDGE}, {port.name: ("br0", port) for port in ports})


def wanting(*ports: AnyPort) -> Desired:
    return Desired((replace(BRIDGE, ports=ports),))


@pytest.mark.rows("L5")
def test_what_can_change_with_the_guest_attached_does() -> None:
    changes: PortChanges = {
        "mtu": 9000, "tx_retries_max": 0, "backpressure_us": 500, "tx_steering": "thread", "dq_zero_copy": True,
    }  # fmt: skip
    changed = replace(PORT, **changes)
    assert plan(wanting(changed), there(PORT)) == (SetPort(changed, changes),)
    assert plan(wanting(changed), there(changed)) == ()


def test_an_affinity_changes_with_the_guest_attached_and_one_that_was_refused_leaves_the_old_one() -> None:
    pinned = replace(PORT, rxq_affinity=((0, 2),))
    assert plan(wanting(pinned), there(PORT)) == (SetAffinity(pinned, ((0, 2),)),)
    assert plan(wanting(replace(PORT, rxq_affinity=None)), there(pinned)) == ()


def test_each_kind_of_change_to_the_poll_threads_is_an_action_of_its_own() -> None:
    wanted = PollThreads(cpus=frozenset({1, 2}), max_sleep_us=0, assign="group")
    assert plan(Desired((), wanted), Observed()) == (SetSleep(wanted), SetSharing(wanted), SetPmds(frozenset({1, 2})))
    assert plan(Desired((), wanted), Observed(pmds=replace(wanted, cpus=frozenset()))) == (SetPmds(wanted.cpus),)


def test_what_guests_are_offered_is_in_force_before_the_first_port_is_there() -> None:
    wanted = replace(wanting(PORT), feature_limit="ovs-3.1")
    assert plan(wanted, Observed())[0] == LimitFeatures("ovs-3.1")
    assert plan(wanted, replace(there(PORT), feature_limit="ovs-3.1")) == ()


def test_an_mtu_that_was_refused_leaves_the_old_one() -> None:
    assert plan(wanting(replace(PORT, mtu=None)), there(replace(PORT, mtu=9000))) == ()


def test_a_new_socket_makes_a_new_port_and_leaves_its_neighbour_alone() -> None:
    moved = replace(PORT, socket="/s/new")
    assert plan(wanting(moved, OTHER), there(PORT, OTHER)) == (DelPort("p", "v0"), AddPort("br0", moved))


def test_two_ports_that_swap_sockets_are_both_deleted_before_either_is_added() -> None:
    first, second = replace(PORT, socket=OTHER.socket), replace(OTHER, socket=PORT.socket)
    kinds = [type(action) for action in plan(wanting(first, second), there(PORT, OTHER))]
    assert kinds == [DelPort, DelPort, AddPort, AddPort]


def test_a_bridge_of_the_same_name_and_another_key_is_built_anew_with_its_ports() -> None:
    again = replace(BRIDGE, key="another")
    assert plan(Desired((replace(again, ports=(PORT,)),)), there(PORT)) == (
        DelPort("p", "v0"),
        DelBridge("b", "br0"),
        AddBridge(again),
        AddPort("br0", PORT),
    )


def test_a_bridge_setting_changes_live() -> None:
    changed = replace(BRIDGE, mac_table_size=100)
    assert plan(Desired((replace(changed, ports=(PORT,)),)), there(PORT)) == (SetBridge(changed),)


@pytest.mark.rows("A20", "L5")
def test_a_nics_settings_change_live_and_one_that_cannot_be_leaves_the_old_one() -> None:
    small = replace(NIC, settings=NicSettings(n_txq_desc=128))
    assert plan(wanting(small), there(NIC)) == (SetNic(small),)
    unreadable = replace(NIC, keeps=frozenset({"n_txq_desc"}))
    assert plan(wanting(unreadable), there(small)) == ()
    assert plan(wanting(unreadable), Observed({"br0": BRIDGE})) == (AddPort("br0", NIC),)


@pytest.mark.rows("A22", "L5")
def test_a_nics_mtu_changes_live_and_without_a_request_the_device_keeps_its_own() -> None:
    jumbo = replace(NIC, mtu=9000)
    assert plan(wanting(jumbo), there(replace(NIC, mtu=1500))) == (SetPort(jumbo, {"mtu": 9000}),)
    assert plan(wanting(NIC), there(jumbo)) == ()


def test_another_device_makes_another_port() -> None:
    moved = replace(NIC, device="eth1")
    assert plan(wanting(moved), there(NIC)) == (DelPort("n", "eth0"), AddPort("br0", moved))


def test_a_guests_port_that_becomes_a_nic_is_another_port() -> None:
    nic = replace(NIC, key=PORT.key, name=PORT.name)
    assert plan(wanting(nic), there(PORT)) == (DelPort("p", "v0"), AddPort("br0", nic))


@pytest.mark.rows("A22")
def test_the_switchs_own_device_is_set_up_once_and_again_when_it_is_another() -> None:
    dpdk = replace(NIC, brings_up=True)

    def machine(link: Link, *set_up: int) -> Observed:
        return replace(there(NIC), links={"eth0": link}, set_up=frozenset(set_up))

    down = Link(2, "eth0")
    assert plan(wanting(dpdk), machine(down)) == (SetUp(dpdk),)
    assert plan(wanting(dpdk), machine(down, 2)) == (), "whoever set it down has a reason"
    assert plan(wanting(dpdk), machine(Link(9, "eth0"), 2)) == (SetUp(dpdk),)
    assert plan(wanting(dpdk), machine(replace(down, admin_up=True))) == ()
    assert plan(wanting(NIC), machine(down)) == (), "an afxdp port's device is its user's"
