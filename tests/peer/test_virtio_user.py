"""DPDK's virtio-user front-ends on the switch: an independent driver, and its own count of every frame."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from ovsvhost.testing.testpmd import Testpmd, virtio_user
from ovsvhost.testing.wait import wait_for

if TYPE_CHECKING:
    from ovsvhost.testing.daemon import SwitchDaemon

pytestmark = [pytest.mark.peer, pytest.mark.timeout(300)]

ENOUGH = 10_000
SENDER, RECEIVER = "a", "b"
RECEIVER_MAC = "52:54:00:00:02:02"
DRIVERS = {
    "mergeable": "mrg_rxbuf=1,in_order=0,packed_vq=0",
    "plain": "mrg_rxbuf=0,in_order=0,packed_vq=0",
    "vectorised": "mrg_rxbuf=0,in_order=0,packed_vq=0,vectorized=1",
}


def add_ports(switch: SwitchDaemon, port_type: str) -> None:
    switch.vsctl("add-br", "br0", "--", "set", "bridge", "br0", "datapath_type=netdev")
    switch.vsctl("set", "Open_vSwitch", ".", "other_config:stats-update-interval=100")
    for port in (SENDER, RECEIVER):
        words = ["add-port", "br0", port, "--", "set", "Interface", port, f"type={port_type}"]
        if port_type == "dpdkvhostuserclient":
            words.append(f"options:vhost-server-path={switch.folder / port}")
        switch.vsctl(*words)


def count(switch: SwitchDaemon, port_type: str, driver: str, *, size: int = 64, queues: int = 1) -> None:
    """Sends from one front-end to the other for a moment; every frame is accounted for by all three parties."""
    client = port_type == "dpdkvhostuserclient"
    folder = switch.folder if client else switch.rundir
    add_ports(switch, port_type)
    devices = {
        port: virtio_user(folder / port, server=client, queues=queues, mac=mac, options=DRIVERS[driver])
        for port, mac in ((SENDER, "52:54:00:00:02:01"), (RECEIVER, RECEIVER_MAC))
    }
    shape = [f"--rxq={queues}", f"--txq={queues}"]
    sending = [*shape, f"--txpkts={size}", f"--eth-peer=0,{RECEIVER_MAC}", "--txonly-multi-flow"]
    with ExitStack() as stack:
        receiver = Testpmd([devices[RECEIVER]], folder=switch.folder / "rx", forward="rxonly", options=shape)
        sender = Testpmd([devices[SENDER]], folder=switch.folder / "tx", forward="txonly", options=sending)
        for program in (receiver, sender):
            stack.enter_context(program)
        for port in (SENDER, RECEIVER):
            switch.wait_link(port)
        receiver.command("start")
        sender.command("start")
        wait_for(lambda: receiver.statistics()[0].rx_packets > ENOUGH, timeout_s=60, what="frames to arrive")
        sender.command("stop")
        sent = sender.statistics()[0]
        # The last frames are still on their way when the sender stops.
        switch.wait_statistic(SENDER, "rx_packets", more_than=sent.tx_packets - 1)
        dropped = switch.statistic(RECEIVER, "tx_dropped")
        wait_for(
            lambda: receiver.statistics()[0].rx_packets + dropped >= sent.tx_packets,
            timeout_s=20,
            what="every frame to be received or counted as dropped",
        )
        received = receiver.statistics()[0]
    assert switch.statistic(SENDER, "rx_packets") == sent.tx_packets
    assert switch.statistic(RECEIVER, "tx_packets") == received.rx_packets
    assert received.rx_packets + dropped == sent.tx_packets
    assert received.rx_bytes == received.rx_packets * size


# The others, at several numbers of queues too, are counted in ``test_virtio_user_rings``.
@pytest.mark.parametrize(
    "driver", [pytest.param(name, marks=() if name == "vectorised" else pytest.mark.soak) for name in DRIVERS]
)
def test_A2_every_frame_of_a_virtio_user_driver_is_accounted_for(switch: SwitchDaemon, driver: str) -> None:
    count(switch, "dpdkvhostuserclient", driver)


def test_A4_virtio_user_reaches_server_ports(switch: SwitchDaemon) -> None:
    count(switch, "dpdkvhostuser", "mergeable")


@pytest.mark.soak
def test_A10_frames_on_two_queues_are_accounted_for(switch: SwitchDaemon) -> None:
    count(switch, "dpdkvhostuserclient", "mergeable", queues=2)


def test_frames_of_full_size_are_accounted_for(switch: SwitchDaemon) -> None:
    count(switch, "dpdkvhostuserclient", "mergeable", size=1518 - 4)
