"""A QEMU guest and a host behind a NIC: the switch between a guest's rings and AF_XDP."""

from __future__ import annotations

import hashlib
import os
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ovsvhost.testing.daemon import SwitchDaemon
from ovsvhost.testing.guest import Guest, Nic
from ovsvhost.testing.kernel_host import KernelHost
from ovsvhost.testing.qemu import find_qemu
from ovsvhost.testing.traffic import address, bring_up, fetched, ping, serve_file
from ovsvhost.testing.wait import wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ovsvhost.testing.image import GuestImage

pytestmark = [pytest.mark.guest, pytest.mark.timeout(600)]

JUMBO = 9000
MIB = 1 << 20
HEADERS = {"ipv4": 28, "ipv6": 48}
FAMILIES = tuple(HEADERS)
GUEST, HOST = 1, 2


@dataclass(frozen=True)
class Scene:
    """A guest on port ``v1`` and a host behind an AF_XDP port, all for frames of 9000 bytes."""

    switch: SwitchDaemon
    guest: Guest
    host: KernelHost


@pytest.fixture(scope="module")
def scene(guest_image: GuestImage) -> Iterator[Scene]:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ov-")))
        host = stack.enter_context(KernelHost(folder, HOST))
        switch = stack.enter_context(SwitchDaemon(folder / "sw"))
        switch.vsctl("add-br", "br0", "--", "set", "bridge", "br0", "datapath_type=netdev")
        socket = folder / "v1"
        words = ["type=dpdkvhostuserclient", f"options:vhost-server-path={socket}", f"mtu_request={JUMBO}"]
        switch.vsctl("add-port", "br0", "v1", "--", "set", "Interface", "v1", *words)
        device = host.plug(mtu=JUMBO)
        words = ["type=afxdp", f"mtu_request={JUMBO}"]
        switch.vsctl("add-port", "br0", device, "--", "set", "Interface", device, *words)
        nic = Nic(
            socket=str(socket),
            type="dpdkvhostuserclient",
            mac="52:54:00:00:00:01",
            options={"host_mtu": str(JUMBO)},
        )
        guest = stack.enter_context(Guest(guest_image, find_qemu("10.0"), [nic], folder=folder))
        bring_up(guest, GUEST)
        switch.wait_link(device)
        wait_for(lambda: host.answers(address(GUEST).ipv4), timeout_s=30, what="the guest to answer the host")
        yield Scene(switch, guest, host)


@pytest.mark.rows("A18", "A22")
@pytest.mark.parametrize("family", FAMILIES)
def test_guest_and_host_ping_each_other_with_frames_up_to_9000_bytes(scene: Scene, family: str) -> None:
    guest, host = (getattr(address(number), family) for number in (GUEST, HOST))
    for size in (56, 1400, JUMBO - HEADERS[family]):
        assert ping(scene.guest, host, count=3, size=size).received == 3
        assert scene.host.ping(guest, count=3, size=size).received == 3


@pytest.mark.rows("A22", "B6")
@pytest.mark.parametrize("family", FAMILIES)
def test_files_arrive_byte_for_byte_in_both_directions(scene: Scene, family: str) -> None:
    guest, host = (getattr(address(number), family) for number in (GUEST, HOST))
    sent = serve_file(scene.guest, size_mib=4)
    received = scene.host.fetch(guest, "/file")
    assert (len(received), hashlib.sha256(received).hexdigest()) == (4 * MIB, sent)
    content = os.urandom(4 * MIB)
    server = scene.host.serve(content)
    try:
        assert fetched(scene.guest, host) == (len(content), hashlib.sha256(content).hexdigest())
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.rows("A22")
def test_guest_is_back_on_the_network_when_the_device_was_pulled_out_and_put_back(scene: Scene) -> None:
    device = scene.host.outside
    scene.host.unplug()
    scene.switch.wait_link(device, "down")
    scene.host.plug(device, mtu=JUMBO)
    scene.switch.wait_link(device)
    guest = address(GUEST).ipv4
    wait_for(lambda: scene.host.answers(guest), timeout_s=30, what="the guest to answer the host again")
    assert ping(scene.guest, address(HOST).ipv4, count=3, size=JUMBO - HEADERS["ipv4"]).received == 3
