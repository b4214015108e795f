"""Our own front-end on switches that are not ours: what it says of a back-end can be believed.

It judges the switch in other tests. Here it runs against OVS-DPDK and against testpmd, whose word is not in doubt: the
layouts and sessions that guests use must pass there frame by frame, and the generator must be the faster side.
"""

from __future__ import annotations

import os
import signal
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from ovsvhost.testing.frontend import Frontend, end
from ovsvhost.testing.ovs_dpdk import OvsDpdk
from ovsvhost.testing.testpmd import Testpmd, vhost
from ovsvhost.testing.wait import wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.peer, pytest.mark.timeout(300)]

FRAMES = 2000
PEERS = ("ovs", "testpmd")
# Settings of both ends, and of the receiving end alone. The second named twice overrides the first.
SESSIONS = {
    "one descriptor": ("layout=one", ""),
    "header apart": ("layout=two", ""),
    "chained": ("layout=chain:5", ""),
    "indirect": ("layout=indirect:4", ""),
    "receive buffers chained": ("ring-size=1024", "rx-layout=chain:3"),
    "receive buffers indirect": ("ring-size=1024", "rx-layout=indirect:2"),
    "frames in many small buffers": ("ring-size=1024", "buffer=300"),
    "not mergeable": ("without=mrg_rxbuf", ""),
    "short header": ("without=mrg_rxbuf+version_1", ""),
    "no event index": ("without=event_idx", ""),
    "order of virtio-user": ("order=virtio-user", ""),
    "three regions": ("regions=3", ""),
    "2 MiB pages": ("memory=huge2m", ""),
    "the largest ring": ("ring-size=32768", ""),
    "in order": ("require=in_order", ""),
    "a dirty log": ("log=yes", ""),
    "a dirty log that was": ("log=off-again", ""),
    "packed": ("require=ring_packed", ""),
    "packed, header apart": ("require=ring_packed,layout=two", ""),
    "packed, chained": ("require=ring_packed,layout=chain:5", "rx-layout=chain:3"),
    "packed, indirect": ("require=ring_packed,layout=indirect:4", "rx-layout=indirect:2"),
    "packed, frames in many small buffers": ("require=ring_packed,ring-size=1024", "buffer=300"),
    "packed, not mergeable": ("require=ring_packed,without=mrg_rxbuf", ""),
    "packed, no event index": ("require=ring_packed,without=event_idx", ""),
    "packed, in order": ("require=ring_packed+in_order", ""),
    "packed, order of virtio-user": ("require=ring_packed,order=virtio-user", ""),
    "packed, a size that is no power of two": ("require=ring_packed,ring-size=1000", ""),
}


@pytest.fixture(scope="module")
def ovs() -> Iterator[OvsDpdk]:
    with tempfile.TemporaryDirectory(prefix="ov-") as name, OvsDpdk(Path(name, "ovs")) as switch:
        switch.vsctl("add-br", "br0", "--", "set", "bridge", "br0", "datapath_type=netdev")
        for port in ("a", "b"):
            words = ["type=dpdkvhostuserclient", f"options:vhost-server-path={Path(name, port)}"]
            switch.vsctl("add-port", "br0", port, "--", "set", "Interface", port, *words)
        yield switch


@pytest.fixture(scope="module")
def testpmd() -> Iterator[Testpmd]:
    with tempfile.TemporaryDirectory(prefix="ov-") as name:
        sockets = [vhost(Path(name, port)) for port in ("a", "b")]
        with Testpmd(sockets, folder=Path(name)) as switch:
            switch.command("start")
            yield switch


@pytest.fixture(params=PEERS)
def peer(request: pytest.FixtureRequest) -> OvsDpdk | Testpmd:
    switch: OvsDpdk | Testpmd = request.getfixturevalue(request.param)
    return switch


@pytest.fixture
def sockets(peer: OvsDpdk | Testpmd) -> tuple[Path, Path]:
    """Where a pair of front-ends listens for the peer."""
    folder = peer.folder.parent if isinstance(peer, OvsDpdk) else peer.folder
    return folder / "a", folder / "b"


def run(sockets: tuple[Path, Path], folder: Path, both: str, second: str, *options: str) -> dict[str, Any]:
    ends = [f"socket={sockets[0]},{both}", f"socket={sockets[1]},{both},{second}"]
    with Frontend(ends, folder=folder, options=[*options, "--duration=60"]) as frontend:
        return frontend.event("result", timeout_s=90)


# Each session on one of the peers; on the other in the soak.
@pytest.mark.parametrize(
    ("peer", "session"),
    [
        pytest.param(peer, session, marks=pytest.mark.soak if (number + turn) % 2 else ())
        for turn, peer in enumerate(PEERS)
        for number, session in enumerate(SESSIONS)
    ],
    indirect=["peer"],
)
def test_every_frame_arrives_once_and_whole(sockets: tuple[Path, Path], session: str, short_folder: Path) -> None:
    both, second = SESSIONS[session]
    options = ["--sizes=64+128+590+1500", f"--frames={FRAMES}", "--in-flight=32"]
    report = run(sockets, short_folder, both, second, *options)
    (exact,) = report["exact"]
    assert (exact["sent"], exact["received"]) == (FRAMES, FRAMES)
    assert (exact["lost"], exact["duplicated"], exact["reordered"]) == (0, 0, 0)
    for side in report["ends"]:
        assert not any(side["corrupt"].values()), side["corrupt"]
        assert side["violations"] == {}
        if both == "log=yes":
            assert side["pages_marked"] > 0


