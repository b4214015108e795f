"""VLANs from guest to guest over a cable between two bridges: each a trunk, on a vhost-user port and on AF_XDP."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ovsvhost.testing.daemon import SwitchDaemon
from ovsvhost.testing.guest import Guest, Nic
from ovsvhost.testing.image import Extra, guest_image
from ovsvhost.testing.namespace import device_name, ip_command
from ovsvhost.testing.qemu import find_qemu
from ovsvhost.testing.traffic import copy_file, ping
from ovsvhost.testing.wait import wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.guest, pytest.mark.timeout(300)]

# What Linux needs for VLANs, in the order in which it loads.
MODULES = ("llc", "stp", "garp", "mrp", "8021q")
VLANS = (1, 100, 4094)
RELEASES = ("7.2", "10.0")
FAMILIES = ("ipv4", "ipv6")
# Of a ping whose echo fills a frame of 1500 bytes.
FULL = {"ipv4": 1500 - 28, "ipv6": 1500 - 48}


def address(vlan: int, number: int, family: str) -> str:
    """Of a guest in a VLAN; each VLAN is a network of its own."""
    return f"10.{vlan >> 8}.{vlan & 0xFF}.{number}" if family == "ipv4" else f"fd00:{vlan:x}::{number}"


@pytest.fixture(scope="module")
def cable() -> Iterator[list[str]]:
    """The names of both ends of a veth pair."""
    ends = [device_name("ov"), device_name("ov")]
    ip_command("ip", "link", "add", ends[0], "type", "veth", "peer", "name", ends[1])
    try:
        for end in ends:
            ip_command("ip", "link", "set", end, "up")
        yield ends
    finally:
        ip_command("ip", "link", "del", ends[0])


@pytest.fixture(scope="module")
def guests(cable: list[str]) -> Iterator[list[Guest]]:
    """Two guests, each on a bridge of its own with one end of the cable, in every VLAN."""
    image = guest_image(extra=Extra(modules=MODULES))
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ov-")))
        switch = stack.enter_context(SwitchDaemon(folder / "sw"))
        guests = []
        for number, (device, release) in enumerate(zip(cable, RELEASES, strict=True), start=1):
            bridge, port = f"br{number}", f"v{number}"
            switch.vsctl("add-br", bridge, "--", "set", "bridge", bridge, "datapath_type=netdev")
            switch.vsctl("add-port", bridge, device, "--", "set", "Interface", device, "type=afxdp")
            words = ["type=dpdkvhostuserclient", f"options:vhost-server-path={folder / port}"]
            switch.vsctl("add-port", bridge, port, "--", "set", "Interface", port, *words)
            nic = Nic(socket=str(folder / port), type="dpdkvhostuserclient", mac=f"52:54:00:00:00:{number:02x}")
            made = Guest(image, find_qemu(release), [nic], name=port, folder=folder)
            guests.append(stack.enter_context(made))
        for number, guest in enumerate(guests, start=1):
            guest.run("ip link set eth0 up", timeout_s=120)
            for vlan in VLANS:
                guest.run(
                    f"ip link add link eth0 name v{vlan} type vlan id {vlan} && "
                    f"ip addr add {address(vlan, number, 'ipv4')}/24 dev v{vlan} && "
                    f"ip -6 addr add {address(vlan, number, 'ipv6')}/64 dev v{vlan} && ip link set v{vlan} up"
                )
        for device in cable:
            switch.wait_link(device)
        first, target = guests[0], address(VLANS[0], 2, "ipv4")
        wait_for(lambda: ping(first, target, count=1).received, timeout_s=30, what="the other guest to answer")
        yield guests


@pytest.mark.rows("A22", "B6")
@pytest.mark.parametrize("family", FAMILIES)
def test_guests_talk_in_every_vlan_over_the_cable(guests: list[Guest], family: str) -> None:
    for vlan in VLANS:
        for guest, other in zip(guests, (2, 1), strict=True):
            assert ping(guest, address(vlan, other, family), count=3, size=FULL[family]).received == 3


@pytest.mark.rows("A22", "B6")
@pytest.mark.parametrize("family", FAMILIES)
def test_files_arrive_byte_for_byte_in_both_directions(guests: list[Guest], family: str) -> None:
    for source, target, number in ((guests[0], guests[1], 1), (guests[1], guests[0], 2)):
        assert copy_file(source, target, address(VLANS[1], number, family), size_mib=2).intact
