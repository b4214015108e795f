"""Network devices as ports: Linux's own network stack in namespaces at the far end of veth pairs, no guest."""

from __future__ import annotations

import socket
import threading
from typing import TYPE_CHECKING, Self

import pytest

from ovsvhost.errors import ConfigError
from ovsvhost.switch import Switch
from ovsvhost.testing.daemon import SwitchDaemon
from ovsvhost.testing.kernel_host import KernelHost, copy_bytes
from ovsvhost.testing.namespace import device_name, ip_command
from ovsvhost.testing.stock import ovs_vsctl, row, run
from ovsvhost.testing.testpmd import Testpmd, virtio_user
from ovsvhost.testing.wait import wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [pytest.mark.peer, pytest.mark.timeout(300)]

MIB = 1 << 20
JUMBO = 9000
# Of a ping whose echo fills a frame: IP's and ICMP's headers come on top.
HEADERS = {"ipv4": 28, "ipv6": 48}
FAMILIES = tuple(HEADERS)
REACHABLE_S = 20


@pytest.fixture
def hosts(short_folder: Path) -> Iterator[tuple[KernelHost, KernelHost]]:
    """Two hosts whose devices are not plugged in yet."""
    with KernelHost(short_folder, 1) as first, KernelHost(short_folder, 2) as second:
        yield first, second


def add_bridge(switch: SwitchDaemon) -> None:
    ovs_vsctl(switch, "add-br", "br0", "--", "set", "bridge", "br0", "datapath_type=netdev")
    ovs_vsctl(switch, "set", "Open_vSwitch", ".", "other_config:stats-update-interval=100")


def add_afxdp(switch: SwitchDaemon, device: str, *more: str) -> None:
    ovs_vsctl(switch, "add-port", "br0", device, "--", "set", "Interface", device, "type=afxdp", *more)


def wait_reachable(host: KernelHost, target: str) -> None:
    wait_for(lambda: host.answers(target), timeout_s=REACHABLE_S, what=f"{target} to answer {host.name}")


def wait_mtu(device: str, mtu: int) -> None:
    """Waits for the thread of a device, which is told and not waited for."""
    path = f"/sys/class/net/{device}/mtu"
    wait_for(lambda: ip_command("cat", path).strip() == str(mtu), timeout_s=REACHABLE_S, what=f"{path} to be {mtu}")


@pytest.fixture
def joined(switch: SwitchDaemon, hosts: tuple[KernelHost, KernelHost]) -> tuple[KernelHost, KernelHost]:
    """Both hosts on the bridge, each within the other's reach."""
    add_bridge(switch)
    for host in hosts:
        add_afxdp(switch, host.plug())
    wait_reachable(hosts[0], hosts[1].address.ipv4)
    return hosts


@pytest.mark.rows("A22")
def test_A22_two_hosts_talk_through_the_switch_as_over_a_wire(joined: tuple[KernelHost, KernelHost]) -> None:
    first, second = joined
    for family in FAMILIES:
        assert first.ping(getattr(second.address, family), count=5).received == 5
        assert second.ping(getattr(first.address, family), count=5, size=1400).received == 5
        assert copy_bytes(first, second, getattr(first.address, family), size=8 * MIB).intact
        assert copy_bytes(second, first, getattr(second.address, family), size=8 * MIB).intact


@pytest.mark.rows("A22", "B6")
@pytest.mark.parametrize("offloads", [False, True])
def test_A22_two_hosts_talk_through_ports_over_af_packet(
    switch: SwitchDaemon, hosts: tuple[KernelHost, KernelHost], offloads: bool
) -> None:
    first, second = hosts
    add_bridge(switch)
    for host in hosts:
        ovs_vsctl(switch, "add-port", "br0", host.plug(offloads=offloads))  # as in OVS: no type is type=system
        interface = row(switch, "Interface", host.outside)
        assert (interface["error"], interface["status"]["driver_name"]) == (None, "veth")
    wait_reachable(first, second.address.ipv4)
    for family in FAMILIES:
        assert first.ping(getattr(second.address, family), count=5, size=1400).received == 5
        assert copy_bytes(first, second, getattr(first.address, family), size=8 * MIB).intact
        assert copy_bytes(second, first, getattr(second.address, family), size=8 * MIB).intact


