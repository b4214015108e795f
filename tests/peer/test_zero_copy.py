"""Zero-copy transmit as the guide has it typed: a guest under testpmd, hosts behind network devices."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from ovsvhost.testing.kernel_host import KernelHost
from ovsvhost.testing.stock import ovs_appctl, ovs_vsctl, row
from ovsvhost.testing.testpmd import Testpmd, virtio_user
from ovsvhost.testing.wait import wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from ovsvhost.testing.daemon import SwitchDaemon

pytestmark = [pytest.mark.peer, pytest.mark.timeout(300)]

GUEST_MAC, GUEST = "52:54:00:00:02:01", "10.0.0.77"
REACHABLE_S = 20
LEAST = 1024
"""Bytes of the shortest frame that is not copied."""


@pytest.fixture
def hosts(short_folder: Path) -> Iterator[tuple[KernelHost, KernelHost]]:
    """Two hosts whose devices are not plugged in yet."""
    with KernelHost(short_folder, 1) as first, KernelHost(short_folder, 2) as second:
        yield first, second


@pytest.fixture
def bridge(switch: SwitchDaemon) -> SwitchDaemon:
    """The switch with ``br0``, and statistics that are fresh."""
    ovs_vsctl(switch, "add-br", "br0", "--", "set", "bridge", "br0", "datapath_type=netdev")
    ovs_vsctl(switch, "set", "Open_vSwitch", ".", "other_config:stats-update-interval=100")
    return switch


def devargs(number: int, device: str) -> str:
    return f"options:dpdk-devargs=net_af_xdp{number},iface={device}"


def add_client(switch: SwitchDaemon, *options: str) -> Path:
    """The guest's port, by the guide's commands; options are set one command each."""
    path = switch.folder / "v0"
    ovs_vsctl(switch, "add-port", "br0", "v0", "--", "set", "Interface", "v0", "type=dpdkvhostuserclient")
    for option in options:
        ovs_vsctl(switch, "set", "Interface", "v0", *option.format(path=path).split())
    return path


@contextmanager
def echoing(switch: SwitchDaemon, path: Path, *hosts: KernelHost) -> Iterator[None]:
    """A guest that answers pings, which those hosts know where to find."""
    for host in hosts:
        host.ip("neigh", "add", GUEST, "lladdr", GUEST_MAC, "dev", "eth0")
    with Testpmd([virtio_user(path, mac=GUEST_MAC)], folder=switch.folder / "pmd", forward="icmpecho") as guest:
        guest.command("start")
        yield


def wait_state(switch: SwitchDaemon, state: str) -> None:
    switch.wait_column("v0", "status:zero-copy", state)


def ping_without_copies(switch: SwitchDaemon, host: KernelHost, port: str) -> None:
    """Pings of all sizes are answered, and answers from `LEAST` bytes on are not copied when they leave by ``port``."""
    wait_for(lambda: host.answers(GUEST), timeout_s=REACHABLE_S, what="testpmd to answer a ping")
    before = switch.statistic(port, "tx_zero_copy_packets")
    for size in (56, LEAST, 1472):
        assert host.ping(GUEST, count=20, size=size).received == 20
    assert switch.wait_statistic(port, "tx_zero_copy_packets", more_than=before + 39) >= before + 40


PATH, ZERO_COPY = "options:vhost-server-path={path}", "options:dq-zero-copy=true"


@pytest.mark.rows("A13", "A19", "A20", "A21")
@pytest.mark.parametrize(
    ("options", "lives"), [((PATH, ZERO_COPY), 2), ((ZERO_COPY, PATH), 1), ((f"{PATH} {ZERO_COPY}",), 1)]
)
def test_A19_the_guides_commands_give_zero_copy_in_any_order_and_after_a_kill(
    bridge: SwitchDaemon, hosts: tuple[KernelHost, KernelHost], options: tuple[str, ...], lives: int
) -> None:
    host, _ = hosts
    device = host.plug(more_to_send=1)
    path = add_client(bridge, *options)
    wait_state(bridge, "Waiting(guest): it has no transmitq that runs")
    ovs_vsctl(
        *(bridge, "add-port", "br0", "dpdkport", "--"),
        *("set", "Interface", "dpdkport", "type=dpdk", devargs(0, device)),
    )
    ovs_vsctl(bridge, "set", "Interface", "dpdkport", "options:n_txq_desc=128")
    with echoing(bridge, path, host):
        for life in range(lives):
            bridge.wait_link("v0")
            wait_state(bridge, f"Active: {device} queue 1")
            assert row(bridge, "Interface", "dpdkport")["status"]["n_txq_desc"] == "128"
            ping_without_copies(bridge, host, "dpdkport")
            assert "Zero copy enabled for vHost port v0" in bridge.log.read_text()
            if life + 1 < lives:
                bridge.kill()
                bridge.start()
        ovs_vsctl(bridge, "set", "Interface", "v0", "options:dq-zero-copy=false")
        wait_for(lambda: "zero-copy" not in row(bridge, "Interface", "v0")["status"], timeout_s=20, what="no lane")
        assert host.ping(GUEST, count=5, size=1472).received == 5


@pytest.mark.rows("A19", "C1")
def test_A19_a_device_of_one_queue_is_named_and_a_guest_is_copied_for(
    bridge: SwitchDaemon, hosts: tuple[KernelHost, KernelHost]
) -> None:
    host, _ = hosts
    device = host.plug()
    path = add_client(bridge, PATH, ZERO_COPY)
    ovs_vsctl(
        bridge, "add-port", "br0", "dpdkport", "--", "set", "Interface", "dpdkport", "type=dpdk", devargs(0, device)
    )
    with echoing(bridge, path, host):
        wait_state(bridge, f"Waiting(queue): every queue of {device} (1) is taken, and it can have no more")
        wait_for(lambda: host.answers(GUEST), timeout_s=REACHABLE_S, what="testpmd to answer a ping")
        assert host.ping(GUEST, count=20, size=1472).received == 20


@pytest.mark.rows("A19", "A20", "A22")
def test_A20_a_bond_of_two_as_the_guide_divides_its_descriptors_sends_without_a_copy_over_either_link(
    bridge: SwitchDaemon, hosts: tuple[KernelHost, KernelHost]
) -> None:
    devices = [host.plug(more_to_send=1) for host in hosts]
    links = ("dpdk0", "dpdk1")
    words = [
        ("--", "set", "Interface", link, "type=dpdk", devargs(number, device))
        for number, (link, device) in enumerate(zip(links, devices, strict=True))
    ]
    ovs_vsctl(bridge, "add-bond", "br0", "dpdkbond", *links, *words[0], *words[1])
    for link in links:
        ovs_vsctl(bridge, "set", "Interface", link, "options:n_txq_desc=64")
        bridge.wait_link(link)
    path = add_client(bridge, PATH, ZERO_COPY)
    with echoing(bridge, path, *hosts):
        wait_state(bridge, f"Active: {devices[0]} queue 1, {devices[1]} queue 1")
        # A host behind each link, of which the active one's is heard.
        for link, host in zip(links, hosts, strict=True):
            ovs_appctl(bridge, "bond/set-active-member", "dpdkbond", link)
            ping_without_copies(bridge, host, link)


@pytest.mark.rows("A19")
def test_A19_a_server_port_says_that_zero_copy_is_for_client_ports(bridge: SwitchDaemon) -> None:
    bridge.vsctl(
        *("add-port", "br0", "s0", "--", "set", "Interface", "s0", "type=dpdkvhostuser"),
        "options:dq-zero-copy=true",
    )
    assert "it is for client ports, set type=dpdkvhostuserclient" in row(bridge, "Interface", "s0")["error"]
