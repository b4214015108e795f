"""Bonds by LACP, end to end: at the other end of both cables Open vSwitch, or Linux's own bonding driver."""

from __future__ import annotations

import re
import threading
from typing import TYPE_CHECKING

import pytest

from ovsvhost.testing.bonded_host import LinuxBondHost, OvsHost
from ovsvhost.testing.kernel_host import KernelHost, copy_bytes
from ovsvhost.testing.namespace import ip_command
from ovsvhost.testing.stock import ovs_appctl, ovs_vsctl, row, run
from ovsvhost.testing.wait import wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from ovsvhost.testing.bonded_host import CabledHost
    from ovsvhost.testing.daemon import SwitchDaemon
    from ovsvhost.testing.traffic import Copy

pytestmark = [pytest.mark.peer, pytest.mark.timeout(300)]

MIB = 1 << 20
AGREED_S = 30
"""For both ends to agree: they speak every second at first."""
COPIES = 12
"""TCP connections, of which each has a link: all of them over the same one of two is a matter of one in 2048."""


@pytest.fixture
def host(switch: SwitchDaemon, short_folder: Path) -> Iterator[KernelHost]:
    """A host that is the switch's own, on bridge ``br0``."""
    with KernelHost(short_folder, 1) as made:
        ovs_vsctl(switch, "add-br", "br0", "--", "set", "bridge", "br0", "datapath_type=netdev")
        ovs_vsctl(switch, "set", "Open_vSwitch", ".", "other_config:stats-update-interval=100")
        device = made.plug()
        ovs_vsctl(switch, "add-port", "br0", device, "--", "set", "Interface", device, "type=afxdp")
        yield made


@pytest.fixture
def neighbour(switch: SwitchDaemon, host: KernelHost, short_folder: Path) -> Iterator[OvsHost]:
    """Open vSwitch behind ``bond0``: ``balance-tcp`` and LACP, active and fast, at both ends; they agree."""
    _ = host  # the bridge is there
    with OvsHost(short_folder, 2) as made:
        add_bond(switch, made)
        wait_agreed(switch, made)
        yield made


def add_bond(switch: SwitchDaemon, neighbour: CabledHost) -> None:
    devices = sorted(neighbour.plug_cables())
    types = [word for device in devices for word in ("--", "set", "Interface", device, "type=afxdp")]
    columns = ("bond_mode=balance-tcp", "lacp=active", "other_config:lacp-time=fast")
    ovs_vsctl(switch, "add-bond", "br0", "bond0", *devices, *columns, *types)
    for device in devices:
        switch.wait_link(device)


def lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines()]


def wait_agreed(switch: SwitchDaemon, neighbour: CabledHost) -> None:
    wait_enabled(switch, *neighbour.cables)
    shown = lines(ovs_appctl(switch, "bond/show", "bond0"))
    assert "lacp_status: negotiated" in shown
    if isinstance(neighbour, OvsHost):
        expected = {"member up0: enabled", "member up1: enabled", "lacp_status: negotiated"}
        wait_for(
            lambda: expected <= set(lines(neighbour.appctl("bond/show", "bond0"))),
            timeout_s=AGREED_S,
            what="Open vSwitch to agree",
        )


def wait_enabled(switch: SwitchDaemon, *devices: str) -> None:
    """Until these members are enabled, and no others."""
    expected = {f"member {device}: enabled" for device in devices}
    wait_for(
        lambda: {line for line in lines(ovs_appctl(switch, "bond/show", "bond0")) if ": enabled" in line} == expected,
        timeout_s=AGREED_S,
        what=f"{devices} to be enabled",
    )


def wait_reachable(host: KernelHost, target: str) -> None:
    wait_for(lambda: host.answers(target), timeout_s=20, what=f"{target} to answer {host.name}")


