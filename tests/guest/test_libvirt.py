"""A libvirt guest on the switch, as the guide has it: both socket modes, two queue pairs, create, console, destroy."""

from __future__ import annotations

import os
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ovsvhost.testing import hugepages
from ovsvhost.testing.daemon import SwitchDaemon
from ovsvhost.testing.guest import Guest, Nic
from ovsvhost.testing.libvirt import QEMU_UID, Domain, Libvirt
from ovsvhost.testing.qemu import installed_qemu
from ovsvhost.testing.traffic import address, bring_up, copy_file, ping

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ovsvhost.testing.image import GuestImage

pytestmark = [pytest.mark.guest, pytest.mark.timeout(600)]

# As the guide names them: the switch makes the first one's socket, libvirt's QEMU the other one's.
SERVER_PORT, CLIENT_PORT, PEER_PORT = "dpdkvhostuser0", "dpdkvhostclient0", "peer"
MEMORY_MIB = 256
DOMAIN, PEER = 1, 2


@dataclass(frozen=True)
class Scene:
    """The domain, the guest it talks to, and what they run on."""

    switch: SwitchDaemon
    libvirt: Libvirt
    domain: Domain
    peer: Guest


@pytest.fixture(scope="module")
def scene(guest_image: GuestImage) -> Iterator[Scene]:
    hugepages.reserve(MEMORY_MIB // 2)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ov-")))
        # QEMU's user shall reach the switch's sockets in here, and make its own.
        folder.chmod(0o755)
        sockets = folder / "vhost"
        sockets.mkdir()
        os.chown(sockets, QEMU_UID, QEMU_UID)
        huge = stack.enter_context(hugepages.mounted())
        huge.chmod(0o755)
        switch = stack.enter_context(SwitchDaemon(folder / "sw"))
        (folder / "sw").chmod(0o755)
        switch.rundir.chmod(0o755)
        ports = {
            SERVER_PORT: ["type=dpdkvhostuser", f"options:socket-owner={QEMU_UID}"],
            CLIENT_PORT: ["type=dpdkvhostuserclient", f"options:vhost-server-path={sockets}/{CLIENT_PORT}"],
            PEER_PORT: ["type=dpdkvhostuserclient", f"options:vhost-server-path={folder}/{PEER_PORT}"],
        }
        switch.vsctl("add-br", "br0", "--", "set", "bridge", "br0", "datapath_type=netdev")
        for port, words in ports.items():
            switch.vsctl("add-port", "br0", port, "--", "set", "Interface", port, *words)
        interfaces = [printed(switch, port) for port in (SERVER_PORT, CLIENT_PORT)]
        libvirt = stack.enter_context(Libvirt(folder / "lv", hugepages=huge))
        nic = Nic(socket=f"{folder}/{PEER_PORT}", type="dpdkvhostuserclient", mac=f"52:54:00:00:00:{PEER:02x}")
        qemu = installed_qemu()
        peer = stack.enter_context(Guest(guest_image, qemu, [nic], name="peer", folder=folder))
        domain = Domain("demovm", guest_image, qemu, interfaces, folder=folder, memory_mib=MEMORY_MIB)
        libvirt.create(domain)
        stack.callback(domain.detach)
        bring_up(peer, PEER)
        yield Scene(switch, libvirt, domain, peer)


def printed(switch: SwitchDaemon, port: str) -> str:
    done = switch.call("libvirt", port, "--queues", "2", "--hugepages")
    assert done.returncode == 0, done.stderr
    return done.stdout


def use(domain: Domain, device: str) -> None:
    """Leaves one interface of the domain up, with the domain's addresses and both queue pairs."""
    for other in ("eth0", "eth1"):
        domain.run(f"ip addr flush dev {other}; ip link set {other} down")
    domain.run(f"ethtool -L {device} combined 2")
    bring_up(domain, DOMAIN, device)


# In the order of a domain's life: what a test leaves, the next one takes.


@pytest.mark.rows("A11")
def test_virsh_lists_the_domain_that_it_created_from_the_printed_xml(scene: Scene) -> None:
    assert scene.libvirt.virsh("list", "--name").split() == ["demovm"]
    assert scene.domain.run("ls /sys/class/net").split() == ["eth0", "eth1", "lo"]


@pytest.mark.rows("A11")
def test_virsh_console_reaches_the_guests_shell(scene: Scene) -> None:
    scene.libvirt.console(scene.domain, "echo it is $((6 * 7))", "it is 42")


@pytest.mark.rows("A10", "A11", "L2")
@pytest.mark.parametrize(("device", "port"), [("eth0", SERVER_PORT), ("eth1", CLIENT_PORT)])
def test_traffic_passes_between_a_libvirt_guest_and_another(scene: Scene, device: str, port: str) -> None:
    use(scene.domain, device)
    scene.switch.wait_link(port)
    scene.switch.wait_column(port, "status:n_rxq", "2")
    for host in (address(PEER).ipv4, address(PEER).ipv6):
        assert ping(scene.domain, host).received == 5
    assert copy_file(scene.domain, scene.peer, address(DOMAIN).ipv4, size_mib=2).intact
    assert copy_file(scene.peer, scene.domain, address(PEER).ipv6, size_mib=2).intact


@pytest.mark.rows("A11", "L1")
def test_sockets_belong_to_the_side_that_made_them_and_qemu_is_not_root(scene: Scene) -> None:
    made = scene.switch.rundir / SERVER_PORT
    assert made.stat().st_uid == QEMU_UID
    assert scene.switch.column(SERVER_PORT, "status:peer-uid") == str(QEMU_UID)


@pytest.mark.rows("A11", "L6")
def test_virsh_destroy_takes_both_links_down_and_the_switch_goes_on(scene: Scene) -> None:
    scene.libvirt.virsh("destroy", "demovm")
    for port in (SERVER_PORT, CLIENT_PORT):
        scene.switch.wait_link(port, "down")
    assert scene.libvirt.virsh("list", "--all", "--name").split() == []
    assert (scene.switch.rundir / SERVER_PORT).is_socket()
    assert scene.switch.column(PEER_PORT, "link_state") == "up"
