"""Every kind of ring that DPDK's virtio-user driver knows, at every number of queues, all at the same time.

A pair of front-ends for each kind, each pair on a bridge of its own: one process sends on all of its ports, the other
receives on all of its. One run counts every kind; each has a test of its own.
"""

from __future__ import annotations

import json
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
# Small enough that all rings of a process, full at once, leave buffers in its pool.
RING_SIZE = 128
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
    from_sender: dict[str, Any]
    to_receiver: dict[str, Any]


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
        switch.vsctl("set", "Open_vSwitch", ".", "other_config:stats-update-interval=100")
        for number in range(len(RINGS)):
            add_pair(switch, folder, number)
        shape = [f"--rxq={queues}", f"--txq={queues}"]
        peers = [f"--eth-peer={number},{mac('rx', number)}" for number in range(len(RINGS))]
        programs = {}
        for side, forward, options in (
            ("rx", "rxonly", shape),
            ("tx", "txonly", [*shape, *peers, f"--txpkts={SIZE}", "--txonly-multi-flow"]),
        ):
            devices = [
                virtio_user(
                    folder / f"{side}{number}",
                    queues=queues,
                    queue_size=RING_SIZE,
                    mac=mac(side, number),
                    options=ring.options,
                )
                for number, ring in enumerate(RINGS)
            ]
            program = Testpmd(devices, folder=folder / side, forward=forward, options=options)
            programs[side] = stack.enter_context(program)
        wait_for(
            lambda: all(row["link_state"] == "up" for name, row in rows(switch).items() if name[:2] in programs),
            timeout_s=60,
            what="every port's link to be up",
        )
        yield Run(queues, count(switch, programs["tx"], programs["rx"]))


def mac(side: str, number: int) -> str:
    return f"52:54:00:00:{'02' if side == 'tx' else '03'}:{number:02x}"


def add_pair(switch: SwitchDaemon, folder: Path, number: int) -> None:
    bridge = f"br{number}"
    words = ["add-br", bridge, "--", "set", "bridge", bridge, "datapath_type=netdev"]
    for port in (f"tx{number}", f"rx{number}"):
        words += ["--", "add-port", bridge, port, "--", "set", "Interface", port, "type=dpdkvhostuserclient"]
        words.append(f"options:vhost-server-path={folder / port}")
    switch.vsctl(*words)


def rows(switch: SwitchDaemon) -> dict[str, dict[str, Any]]:
    """Every interface's state by its name, in one look."""
    columns = "name,link_state,status,statistics"
    table = json.loads(switch.vsctl("--format=json", f"--columns={columns}", "list", "Interface"))
    found = [dict(zip(table["headings"], row, strict=True)) for row in table["data"]]
    for row in found:
        for column in ("status", "statistics"):
            row[column] = dict(row[column][1])
    return {row["name"]: row for row in found}


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

    def settled() -> dict[str, dict[str, Any]]:
        """The rows once the switch has taken every frame and each is received or counted as dropped; else none."""
        seen = rows(switch)
        received = receiver.statistics()
        for number in numbers:
            taken = seen[f"tx{number}"]["statistics"]["rx_packets"]
            dropped = seen[f"rx{number}"]["statistics"]["tx_dropped"]
            if taken < sent[number].tx_packets or received[number].rx_packets + dropped < sent[number].tx_packets:
                return {}
        return seen

    seen = wait_for(settled, timeout_s=60, what="every frame to be received or counted as dropped", interval_s=0.2)
    received = receiver.statistics()
    return {
        ring: Outcome(
            sent=sent[number],
            received=received[number],
            from_sender=seen[f"tx{number}"],
            to_receiver=seen[f"rx{number}"],
        )
        for number, ring in enumerate(RINGS)
    }


@pytest.mark.rows("A2", "A10", "B2")
@pytest.mark.parametrize("ring", RINGS, ids=str)
def test_every_frame_is_accounted_for_on_every_kind_of_ring(run: Run, ring: Ring) -> None:
    outcome = run.outcomes[ring]
    sender, receiver = outcome.from_sender, outcome.to_receiver
    for row in (sender, receiver):
        features = int(row["status"]["features"], 16)
        assert {bit: bool(features >> bit & 1) for bit in ring.bits} == ring.bits
        assert (row["status"]["n_rxq"], row["status"]["n_txq"]) == (str(run.queues), str(run.queues))
    assert sender["statistics"]["rx_packets"] == outcome.sent.tx_packets
    assert receiver["statistics"]["tx_packets"] == outcome.received.rx_packets > ENOUGH
    assert outcome.received.rx_packets + receiver["statistics"]["tx_dropped"] == outcome.sent.tx_packets
    assert outcome.received.rx_bytes == outcome.received.rx_packets * SIZE