@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
def test_the_generator_says_how_full_it_kept_the_ring(
    peer: OvsDpdk | Testpmd, sockets: tuple[Path, Path], packed: bool, short_folder: Path
) -> None:
    """Never full with fewer frames in all than would fill it; full at every look while the switch is held still.

    How full a switch that works leaves it, the benchmarks judge: that is a matter of two cores nobody else wants.
    """
    few, ring_size = 800, 1024
    options = ["--check=count", f"--ring-size={ring_size}", "--burst=256"]
    ends = [end(socket, packed=packed) for socket in sockets]
    with Frontend(ends, folder=short_folder, options=[*options, f"--frames={few}"]) as frontend:
        sender, receiver = frontend.event("result")["ends"]
    assert (sender["sent"], sender["full_tries"]) == (few, 0)
    assert sender["tries"] > 0
    with Frontend(ends, folder=short_folder, options=options) as frontend:
        wait_for(lambda: stats(frontend) > 100 * ring_size, timeout_s=30, what="the rings to go round")
        with held_still(peer.pid):
            wait_for(lambda: sender_of(frontend)["sent"] == sender_of(frontend)["sent"], timeout_s=10, what="no room")
            before = sender_of(frontend)
            after = sender_of(frontend)
        sender, receiver = frontend.finish()["ends"]
    assert after["queues"][0]["in_ring"] == ring_size
    assert after["full_tries"] - before["full_tries"] == after["tries"] - before["tries"] > 0
    assert receiver["received"] > 100 * ring_size
    assert (receiver["behind"], sender["violations"], receiver["violations"]) == (0, {}, {})


def test_a_frame_is_timed_there_and_back(sockets: tuple[Path, Path], short_folder: Path) -> None:
    measured = run(sockets, short_folder, "", "", "--mode=latency", "--frames=500")["measured"]
    assert (measured["round_trips"], measured["lost"]) == (500, 0)
    assert 0 < measured["min_us"] <= measured["p50_us"] <= measured["p99_us"] <= measured["max_us"]


def test_frames_are_timed_on_their_way_among_others(sockets: tuple[Path, Path], short_folder: Path) -> None:
    options = ["--mode=transit", "--check=sequence", "--ring-size=1024", "--rate=50000", "--frames=5000"]
    measured = run(sockets, short_folder, "", "", *options)["measured"]
    transit = measured["transit"]
    # A frame is watched in each pass that sends; passes are shorter than the pause between two frames.
    assert 500 < transit["watched"] <= 5000
    assert 0 < transit["p50_us"] <= transit["p99_us"] <= transit["p999_us"] <= transit["max_us"]


@pytest.mark.parametrize("order", ["qemu", "virtio-user"])
def test_a_session_outlives_the_death_of_its_switch(ovs: OvsDpdk, order: str, short_folder: Path) -> None:
    ends = [f"socket={ovs.folder.parent / port},order={order}" for port in ("a", "b")]
    with Frontend(ends, folder=short_folder, options=["--rate=10000", "--ring-size=1024"]) as frontend:
        frontend.event("ready")
        ovs.kill()
        for end in ("a", "b"):
            frontend.event("link", end=end, state="down")
        ovs.start()
        wait_for(
            lambda: all(
                len([link for link in frontend.events("link") if (link["end"], link["state"]) == (end, "up")]) > 1
                for end in ("a", "b")
            ),
            timeout_s=30,
            what="both links to be up again",
        )
        before = stats(frontend)
        wait_for(lambda: stats(frontend) > before + FRAMES, timeout_s=30, what="frames to flow again")
        report = frontend.finish()
    (exact,) = report["exact"]
    assert [end["sessions"] for end in report["ends"]] == [2, 2]
    assert exact["sent"] == exact["received"] + exact["lost"] + exact["in_ring"]
    assert exact["duplicated"] == exact["reordered"] == 0


def stats(frontend: Frontend) -> int:
    """Frames that arrived so far."""
    received: int = state(frontend)["exact"][0]["received"]
    return received


def sender_of(frontend: Frontend) -> dict[str, Any]:
    """What the sending end counted so far."""
    sender: dict[str, Any] = state(frontend)["ends"][0]
    return sender


def state(frontend: Frontend) -> dict[str, Any]:
    known = len(frontend.events("stats"))
    frontend.tell("stats")
    wait_for(lambda: len(frontend.events("stats")) > known, timeout_s=10, what="the front-end's statistics")
    return frontend.events("stats")[-1]


@contextmanager
def held_still(pid: int) -> Iterator[None]:
    """A process that is stopped, and goes on at the end."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)