def carry(switch: SwitchDaemon, host: KernelHost, neighbour: CabledHost) -> None:
    """Flows both ways, over both links, whole."""
    wait_reachable(host, neighbour.address.ipv4)
    first, second = sorted(neighbour.cables)
    before = {device: switch.statistic(device, "tx_bytes") for device in (first, second)}
    for family in ("ipv4", "ipv6"):
        assert host.ping(getattr(neighbour.address, family), count=5, size=1400).received == 5
    for number in range(COPIES):
        source, target = (host, neighbour) if number % 2 else (neighbour, host)
        assert copy_bytes(source, target, source.address.ipv4, size=MIB).intact
    for device, then in before.items():
        assert switch.wait_statistic(device, "tx_bytes", more_than=then + MIB // 2), f"no flow went over {device}"


def shown_links(text: str) -> dict[str, dict[str, str]]:
    """Of ``lacp/show``, by member what is shown of it."""
    links: dict[str, dict[str, str]] = {}
    for line in text.splitlines():
        if found := re.fullmatch(r"member: (\S+): (.*)", line):
            links[found[1]] = {"status": found[2]}
        elif links and ":" in line:
            key, _, value = line.strip().partition(":")
            list(links.values())[-1][key] = value.strip()
    return links


@pytest.mark.rows("A22", "B7")
def test_A22_a_bond_of_flows_and_open_vswitchs_agree_and_show_the_same_from_both_ends(
    switch: SwitchDaemon, host: KernelHost, neighbour: OvsHost
) -> None:
    carry(switch, host, neighbour)
    ours, theirs = ovs_appctl(switch, "lacp/show", "bond0"), neighbour.appctl("lacp/show", "bond0")
    layout = [re.sub(r"(?<=: ).*", "", line) for line in ours.splitlines()]
    assert layout == [re.sub(r"(?<=: ).*", "", line) for line in theirs.splitlines()]
    assert ours.startswith("---- bond0 ----\n  status: active negotiated\n")
    links, peers = shown_links(ours), shown_links(theirs)
    for link, peer in zip(neighbour.cables, ("up0", "up1"), strict=True):
        assert links[link]["status"] == peers[peer]["status"] == "current attached"
        for what in ("sys_id", "sys_priority", "port_id", "port_priority", "key", "state"):
            assert links[link][f"partner {what}"] == peers[peer][f"actor {what}"]
            assert links[link][f"actor {what}"] == peers[peer][f"partner {what}"]
        assert row(switch, "Interface", link)["lacp_current"] is True
    heads = tuple("abdlnu")
    shown = (ovs_appctl(switch, "bond/show", "bond0"), neighbour.appctl("bond/show", "bond0"))
    here, there = ([line.partition(": ")[0] for line in text.splitlines() if line.startswith(heads)] for text in shown)
    assert here == there
    assert "no such bond" in run("ovs-appctl", switch, "lacp/show", "bond7").stderr


@pytest.mark.rows("A22", "C1")
def test_A22_a_transfer_goes_on_when_a_link_of_an_agreed_bond_goes_and_comes_and_the_other_goes(
    switch: SwitchDaemon, host: KernelHost, neighbour: OvsHost
) -> None:
    wait_reachable(host, neighbour.address.ipv4)
    first, second = sorted(neighbour.cables)
    results: list[Copy] = []
    # from both sides, and several at once: some flow is on the link that goes
    ways = [(host, neighbour), (neighbour, host)] * 3

    def copy(source: KernelHost, target: KernelHost) -> None:
        results.append(copy_bytes(source, target, source.address.ipv4, size=8 * MIB))

    threads = [threading.Thread(target=copy, args=way) for way in ways]
    moved = switch.statistic(first, "tx_packets") + switch.statistic(second, "tx_packets")
    for thread in threads:
        thread.start()
    wait_for(
        lambda: switch.statistic(first, "tx_packets") + switch.statistic(second, "tx_packets") > moved + 200,
        timeout_s=20,
        what="transfers to be under way",
    )
    for down, up in ((first, second), (second, first)):
        ip_command("ip", "link", "set", down, "down")
        wait_enabled(switch, up)
        ip_command("ip", "link", "set", down, "up")
        wait_enabled(switch, first, second)
    for thread in threads:
        thread.join(120)
    assert [result.intact for result in results] == [True] * len(ways)


@pytest.mark.rows("A22", "L5")
def test_A22_a_partner_that_stops_speaking_is_missed_and_one_link_carries_if_that_is_asked_for(
    switch: SwitchDaemon, host: KernelHost, neighbour: OvsHost
) -> None:
    first, second = sorted(neighbour.cables)
    wait_reachable(host, neighbour.address.ipv4)
    neighbour.vsctl("set", "Port", "bond0", "lacp=off", "bond_mode=active-backup")
    wait_enabled(switch)
    for device in (first, second):
        wait_for(
            lambda device=device: row(switch, "Interface", device)["lacp_current"] is False,  # type: ignore[misc]
            timeout_s=AGREED_S,
            what=f"nothing to be known of {device}'s partner",
        )
    assert "lacp_status: configured" in lines(ovs_appctl(switch, "bond/show", "bond0"))
    assert not host.answers(neighbour.address.ipv4)
    ovs_vsctl(switch, "set", "Port", "bond0", "other_config:lacp-fallback-ab=true")
    wait_enabled(switch, first, second)
    uplinks = dict(zip(neighbour.cables, ("up0", "up1"), strict=True))
    ovs_appctl(switch, "bond/set-active-member", "bond0", first)
    neighbour.appctl("bond/set-active-member", "bond0", uplinks[first])
    wait_reachable(host, neighbour.address.ipv4)
    assert "lacp_fallback_ab: true" in lines(ovs_appctl(switch, "bond/show", "bond0"))
    # it speaks again, and we only answer from now on
    neighbour.vsctl("set", "Port", "bond0", "lacp=active", "bond_mode=balance-tcp")
    ovs_vsctl(switch, "set", "Port", "bond0", "lacp=passive", "other_config:lacp-fallback-ab=false")
    wait_agreed(switch, neighbour)
    assert "status: passive negotiated" in lines(ovs_appctl(switch, "lacp/show", "bond0"))
    wait_reachable(host, neighbour.address.ipv4)
    # without LACP a bond of flows has nobody who agreed to it
    ovs_vsctl(switch, "set", "Port", "bond0", "lacp=off")
    assert row(switch, "Interface", first)["lacp_current"] is None
    assert "no such lacp object" in run("ovs-appctl", switch, "lacp/show", "bond0").stderr
    assert not host.answers(neighbour.address.ipv4)


@pytest.mark.rows("A22")
def test_A22_a_bond_of_flows_and_linuxs_own_agree_and_carry(
    switch: SwitchDaemon, host: KernelHost, short_folder: Path
) -> None:
    with LinuxBondHost(short_folder, 2) as neighbour:
        add_bond(switch, neighbour)
        wait_agreed(switch, neighbour)
        carry(switch, host, neighbour)
