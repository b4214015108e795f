"""Bonds, end to end: ``ovs-vsctl add-bond``, and at the other end of both cables Linux's own bridge."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest

from ovsvhost.testing.bonded_host import BridgedHost
from ovsvhost.testing.kernel_host import KernelHost, copy_bytes
from ovsvhost.testing.namespace import ip_command
from ovsvhost.testing.stock import ovs_appctl, ovs_vsctl, row, run
from ovsvhost.testing.wait import wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from ovsvhost.testing.daemon import SwitchDaemon
    from ovsvhost.testing.traffic import Copy

pytestmark = [pytest.mark.peer, pytest.mark.timeout(300)]

MIB = 1 << 20
REACHABLE_S = 20


@pytest.fixture
def ends(short_folder: Path) -> Iterator[tuple[KernelHost, BridgedHost]]:
    """A host that is the switch's own, and the neighbour behind two cables; nothing is plugged in yet."""
    with KernelHost(short_folder, 1) as host, BridgedHost(short_folder, 2) as neighbour:
        yield host, neighbour


@pytest.fixture
def bonded(switch: SwitchDaemon, ends: tuple[KernelHost, BridgedHost]) -> tuple[KernelHost, BridgedHost]:
    """Both on bridge ``br0``, the neighbour behind ``bond0``, each within the other's reach."""
    host, neighbour = ends
    ovs_vsctl(switch, "add-br", "br0", "--", "set", "bridge", "br0", "datapath_type=netdev")
    ovs_vsctl(switch, "set", "Open_vSwitch", ".", "other_config:stats-update-interval=100")
    device = host.plug()
    ovs_vsctl(switch, "add-port", "br0", device, "--", "set", "Interface", device, "type=afxdp")
    add_bond(switch, *neighbour.plug_cables())
    wait_reachable(host, neighbour.address.ipv4)
    return host, neighbour


def add_bond(switch: SwitchDaemon, first: str, second: str, *columns: str) -> None:
    types = [("--", "set", "Interface", device, "type=afxdp") for device in (first, second)]
    ovs_vsctl(switch, "add-bond", "br0", "bond0", first, second, *columns, *types[0], *types[1])
    for device in (first, second):
        switch.wait_link(device)


def wait_reachable(host: KernelHost, target: str) -> None:
    wait_for(lambda: host.answers(target), timeout_s=REACHABLE_S, what=f"{target} to answer {host.name}")


def address_of(device: str) -> str:
    return ip_command("cat", f"/sys/class/net/{device}/address").strip()


def make_active(switch: SwitchDaemon, device: str) -> None:
    """Until now it is the one that came first."""
    ovs_appctl(switch, "bond/set-active-member", "bond0", device)
    wait_active(switch, device)


def wait_active(switch: SwitchDaemon, device: str) -> None:
    """Until the database and ``bond/show`` name it."""
    line = f"active member mac: {address_of(device)}({device})"
    wait_for(
        lambda: line in ovs_appctl(switch, "bond/show", "bond0").splitlines(),
        timeout_s=20,
        what=f"{device} to be active",
    )
    wait_for(
        lambda: row(switch, "Port", "bond0")["bond_active_slave"] == address_of(device),
        timeout_s=20,
        what=f"bond_active_slave to be {device}'s",
    )


@pytest.mark.rows("A20", "A22", "B7")
def test_A22_a_host_and_a_bridge_behind_a_bond_of_two_talk_as_over_one_wire(
    switch: SwitchDaemon, bonded: tuple[KernelHost, BridgedHost]
) -> None:
    host, neighbour = bonded
    first, second = sorted(neighbour.cables)
    make_active(switch, first)
    for family in ("ipv4", "ipv6"):
        target = getattr(neighbour.address, family)
        assert host.ping(target, count=5, size=1400).received == 5
        assert copy_bytes(host, neighbour, getattr(host.address, family), size=8 * MIB).intact
        assert copy_bytes(neighbour, host, target, size=8 * MIB).intact
    sent = [switch.statistic(device, "tx_packets") for device in (first, second)]
    assert sent[0] > 50 * sent[1], "what went before that link was active"
    assert switch.wait_statistic(second, "rx_drop_inactive_member", more_than=0), "what the bridge floods comes twice"
    shown = ovs_appctl(switch, "bond/show")
    assert shown == (
        "---- bond0 ----\nbond_mode: active-backup\nbond may use recirculation: no, Recirc-ID : -1\n"
        "bond-hash-basis: 0\nlb_output action: disabled, bond-id: -1\nupdelay: 0 ms\ndowndelay: 0 ms\n"
        "lacp_status: off\nlacp_fallback_ab: false\nactive-backup primary: <none>\n"
        f"active member mac: {address_of(first)}({first})\n\n"
        f"member {first}: enabled\n  active member\n  may_enable: true\n\n"
        f"member {second}: enabled\n  may_enable: true\n\n"
    )
    assert ovs_appctl(switch, "bond/list").splitlines()[1] == f"bond0\tactive-backup\t0\t{first}, {second}"
    known = [line.split() for line in ovs_appctl(switch, "fdb/show", "br0").splitlines()[1:]]
    ofport = row(switch, "Interface", first)["ofport"]
    assert [words[0] for words in known if words[2] == neighbour.mac] == [str(ofport)]