@pytest.mark.rows("A22", "B6")
def test_A22_a_host_over_af_packet_and_one_over_afxdp_talk(
    switch: SwitchDaemon, hosts: tuple[KernelHost, KernelHost]
) -> None:
    first, second = hosts
    add_bridge(switch)
    add_afxdp(switch, first.plug())
    ovs_vsctl(switch, "add-port", "br0", second.plug(offloads=True))
    wait_reachable(first, second.address.ipv4)
    for family in FAMILIES:
        assert copy_bytes(first, second, getattr(first.address, family), size=8 * MIB).intact
        assert copy_bytes(second, first, getattr(second.address, family), size=8 * MIB).intact


@pytest.mark.rows("A22", "B1", "B2")
def test_A22_a_nics_row_shows_its_device_its_mode_and_its_frames(
    switch: SwitchDaemon, joined: tuple[KernelHost, KernelHost]
) -> None:
    first, _ = joined
    interface = row(switch, "Interface", first.outside)
    assert (interface["error"], interface["ofport"]) == (None, 1)
    assert (interface["admin_state"], interface["link_state"], interface["mtu"]) == ("up", "up", 1500)
    assert (interface["link_speed"], interface["duplex"]) == (10_000_000_000, "full"), "what veth says of itself"
    shown = ip_command("cat", f"/sys/class/net/{first.outside}/address", f"/sys/class/net/{first.outside}/ifindex")
    assert shown.split() == [interface["mac_in_use"], str(interface["ifindex"])]
    status = interface["status"]
    assert status["driver_name"] == "veth"
    assert status["xdp-mode-in-use"] in {"native", "generic"}
    assert (status["n_rxq"], status["n_rxq_desc"], status["n_txq_desc"]) == ("1", "2048", "2048")
    before = switch.statistic(first.outside, "rx_packets")
    assert first.ping("10.0.0.2", count=10).received == 10
    assert switch.wait_statistic(first.outside, "rx_packets", more_than=before + 9) >= before + 10
    assert "afxdp" in row(switch, "Open_vSwitch", ".")["iface_types"]


@pytest.mark.rows("A20", "A21", "A22")
def test_A20_nic_show_says_where_descriptors_are_and_how_long_they_took(
    switch: SwitchDaemon, joined: tuple[KernelHost, KernelHost]
) -> None:
    first, second = joined
    assert first.ping(second.address.ipv4, count=20).received == 20
    shown = switch.appctl("ovsvhost/nic-show", "-hist", first.outside).splitlines()
    mode = row(switch, "Interface", first.outside)["status"]["xdp-mode-in-use"]
    assert shown[0] == f"{first.outside}: {first.outside}, {mode}, link up"
    assert shown[1] == "  queue 0:"
    assert shown[2].startswith("    tx in flight: 0 of 2048, at most ")
    assert shown[3].startswith("    post to completion (us): p50 < ")
    assert sum(line.lstrip().startswith("<") for line in shown) > 0
    assert second.outside in switch.appctl("ovsvhost/nic-show")
    refused = switch.call("appctl", "ovsvhost/nic-show", "v9")
    assert refused.returncode != 0
    assert "there is no port 'v9' that is a network device" in refused.stderr


@pytest.mark.rows("A18", "A22")
def test_A18_frames_of_9000_bytes_pass_and_the_mtu_of_the_device_follows_the_row(
    switch: SwitchDaemon, hosts: tuple[KernelHost, KernelHost]
) -> None:
    first, second = hosts
    add_bridge(switch)
    for host in hosts:
        device = host.plug(mtu=JUMBO)
        ip_command("ip", "link", "set", device, "mtu", "1500")
        add_afxdp(switch, device, f"mtu_request={JUMBO}")
        switch.wait_column(device, "mtu", str(JUMBO))
        wait_mtu(device, JUMBO)
    wait_reachable(first, second.address.ipv4)
    for family, headers in HEADERS.items():
        target = getattr(second.address, family)
        assert first.ping(target, count=3, size=JUMBO - headers).received == 3
        assert copy_bytes(second, first, target, size=8 * MIB).intact
    ovs_vsctl(switch, "set", "Interface", first.outside, "mtu_request=9703")
    assert row(switch, "Interface", first.outside)["error"].startswith(f"{first.outside}: unsupported MTU 9703")
    assert first.ping(second.address.ipv4, size=JUMBO - HEADERS["ipv4"]).received == 3


