"""Guests whose NICs differ: every kind of ring and offload that QEMU can give, each against another.

Two guests, one on each release of QEMU, have a NIC of every kind, all on one bridge. A test turns one on in each guest
and leaves the others off, so one boot serves all of them.
"""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ovsvhost.testing.daemon import SwitchDaemon
from ovsvhost.testing.guest import Guest, Nic
from ovsvhost.testing.qemu import find_qemu
from ovsvhost.testing.traffic import Stream, address, bring_up, copy_file, ping

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from ovsvhost.testing.image import GuestImage

pytestmark = [pytest.mark.guest, pytest.mark.timeout(600)]

QEMUS = ("10.0", "7.2")
COPY_MIB = 2
FAMILIES = ("ipv4", "ipv6")

# Feature bits, virtio 1.2 §5.1.3 and §6.
CSUM, GUEST_CSUM, GUEST_TSO4, GUEST_TSO6, HOST_TSO4, HOST_TSO6, MRG_RXBUF = 0, 1, 7, 8, 11, 12, 15
INDIRECT_DESC, EVENT_IDX, VERSION_1, PACKED = 28, 29, 32, 34

OFFLOADS = (CSUM, GUEST_CSUM, GUEST_TSO4, GUEST_TSO6, HOST_TSO4, HOST_TSO6)
NO_OFFLOADS = {
    **dict.fromkeys(("csum", "gso", "host_tso4", "host_tso6", "host_ecn", "host_ufo"), "off"),
    **dict.fromkeys(("guest_csum", "guest_tso4", "guest_tso6", "guest_ecn", "guest_ufo"), "off"),
}


@dataclass(frozen=True)
class Variant:
    """One kind of NIC.

    Attributes:
        options: properties of the device.
        on: feature bits that the guest's driver must have accepted.
        off: feature bits that it must not have.
    """

    options: Mapping[str, str] = field(default_factory=dict)
    on: tuple[int, ...] = ()
    off: tuple[int, ...] = ()


VARIANTS = {
    "plain": Variant(on=(*OFFLOADS, MRG_RXBUF, INDIRECT_DESC, EVENT_IDX, VERSION_1), off=(PACKED,)),
    "packed": Variant({"packed": "on"}, on=(PACKED, *OFFLOADS)),
    "small-buffers": Variant({"mrg_rxbuf": "off"}, off=(MRG_RXBUF,)),
    "bare": Variant(NO_OFFLOADS, off=OFFLOADS),
    "packed-direct": Variant({"packed": "on", "indirect_desc": "off"}, on=(PACKED,), off=(INDIRECT_DESC,)),
    "legacy": Variant({"disable-modern": "on", "disable-legacy": "off"}, off=(VERSION_1,)),
    "no-event-index": Variant({"event_idx": "off"}, off=(EVENT_IDX,)),
    "direct": Variant({"indirect_desc": "off"}, off=(INDIRECT_DESC,)),
    "packed-bare": Variant(
        {"packed": "on", "event_idx": "off", "mrg_rxbuf": "off", **NO_OFFLOADS},
        on=(PACKED,),
        off=(*OFFLOADS, EVENT_IDX, MRG_RXBUF),
    ),
}
NAMES = tuple(VARIANTS)
# Each kind on each release of QEMU, beside the kind next in the list; and pairs of the same kind where it matters.
CELLS = [
    *((name, NAMES[(index + 1) % len(NAMES)]) for index, name in enumerate(NAMES)),
    ("packed", "packed"),
    ("bare", "plain"),
]


class Scene:
    """The switch and both guests, the one on the newer QEMU first."""

    def __init__(self, switch: SwitchDaemon, guests: list[Guest]) -> None:
        self.switch = switch
        self.guests = guests
        self._up: list[str | None] = [None, None]
        # By address and not by order: nothing says in which order Linux names what it finds at the same time.
        self._devices = [
            dict(
                line.split()
                for line in guest.run(
                    "cd /sys/class/net; for d in eth*; do echo $(cat $d/address) $d; done"
                ).splitlines()
            )
            for guest in guests
        ]

    def device(self, number: int, variant: str) -> str:
        """What Linux calls the NIC of that kind in guest ``number``, 1 or 2."""
        return self._devices[number - 1][mac(number, variant)]

    def use(self, first: str, second: str) -> tuple[Guest, Guest]:
        """Leaves one NIC up in each guest; gives both guests."""
        for number, (guest, variant) in enumerate(zip(self.guests, (first, second), strict=True), start=1):
            if before := self._up[number - 1]:
                guest.run(f"ip link set {before} down; ip addr flush dev {before}")
            self._up[number - 1] = self.device(number, variant)
            bring_up(guest, number, self.device(number, variant))
        for number, (guest, variant) in enumerate(zip(self.guests, (first, second), strict=True), start=1):
            # While it was down its receive queue filled with what was said to all: questions for neighbours, among them
            # old ones from a NIC that is down now. Believing those costs Linux eight seconds.
            guest.run(f"ip neigh flush dev {self.device(number, variant)}")
        return self.guests[0], self.guests[1]

    def features(self, number: int, variant: str) -> set[int]:
        """The feature bits that guest ``number`` and a NIC of its agreed on."""
        bits = self.guests[number - 1].run(f"cat /sys/class/net/{self.device(number, variant)}/device/features").strip()
        return {bit for bit, value in enumerate(bits) if value == "1"}

    def received(self, number: int, variant: str) -> int:
        """Frames that a guest's driver has received on a NIC."""
        return int(
            self.guests[number - 1].run(f"cat /sys/class/net/{self.device(number, variant)}/statistics/rx_packets")
        )