@pytest.mark.rows("A20", "A22", "C1")
def test_A22_a_transfer_goes_on_when_its_link_goes_and_comes_and_goes_again(
    switch: SwitchDaemon, bonded: tuple[KernelHost, BridgedHost]
) -> None:
    host, neighbour = bonded
    first, second = sorted(neighbour.cables)
    make_active(switch, first)
    for active, other, source, target in ((first, second, host, neighbour), (second, first, neighbour, host)):
        results: list[Copy] = []

        def copy(source: KernelHost = source, target: KernelHost = target, into: list[Copy] = results) -> None:
            into.append(copy_bytes(source, target, source.address.ipv4, size=32 * MIB))

        moved = switch.statistic(active, "rx_packets")
        thread = threading.Thread(target=copy)
        thread.start()
        switch.wait_statistic(active, "rx_packets", more_than=moved + 100)
        ip_command("ip", "link", "set", active, "down")
        thread.join(120)
        assert results, "the transfer stands still"
        assert results[0].intact
        wait_active(switch, other)
        switch.wait_column(active, "error", f"{active} is down: bring it up (ip link set {active} up)")
        ip_command("ip", "link", "set", active, "up")
        switch.wait_link(active)
        assert address_of(other) == row(switch, "Port", "bond0")["bond_active_slave"], "who carries goes on"


@pytest.mark.rows("A22", "B7", "L5")
def test_A22_a_bonds_columns_change_live_and_commands_answer_as_in_open_vswitch(
    switch: SwitchDaemon, bonded: tuple[KernelHost, BridgedHost]
) -> None:
    host, neighbour = bonded
    first, second = sorted(neighbour.cables)
    make_active(switch, first)
    ovs_vsctl(switch, "set", "Port", "bond0", "bond_updelay=100", f"other_config:bond-primary={second}")
    wait_active(switch, second)
    shown = ovs_appctl(switch, "bond/show", "bond0").splitlines()
    assert {"updelay: 100 ms", f"active-backup primary: {second}"} <= set(shown)
    for words, answer in (
        (("set-active-slave", "bond0", first), "done"),
        (("set-active-member", "bond0", first), "no change"),
        (("disable-slave", "bond0", first), "disabled"),
        (("enable-member", "bond0", first), "enabled"),
    ):
        assert ovs_appctl(switch, f"bond/{words[0]}", *words[1:]).strip() == answer
        wait_reachable(host, neighbour.address.ipv4)
    for command, answer in (("show bond7", "no such bond"), ("set-active-member bond0 p7", "no such member")):
        done = run("ovs-appctl", switch, *f"bond/{command}".split())
        assert done.returncode != 0
        assert answer in done.stderr
    ovs_vsctl(switch, "set", "Port", "bond0", "bond_mode=balance-tcp")
    for device in (first, second):
        assert "no LACP, so it does not forward: ovs-vsctl set port bond0" in row(switch, "Interface", device)["error"]
    assert "lacp_status: off" in ovs_appctl(switch, "bond/show", "bond0").splitlines()
    assert not host.answers(neighbour.address.ipv4)
    ovs_vsctl(switch, "set", "Port", "bond0", "bond_mode=active-backup")
    wait_reachable(host, neighbour.address.ipv4)
    ovs_vsctl(switch, "del-port", "bond0")
    assert ovs_appctl(switch, "bond/list").splitlines() == ["bond\ttype\trecircID\tmembers"]
    assert not host.answers(neighbour.address.ipv4)


@pytest.mark.rows("A22", "B7", "L5")
def test_A22_a_bond_that_shares_out_talks_to_a_bridge_that_knows_nothing_of_it(
    switch: SwitchDaemon, bonded: tuple[KernelHost, BridgedHost]
) -> None:
    host, neighbour = bonded
    first, second = sorted(neighbour.cables)
    ovs_vsctl(switch, "set", "Port", "bond0", "bond_mode=balance-slb", "other_config:bond-rebalance-interval=1000")
    make_active(switch, first)
    shown = ovs_appctl(switch, "bond/show", "bond0").splitlines()
    assert {"bond_mode: balance-slb", "all members active: false"} <= set(shown)
    for member in (first, second):
        # every share over one link, then over both: whichever it is, what is for all comes once and nothing comes back
        other = second if member == first else first
        assert ovs_appctl(switch, "bond/disable-member", "bond0", other).strip() == "disabled"
        for family in ("ipv4", "ipv6"):
            assert host.ping(getattr(neighbour.address, family), count=5, size=1400).received == 5
            assert copy_bytes(host, neighbour, getattr(host.address, family), size=4 * MIB).intact
            assert copy_bytes(neighbour, host, getattr(neighbour.address, family), size=4 * MIB).intact
        assert ovs_appctl(switch, "bond/enable-member", "bond0", other).strip() == "enabled"
        assert ovs_appctl(switch, "bond/migrate", "bond0", "7", other).strip() == "migrated"
        assert host.ping(neighbour.address.ipv4, count=5).received == 5
    for words, answer in (("bond0 0 p7", "no such member"), (f"bond0 x {first}", "bad hash")):
        done = run("ovs-appctl", switch, "bond/migrate", *words.split())
        assert answer in done.stderr
    ip_command("ip", "link", "set", first, "down")
    wait_active(switch, second)
    wait_reachable(host, neighbour.address.ipv4)
    ovs_vsctl(switch, "set", "Port", "bond0", "bond_mode=active-backup")
    wait_reachable(host, neighbour.address.ipv4)
    assert "not an SLB bond" in run("ovs-appctl", switch, "bond/migrate", "bond0", "0", second).stderr


@pytest.mark.rows("A13", "A22")
def test_A22_after_a_restart_the_link_is_active_that_was_before(
    switch: SwitchDaemon, bonded: tuple[KernelHost, BridgedHost]
) -> None:
    host, neighbour = bonded
    first, second = sorted(neighbour.cables)
    make_active(switch, first)
    ovs_appctl(switch, "bond/set-active-member", "bond0", second)
    wait_active(switch, second)
    switch.kill()
    switch.start()
    for device in (first, second):
        switch.wait_link(device)
    wait_active(switch, second)
    wait_reachable(host, neighbour.address.ipv4)
