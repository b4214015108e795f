"""Every kind of ring that DPDK's virtio-user driver knows, at every number of queues, all at the same time.

A pair of front-ends for each kind, each pair on a bridge of its own: one process sends on all of its ports, the other
receives on all of its. One run counts every kind; each has a test of its own.
"""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ovsvhost.testing.daemon import SwitchDaemon
from ovsvhost.testing.testpmd import Testpmd, virtio_user
from ovsvhost.testing.wait import wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ovsvhost.testing.testpmd import PortStatistics

pytestmark = [pytest.mark.peer, pytest.mark.timeout(300)]

ENOUGH = 3_000
SIZE = 300
# Feature bits, virtio 1.2 §5.1.3 and §6.
MRG_RXBUF, PACKED, IN_ORDER = 15, 34, 35


@dataclass(frozen=True)
class Ring:
    """One kind of ring, as the options of the driver say it."""

    packed: bool
    mergeable: bool
    in_order: bool

    def __str__(self) -> str:
        words = ["packed" if self.packed else "split", "mergeable" if self.mergeable else "plain"]
        return "-".join([*words, "in-order"] if self.in_order else words)

    @property
    def options(self) -> str:
        """What the driver is given."""
        return f"packed_vq={self.packed:d},mrg_rxbuf={self.mergeable:d},in_order={self.in_order:d}"

    @property
    def bits(self) -> dict[int, bool]:
        """Feature bit -> whether it must have been agreed on."""
        return {PACKED: self.packed, MRG_RXBUF: self.mergeable, IN_ORDER: self.in_order}


RINGS = [Ring(*words) for words in product((False, True), repeat=3)]


@dataclass(frozen=True)
class Outcome:
    """What became of one pair's frames, by everyone's own count."""

    sent: PortStatistics
    received: PortStatistics
    switch_received: int
    switch_sent: int
    dropped: int
    features: int
    queues: tuple[str, str]


@dataclass(frozen=True)
class Run:
    """All pairs' outcomes at one number of queues."""

    queues: int
    outcomes: dict[Ring, Outcome]


@pytest.fixture(scope="module", params=[1, 2, 8], ids=lambda queues: f"queues-{queues}")
def run(request: pytest.FixtureRequest) -> Iterator[Run]:
    queues: int = request.param
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ov-")))
        switch = stack.enter_context(SwitchDaemon(folder / "sw"))
        sides = {side: [f"{side}{number}" for number in range(len(RINGS))] for side in ("tx", "rx")}
        for number in range(len(RINGS)):
            bridge = f"br{number}"
            switch.vsctl("add-br", bridge, "--", "set", "bridge", bridge, "datapath_type=netdev")
            for port in (sides["tx"][number], sides["rx"][number]):
                words = ["type=dpdkvhostuserclient", f"options:vhost-server-path={folder / port}"]
                switch.vsctl("add-port", bridge, port, "--", "set", "Interface", port, *words)
        shape = [f"--rxq={queues}", f"--txq={queues}"]
        peers = [f"--eth-peer={number},{mac('rx', number)}" for number in range(len(RINGS))]
        programs = {}
        for side, forward, options in (
            ("rx", "rxonly", shape),
            ("tx", "txonly", [*shape, *peers, f"--txpkts={SIZE}", "--txonly-multi-flow"]),
        ):
            devices = [
                virtio_user(
                    folder / sides[side][number],
                    queues=queues,
                    queue_size=256,
                    mac=mac(side, number),
                    options=ring.options,
                )
                for number, ring in enumerate(RINGS)
            ]
            program = Testpmd(devices, folder=folder / side, forward=forward, options=options)
            programs[side] = stack.enter_context(program)
        for port in (*sides["tx"], *sides["rx"]):
            switch.wait_link(port)
        yield Run(queues, count(switch, programs["tx"], programs["rx"]))


def mac(side: str, number: int) -> str:
    return f"52:54:00:00:{'02' if side == 'tx' else '03'}:{number:02x}"


def count(switch: SwitchDaemon, sender: Testpmd, receiver: Testpmd) -> dict[Ring, Outcome]:
    """Sends until every receiver has enough, waits until every frame is somewhere, and reads all counters."""
    numbers = range(len(RINGS))
    receiver.command("start")
    sender.command("start")
    wait_for(
        lambda: all(port.rx_packets > ENOUGH for port in receiver.statistics().values()),
        timeout_s=60,
        what="frames to arrive at every front-end",
    )
    sender.command("stop")
    sent = sender.statistics()
    for number in numbers:
        switch.wait_statistic(f"tx{number}", "rx_packets", more_than=sent[number].tx_packets - 1)
    dropped = {number: switch.statistic(f"rx{number}", "tx_dropped") for number in numbers}
    wait_for(
        lambda: all(
            receiver.statistics()[number].rx_packets + dropped[number] >= sent[number].tx_packets for number in numbers
        ),
        timeout_s=20,
        what="every frame to be received or counted as dropped",
    )
    received = receiver.statistics()
    return {
        ring: Outcome(
            sent=sent[number],
            received=received[number],
            switch_received=switch.statistic(f"tx{number}", "rx_packets"),
            switch_sent=switch.statistic(f"rx{number}", "tx_packets"),
            dropped=dropped[number],
            features=int(switch.column(f"rx{number}", "status:features"), 16),
            queues=(
                switch.column(f"tx{number}", "status:n_rxq"),
                switch.column(f"rx{number}", "status:n_txq"),
            ),
        )
        for number, ring in enumerate(RINGS)
    }


@pytest.mark.rows("A2", "A10", "B2")
@pytest.mark.parametrize("ring", RINGS, ids=str)
def test_every_frame_is_accounted_for_on_every_kind_of_ring(run: Run, ring: Ring) -> None:
    outcome = run.outcomes[ring]
    assert {bit: bool(outcome.features >> bit & 1) for bit in ring.bits} == ring.bits
    assert outcome.queues == (str(run.queues), str(run.queues))
    assert outcome.switch_received == outcome.sent.tx_packets
    assert outcome.switch_sent == outcome.received.rx_packets > ENOUGH
    assert outcome.received.rx_packets + outcome.dropped == outcome.sent.tx_packets
    assert outcome.received.rx_bytes == outcome.received.rx_packets * SIZE