def mac(number: int, variant: str) -> str:
    return f"52:54:00:00:{number:02x}:{NAMES.index(variant):02x}"


@pytest.fixture(scope="module")
def scene(guest_image: GuestImage) -> Iterator[Scene]:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ov-")))
        switch = stack.enter_context(SwitchDaemon(folder / "sw"))
        commands = ["add-br", "br0", "--", "set", "bridge", "br0", "datapath_type=netdev"]
        guests = []
        for number, version in enumerate(QEMUS, start=1):
            nics = []
            for name, variant in VARIANTS.items():
                port = f"{name}{number}"
                socket = folder / port
                words = ["type=dpdkvhostuserclient", f"options:vhost-server-path={socket}"]
                commands += ["--", "add-port", "br0", port, "--", "set", "Interface", port, *words]
                nic = Nic(
                    socket=str(socket), type="dpdkvhostuserclient", mac=mac(number, name), options=variant.options
                )
                nics.append(nic)
            guests.append(Guest(guest_image, find_qemu(version), nics, name=f"guest{number}", folder=folder))
        switch.vsctl(*commands)
        for guest in guests:
            stack.enter_context(guest)
        yield Scene(switch, guests)


@pytest.mark.parametrize("number", [1, 2], ids=[f"qemu-{version}" for version in QEMUS])
@pytest.mark.parametrize("name", NAMES)
def test_guest_and_nic_agree_on_what_the_nic_is_meant_to_show(scene: Scene, name: str, number: int) -> None:
    agreed = scene.features(number, name)
    assert agreed >= set(VARIANTS[name].on)
    assert not agreed & set(VARIANTS[name].off)


@pytest.mark.rows("A8", "B6")
@pytest.mark.parametrize(("first", "second"), CELLS, ids=lambda name: name)
def test_guests_with_different_rings_ping_and_copy_both_ways(scene: Scene, first: str, second: str) -> None:
    left, right = scene.use(first, second)
    for family in FAMILIES:
        assert ping(left, getattr(address(2), family), count=5, interval_s=0.05).received == 5
    assert copy_file(left, right, address(1).ipv4, size_mib=COPY_MIB).intact
    assert copy_file(right, left, address(2).ipv6, size_mib=COPY_MIB).intact


@pytest.mark.rows("C14")
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("ring", ["plain", "packed"])
def test_large_segments_pass_whole_between_guests_that_take_them(scene: Scene, ring: str, family: str) -> None:
    left, right = scene.use(ring, ring)
    before = scene.received(2, ring)
    copy = copy_file(left, right, getattr(address(1), family), size_mib=3)
    assert copy.intact
    # Several segments' worth a frame, on average.
    assert scene.received(2, ring) - before < copy.size / 4000


@pytest.mark.rows("B6", "C14")
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("receiver", ["bare", "packed-bare"])
def test_large_segments_are_cut_for_a_guest_that_does_not_take_them(scene: Scene, receiver: str, family: str) -> None:
    left, right = scene.use("plain", receiver)
    assert "tcp-segmentation-offload: on" in left.run(f"ethtool -k {scene.device(1, 'plain')}")
    before = scene.received(2, receiver)
    copy = copy_file(left, right, getattr(address(1), family), size_mib=3)
    assert copy.intact
    # No frame above the MTU of 1500 bytes, and not many small ones.
    frames = scene.received(2, receiver) - before
    assert copy.size / 1460 < frames < copy.size / 1000


@pytest.mark.rows("C14")
@pytest.mark.parametrize(
    ("ring", "family"),
    [
        ("plain", "ipv6"),
        ("packed", "ipv4"),
        *(pytest.param(*cell, marks=pytest.mark.soak) for cell in (("plain", "ipv4"), ("packed", "ipv6"))),
    ],
)
def test_file_arrives_byte_for_byte_while_ethtool_turns_offloads_off_and_on(
    scene: Scene, ring: str, family: str
) -> None:
    left, right = scene.use(ring, ring)
    stream = Stream(left, right, getattr(address(1), family), size_mib=8)
    rounds = 0
    while not stream.ended:
        # Segmentation needs checksums, so they go last and come back first.
        for state, offloads in (("off", ("tso", "gso", "gro", "tx")), ("on", ("tx", "gro", "gso", "tso"))):
            for guest, number in ((left, 1), (right, 2)):
                for offload in offloads:
                    guest.run(f"ethtool -K {scene.device(number, ring)} {offload} {state}")
        rounds += 1
    assert rounds > 0
    assert stream.intact()
