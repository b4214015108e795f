"""A front-end or guest that breaks the rules: its own port says what and why, and nobody else's traffic notices.

The attacks are those of ``vhost-frontend hostile --list``, run as processes against the daemon while a pair of honest
guests exchanges numbered frames through the same bridge.
"""

from __future__ import annotations

import json
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from ovsvhost.testing.daemon import SwitchDaemon
from ovsvhost.testing.frontend import Frontend, program
from ovsvhost.testing.stock import row
from ovsvhost.testing.wait import wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.peer, pytest.mark.timeout(300)]

FRAMES = 200

# What the port's `error` must say of each attack.
NAMED = {
    "garbage": "broke the vhost-user protocol",
    "half-message-hang-up": "hung up in the middle of SET_FEATURES",
    "oversize-claimed": "4294967295 bytes of payload",
    "undersize": "4 bytes of payload instead of 8",
    "unknown-request": "was never offered",
    "log-wraps": "bytes at file offset 8192 is not possible",
    "surplus-fds": "32 file descriptors instead of 0",
    "memory-pipe": "not a file that can be mapped",
    "memory-disk-file": "options:allow-file-memory=true",
    "memory-short-file": "shared less memory than it announced",
    "memory-without-fd": "1 file descriptors instead of 2",
    "region-wraps": "wraps around",
    "region-overlap": "overlap",
    "regions-none": "the memory table is empty",
    "ring-outside": "outside the memory table",
    "ring-misaligned": "not aligned",
    "kick-pipe": "kick descriptor is not an eventfd",
    "avail-jump": "available index went back, or ahead",
    "head-out-of-range": "points past the table",
    "chain-loop": "loops",
    "length-huge": "outside the memory table",
    "address-outside": "outside the memory table",
    "writable-in-transmitq": "wrong direction",
    "indirect-nested": "indirect descriptor table is malformed",
    "packed-size-32769": "32769",
    "packed-base-past-ring": "packed ring",
    "packed-chain-endless": "loops",
    "packed-address-outside-in-batch": "outside the memory table",
    "packed-writable": "wrong direction",
    "packed-indirect-flags": "wrong direction",
    "packed-indirect-and-next": "indirect descriptor table is malformed",
    "truncate-rings": "guest memory was taken away",
    "packed-truncate-rings": "guest memory was taken away",
}


@pytest.fixture(scope="module")
def hostile_switch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SwitchDaemon]:
    """A daemon with server ports ``a`` and ``b`` for the honest, and ``c`` for who is not."""
    with SwitchDaemon(tmp_path_factory.mktemp("sw")) as switch:
        switch.vsctl("add-br", "br0", "--", "set", "bridge", "br0", "datapath_type=netdev")
        for port in ("a", "b", "c"):
            switch.vsctl("add-port", "br0", port, "--", "set", "Interface", port, "type=dpdkvhostuser")
        yield switch


@pytest.fixture(scope="module")
def pair(hostile_switch: SwitchDaemon, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Frontend]:
    """Two honest guests, sending all the time; at the end every frame must have arrived whole, once and in order."""
    ends = [f"socket={hostile_switch.rundir / port},side=connect" for port in ("a", "b")]
    options = ["--rate=5000", "--in-flight=64", "--sizes=64+1500"]
    with Frontend(ends, folder=tmp_path_factory.mktemp("pair"), options=options) as frontend:
        frontend.event("ready")
        yield frontend
        report = frontend.finish()
    (exact,) = report["exact"]
    assert (exact["lost"], exact["duplicated"], exact["reordered"]) == (0, 0, 0)
    for end in report["ends"]:
        assert end["sessions"] == 1
        assert not any(end["corrupt"].values()), end["corrupt"]


@pytest.mark.parametrize("attack", NAMED)
@pytest.mark.rows("C8", "C13")
def test_an_attack_is_named_on_its_own_port_and_noticed_nowhere_else(
    hostile_switch: SwitchDaemon, pair: Frontend, attack: str
) -> None:
    before = received(pair)
    with attacker(hostile_switch, attack) as process:
        wait_for(
            lambda: NAMED[attack] in str(row(hostile_switch, "Interface", "c")["error"]),
            timeout_s=20,
            what=f"'{NAMED[attack]}' in the error of c after {attack}",
        )
        process.kill()
    for port in ("a", "b"):
        assert not row(hostile_switch, "Interface", port)["error"]
    wait_for(lambda: received(pair) > before + FRAMES, timeout_s=20, what="the pair's frames to flow")


@pytest.mark.rows("C13")
def test_an_honest_guest_is_served_on_the_port_after_all_that(hostile_switch: SwitchDaemon, pair: Frontend) -> None:
    before = received(pair)
    with attacker(hostile_switch, "guest-honest", hold_s=1) as process:
        outcome = json.loads(process.communicate(timeout=20)[0])["outcome"]
    assert outcome["reaction"] == "alive"
    assert outcome["used"][1] > 0
    wait_for(lambda: received(pair) > before + FRAMES, timeout_s=20, what="the pair's frames to flow")


def attacker(switch: SwitchDaemon, attack: str, hold_s: float = 20) -> subprocess.Popen[bytes]:
    end = f"socket={switch.rundir / 'c'},side=connect"
    command = [str(program()), "hostile", attack, "--hold", str(hold_s), "--end", end]
    return subprocess.Popen(command, stdout=subprocess.PIPE)


def received(pair: Frontend) -> int:
    """Frames that the second honest guest has received so far."""
    known = len(pair.events("stats"))
    pair.tell("stats")
    wait_for(lambda: len(pair.events("stats")) > known, timeout_s=20, what="the front-end's statistics")
    stats: dict[str, Any] = pair.events("stats")[-1]
    return int(stats["exact"][0]["received"])