@pytest.mark.rows("A20", "A22", "L5")
def test_A20_the_guides_commands_for_a_physical_port_work_as_they_stand(
    switch: SwitchDaemon, hosts: tuple[KernelHost, KernelHost]
) -> None:
    first, second = hosts
    add_bridge(switch)
    add_afxdp(switch, first.plug())
    device = second.plug()
    ip_command("ip", "link", "set", device, "down")  # DPDK starts its devices; nobody typed ip link set
    devargs = f"options:dpdk-devargs=net_af_xdp0,iface={device}"
    ovs_vsctl(
        *(switch, "add-port", "br0", "dpdkport", "--"),
        *("set", "Interface", "dpdkport", "type=dpdk", devargs),
    )
    wait_reachable(first, second.address.ipv4)
    for size in ("128", "64", "256"):
        ovs_vsctl(switch, "set", "Interface", "dpdkport", f"options:n_txq_desc={size}")
        switch.wait_column("dpdkport", "status:n_txq_desc", size)
        # The kernel lets go of the old sockets in its own time; the device is refused until then, and asked for again.
        switch.wait_column("dpdkport", "error", "[]")
        wait_reachable(first, second.address.ipv4)
        assert copy_bytes(first, second, first.address.ipv4, size=2 * MIB).intact
    ovs_vsctl(switch, "set", "Interface", "dpdkport", "options:n_txq_desc=100")
    interface = row(switch, "Interface", "dpdkport")
    assert "a power of two in 64..4096" in interface["error"]
    assert interface["status"]["n_txq_desc"] == "256", "the old one stays"
    by_mac = f"options:dpdk-devargs=class=eth,mac={interface['mac_in_use']}"
    ovs_vsctl(switch, "set", "Interface", "dpdkport", by_mac, "options:n_txq_desc=64")
    switch.wait_column("dpdkport", "error", "[]")
    wait_reachable(first, second.address.ipv4)


class Flood:
    """UDP datagrams from one host to another, as fast as they go, until it is stopped."""

    def __init__(self, source: KernelHost, target: str) -> None:
        self._socket = source.inside(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        self._target = (target, 9)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._send, daemon=True)
        self.sent = 0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._over.set()
        self._thread.join()
        self._socket.close()

    def wait_more(self, datagrams: int) -> None:
        """Waits until that many more were sent."""
        enough = self.sent + datagrams
        wait_for(lambda: self.sent > enough, timeout_s=20, what=f"{datagrams} more datagrams to be sent")

    def _send(self) -> None:
        while not self._over.is_set():
            try:
                self._socket.sendto(bytes(1000), self._target)
                self.sent += 1
            except OSError:  # the target is gone for a moment, which is the point
                self._over.wait(0.001)


@pytest.mark.rows("A22", "B1", "C1")
def test_A22_a_device_that_is_deleted_under_load_and_made_again_is_back_by_itself(
    switch: SwitchDaemon, joined: tuple[KernelHost, KernelHost]
) -> None:
    first, second = joined
    device = second.outside
    missed = f"{device}: there is no network device {device}"
    with Flood(first, second.address.ipv4) as flood:
        for _ in range(3):
            flood.wait_more(1000)
            second.unplug()
            switch.wait_link(device, "down")
            switch.wait_column(device, "ofport", "-1")
            assert device in row(switch, "Interface", device)["error"]
            wait_for(lambda: missed in switch.log.read_text(), timeout_s=5, what=f"the log's line '{missed}'")
            second.plug(device)
            switch.wait_link(device)
            wait_reachable(first, second.address.ipv4)
            interface = row(switch, "Interface", device)
            assert (interface["error"], interface["ofport"]) == (None, 2)
    assert copy_bytes(first, second, first.address.ipv4, size=2 * MIB).intact


@pytest.mark.rows("A22", "B1")
def test_A22_a_link_that_goes_down_and_up_shows_it_at_once(
    switch: SwitchDaemon, joined: tuple[KernelHost, KernelHost]
) -> None:
    first, second = joined
    device = second.outside
    ip_command("ip", "link", "set", device, "down")
    switch.wait_link(device, "down")
    interface = row(switch, "Interface", device)
    assert interface["admin_state"] == "down"
    assert f"ip link set {device} up" in interface["error"]
    ip_command("ip", "link", "set", device, "up")
    switch.wait_link(device)
    second.ip("link", "set", "eth0", "down")
    switch.wait_link(device, "down")
    assert row(switch, "Interface", device)["admin_state"] == "up"
    second.ip("link", "set", "eth0", "up")
    switch.wait_link(device)
    assert row(switch, "Interface", device)["error"] is None
    wait_reachable(first, second.address.ipv4)


