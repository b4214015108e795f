"""testpmd in a guest forwards between two vhost ports: DPDK's driver, in the place that the guide puts it.

::

    left ── br0 ── [testpmd in a guest] ── br1 ── right

It passes every frame from one of its ports to the other, so the two guests beside it reach each other through it alone.
Its driver asks for no offload: what the others leave to the switch, the switch completes. Once the guest has an IOMMU,
and testpmd its NICs through vfio-pci: the switch reaches what testpmd mapped for them.
"""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ovsvhost.testing.daemon import SwitchDaemon
from ovsvhost.testing.forwarder import (
    FORWARDER,
    GUARDED_FORWARDER,
    GUARDED_NIC,
    HUGEPAGES,
    Forwarder,
    forwarder_image,
)
from ovsvhost.testing.guest import Guest, Nic
from ovsvhost.testing.qemu import find_qemu
from ovsvhost.testing.traffic import address, bring_up, copy_file, ping
from ovsvhost.testing.wait import wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from ovsvhost.testing.image import GuestImage

pytestmark = [pytest.mark.guest, pytest.mark.timeout(600)]

# Bridge of each port: testpmd's are t0 and t1.
PORTS = {"left": "br0", "t0": "br0", "t1": "br1", "right": "br1"}
TARGET = address(2)
# Feature bits, virtio 1.2 §6.
ACCESS_PLATFORM, PACKED, IN_ORDER = 33, 34, 35


@dataclass(frozen=True)
class Ring:
    """The rings of testpmd's ports: QEMU's release, properties of the devices, feature bits that must be agreed on."""

    qemu: str
    options: Mapping[str, str] = field(default_factory=dict)
    bits: frozenset[int] = frozenset()

    @property
    def is_guarded(self) -> bool:
        """Whether the guest has an IOMMU before its NICs."""
        return ACCESS_PLATFORM in self.bits


RINGS = {
    "split": Ring("7.2"),
    "packed-in-order": Ring("10.0", {"packed": "on", "in_order": "on"}, frozenset({PACKED, IN_ORDER})),
    "iommu": Ring("7.2", GUARDED_NIC, frozenset({ACCESS_PLATFORM})),
}


@dataclass(frozen=True)
class Scene:
    """The guests beside the forwarder, and the forwarder's program."""

    ring: Ring
    switch: SwitchDaemon
    left: Guest
    right: Guest
    forwarder: Forwarder


def nic(folder: Path, port: str, options: Mapping[str, str]) -> Nic:
    number = list(PORTS).index(port)
    return Nic(
        socket=str(folder / port), type="dpdkvhostuserclient", mac=f"52:54:00:00:05:{number:02x}", options=options
    )


# Split rings are those of the guarded guest too.
@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=pytest.mark.soak if name == "split" else ()) for name in RINGS],
)
def scene(request: pytest.FixtureRequest, guest_image: GuestImage) -> Iterator[Scene]:
    image = forwarder_image()
    ring = RINGS[request.param]
    qemu = find_qemu(ring.qemu)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ov-")))
        switch = stack.enter_context(SwitchDaemon(folder / "sw"))
        if ring.is_guarded:
            # Read at start.
            switch.vsctl("set", "Open_vSwitch", ".", "other_config:vhost-iommu-support=true")
            switch.stop()
            switch.start()
        switch.vsctl("set", "Open_vSwitch", ".", "other_config:stats-update-interval=100")
        for bridge in dict.fromkeys(PORTS.values()):
            switch.vsctl("add-br", bridge, "--", "set", "bridge", bridge, "datapath_type=netdev")
        for port, bridge in PORTS.items():
            words = ["type=dpdkvhostuserclient", f"options:vhost-server-path={folder / port}"]
            switch.vsctl("add-port", bridge, port, "--", "set", "Interface", port, *words)
        between = Guest(
            image,
            qemu,
            [nic(folder, port, ring.options) for port in ("t0", "t1")],
            name="between",
            folder=folder,
            **(GUARDED_FORWARDER if ring.is_guarded else FORWARDER),
        )
        stack.enter_context(between)
        left, right = (
            stack.enter_context(Guest(guest_image, qemu, [nic(folder, port, {})], name=port, folder=folder))
            for port in ("left", "right")
        )
        for number, end in enumerate((left, right), start=1):
            bring_up(end, number)
        forwarder = Forwarder(between, "vfio-pci" if ring.is_guarded else "uio_pci_generic")
        forwarder.start()
        yield Scene(ring, switch, left, right, forwarder)
        forwarder.stop()


@pytest.mark.rows("A17")
def test_testpmd_in_the_guest_has_the_rings_it_is_meant_to_have(scene: Scene) -> None:
    for port in ("t0", "t1"):
        scene.switch.wait_link(port)
        agreed = int(scene.switch.column(port, "status:features"), 16)
        assert {bit for bit in (ACCESS_PLATFORM, PACKED, IN_ORDER) if agreed >> bit & 1} == scene.ring.bits
        if scene.ring.is_guarded:
            assert scene.switch.column(port, "status:iommu") == "on"


@pytest.mark.rows("A17", "A14")
@pytest.mark.parametrize("family", ["ipv4", "ipv6"])
def test_guests_ping_each_other_through_testpmd_in_a_third(scene: Scene, family: str) -> None:
    host = getattr(TARGET, family)
    wait_for(lambda: ping(scene.left, host, count=1).received, timeout_s=30, what="the first answer through testpmd")
    assert ping(scene.left, host, count=10).received == 10


@pytest.mark.rows("A17", "B2")
def test_testpmd_counts_what_the_switch_counts(scene: Scene) -> None:
    """Before any copy: a large segment that is cut for testpmd is one frame to the switch and many to it."""
    for family in ("ipv4", "ipv6"):
        assert ping(scene.left, getattr(TARGET, family), count=3).received == 3

    def agree() -> bool:
        """Both have counted the same; a frame between them is counted on one side only."""
        seen = scene.forwarder.statistics()
        return all(
            scene.switch.statistic(port, "tx_packets") == seen[number].rx_packets
            and scene.switch.statistic(port, "rx_packets") == seen[number].tx_packets
            for number, port in enumerate(("t0", "t1"))
        )

    wait_for(agree, timeout_s=60, what="the switch's counters and testpmd's to be the same", interval_s=0.5)
    assert all(port.rx_packets > 0 for port in scene.forwarder.statistics().values())


@pytest.mark.rows("A17", "B6", "C14")
@pytest.mark.parametrize("family", ["ipv4", "ipv6"])
def test_file_arrives_byte_for_byte_through_testpmd(scene: Scene, family: str) -> None:
    assert copy_file(scene.right, scene.left, getattr(TARGET, family), size_mib=2).intact


@pytest.mark.rows("A14", "C9")
def test_what_testpmd_mapped_is_asked_for_once(scene: Scene) -> None:
    """Its hugepages are mapped for as long as it runs: each is asked for by each queue at most once."""
    assert ping(scene.left, TARGET.ipv4, count=3).received == 3
    for port in ("t0", "t1"):
        for side in ("rx", "tx"):
            if scene.ring.is_guarded:
                scene.switch.wait_statistic(port, f"{side}_q0_iotlb_hits")
            most = 2 * HUGEPAGES if scene.ring.is_guarded else 0
            assert scene.switch.statistic(port, f"{side}_q0_iotlb_misses") <= most
