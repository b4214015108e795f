"""Jumbo frames: the MTU is asked of the switch and of the NIC, and changes while guests are attached."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ovsvhost.testing.daemon import SwitchDaemon
from ovsvhost.testing.guest import Guest, Nic
from ovsvhost.testing.qemu import find_qemu
from ovsvhost.testing.traffic import address, bring_up, copy_file, ping

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ovsvhost.testing.image import GuestImage

pytestmark = [pytest.mark.guest, pytest.mark.timeout(600)]

JUMBO = 9000
PORTS = ("v1", "v2")
# Of a ping whose echo fills a frame: IP's and ICMP's headers come on top.
PAYLOADS = {"ipv4": JUMBO - 28, "ipv6": JUMBO - 48}


@dataclass(frozen=True)
class Scene:
    """Two guests whose NICs were given an MTU of 9000 bytes, one on each release of QEMU."""

    switch: SwitchDaemon
    first: Guest
    second: Guest

    def set_mtu(self, port: str, mtu: int) -> None:
        """Asks for an MTU and waits until the port has it."""
        self.switch.vsctl("set", "Interface", port, f"mtu_request={mtu}")
        self.switch.wait_column(port, "mtu", str(mtu))

    def pings(self, family: str) -> int:
        """How many of three pings are answered that fill a jumbo frame."""
        return ping(self.first, getattr(address(2), family), count=3, size=PAYLOADS[family]).received


@pytest.fixture(scope="module")
def scene(guest_image: GuestImage) -> Iterator[Scene]:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ov-")))
        switch = stack.enter_context(SwitchDaemon(folder / "sw"))
        switch.vsctl("add-br", "br0", "--", "set", "bridge", "br0", "datapath_type=netdev")
        switch.vsctl("set", "Open_vSwitch", ".", "other_config:stats-update-interval=100")
        guests = []
        for number, (port, version) in enumerate(zip(PORTS, ("10.0", "7.2"), strict=True), start=1):
            socket = folder / port
            words = ["type=dpdkvhostuserclient", f"options:vhost-server-path={socket}", f"mtu_request={JUMBO}"]
            switch.vsctl("add-port", "br0", port, "--", "set", "Interface", port, *words)
            options = {"host_mtu": str(JUMBO)}
            nic = Nic(
                socket=str(socket), type="dpdkvhostuserclient", mac=f"52:54:00:00:00:{number:02x}", options=options
            )
            guest = Guest(guest_image, find_qemu(version), [nic], name=f"guest{number}", folder=folder)
            guests.append(stack.enter_context(guest))
        for number, guest in enumerate(guests, start=1):
            bring_up(guest, number)
        yield Scene(switch, *guests)


@pytest.fixture
def jumbo(scene: Scene) -> Scene:
    """Both ports at 9000 bytes again, whatever a test before left."""
    for port in PORTS:
        scene.set_mtu(port, JUMBO)
    return scene


@pytest.mark.rows("A18")
@pytest.mark.parametrize("family", PAYLOADS)
def test_frames_of_9000_bytes_pass_between_guests_of_that_host_mtu(jumbo: Scene, family: str) -> None:
    for guest in (jumbo.first, jumbo.second):
        assert guest.run("cat /sys/class/net/eth0/mtu").strip() == str(JUMBO)
    assert jumbo.pings(family) == 3
    assert copy_file(jumbo.second, jumbo.first, getattr(address(2), family), size_mib=4).intact


@pytest.mark.rows("A18", "B2", "L5")
@pytest.mark.parametrize("family", PAYLOADS)
def test_mtu_that_changes_under_a_guest_holds_for_the_next_frame(jumbo: Scene, family: str) -> None:
    target, resets = PORTS[1], jumbo.switch.column(PORTS[1], "link_resets")
    dropped = jumbo.switch.statistic(target, "ovs_tx_mtu_exceeded_drops")
    jumbo.set_mtu(target, 1500)
    assert jumbo.pings(family) == 0
    # Small frames pass, and the guest noticed nothing.
    assert ping(jumbo.first, getattr(address(2), family), count=3).received == 3
    assert jumbo.switch.wait_statistic(target, "ovs_tx_mtu_exceeded_drops", more_than=dropped + 2)
    jumbo.set_mtu(target, JUMBO)
    assert jumbo.pings(family) == 3
    assert jumbo.switch.column(target, "link_resets") == resets


@pytest.mark.rows("A18", "L5")
@pytest.mark.parametrize("mtu", [67, 9703])
def test_mtu_out_of_range_is_refused_aloud_and_the_old_one_stays(jumbo: Scene, mtu: int) -> None:
    jumbo.switch.vsctl("set", "Interface", PORTS[0], f"mtu_request={mtu}")
    assert f"unsupported MTU {mtu}" in jumbo.switch.column(PORTS[0], "error")
    assert jumbo.switch.column(PORTS[0], "mtu") == str(JUMBO)
    assert jumbo.pings("ipv6") == 3
    jumbo.set_mtu(PORTS[0], JUMBO)
    assert jumbo.switch.column(PORTS[0], "error") == "[]"


@pytest.mark.rows("A18")
def test_mtu_that_the_guest_was_not_given_is_named_in_status(jumbo: Scene) -> None:
    jumbo.set_mtu(PORTS[0], 2000)
    said = jumbo.switch.column(PORTS[0], "status:mtu-mismatch")
    assert "9000" in said
    assert "2000" in said