@pytest.mark.rows("A22", "C1")
def test_A22_a_port_before_its_device_says_what_is_missing_and_comes_up_with_it(
    switch: SwitchDaemon, hosts: tuple[KernelHost, KernelHost]
) -> None:
    first, second = hosts
    add_bridge(switch)
    add_afxdp(switch, first.plug())
    device = device_name("ov")
    words = ("add-port", "br0", device, "--", "set", "Interface", device, "type=afxdp")
    done = run("ovs-vsctl", switch, f"--db={switch.remote}", *words)
    assert done.returncode == 0
    assert f"Error detected while setting up '{device}'" in done.stderr
    assert row(switch, "Interface", device)["link_state"] == "down"
    second.plug(device)
    switch.wait_link(device)
    wait_reachable(first, second.address.ipv4)


@pytest.mark.rows("A22", "C1")
def test_A22_a_device_that_another_switch_has_says_so_and_comes_when_it_is_free(
    switch: SwitchDaemon, hosts: tuple[KernelHost, KernelHost], short_folder: Path
) -> None:
    first, _ = hosts
    device = first.plug()
    with SwitchDaemon(short_folder / "other") as other:
        for daemon in (other, switch):
            add_bridge(daemon)
            add_afxdp(daemon, device)
        other.wait_link(device)
        switch.wait_link(device, "down")
        assert "XDP" in row(switch, "Interface", device)["error"]
        ovs_vsctl(other, "del-port", device)
        switch.wait_link(device)
        assert row(switch, "Interface", device)["error"] is None


@pytest.mark.rows("A20", "A22", "L5")
def test_A22_switch_objects_take_network_devices_live_and_refuse_what_cannot_be(
    hosts: tuple[KernelHost, KernelHost], short_folder: Path
) -> None:
    first, second = hosts
    with Switch(short_folder / "run") as switch:
        bridge = switch.add_bridge("br0")
        one = bridge.add_port(first.plug(), type="afxdp", options={"n_txq_desc": "128"})
        device = second.plug()
        two = bridge.add_port("two", type="dpdk", options={"dpdk-devargs": f"net_af_xdp0,iface={device}"})
        for port in (one, two):
            port.wait_link(timeout_s=20)
            assert port.error is None
        assert (one.status["n_txq_desc"], two.status["if_name"]) == ("128", device)
        wait_reachable(first, second.address.ipv4)
        two.mtu = 1400
        wait_mtu(device, 1400)
        second.unplug()
        two.wait_link(timeout_s=20, up=False)
        second.plug(device)
        two.wait_link(timeout_s=20)
        wait_reachable(first, second.address.ipv4)
        bridge.del_port("two")
        for options in ({"n_txq_desc": "100"}, {"dpdk-devargs": "0000:ff:1f.7"}, {}):
            with pytest.raises(ConfigError):
                bridge.add_port("three", type="dpdk", options=options)
        assert [port.name for port in bridge.ports] == [first.outside]


@pytest.mark.rows("A17", "A22")
def test_A22_a_virtio_user_guest_and_a_host_behind_a_nic_see_each_other(
    switch: SwitchDaemon, hosts: tuple[KernelHost, KernelHost]
) -> None:
    host, _ = hosts
    add_bridge(switch)
    add_afxdp(switch, host.plug())
    path = switch.folder / "v0"
    switch.vsctl(
        *("add-port", "br0", "v0", "--", "set", "Interface", "v0", "type=dpdkvhostuserclient"),
        f"options:vhost-server-path={path}",
    )
    mac, target = "52:54:00:00:02:01", "10.0.0.77"
    host.ip("neigh", "add", target, "lladdr", mac, "dev", "eth0")
    with Testpmd([virtio_user(path, mac=mac)], folder=switch.folder / "pmd", forward="icmpecho") as guest:
        switch.wait_link("v0")
        guest.command("start")
        wait_for(lambda: host.answers(target), timeout_s=REACHABLE_S, what="testpmd to answer a ping")
        for size in (56, 1000, 1472):
            assert host.ping(target, count=20, size=size).received == 20
