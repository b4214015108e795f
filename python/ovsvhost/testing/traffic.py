"""Traffic between two guests, judged inside them: pings counted, files compared byte for byte.

Rates are not measured here: an emulated CPU is the limit, not the switch.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from ovsvhost.testing.errors import RigError
from ovsvhost.testing.wait import wait_for

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ovsvhost.testing.machine import Machine

_MIB = 1 << 20
_COPY_TIMEOUT_S = 240


@dataclass(frozen=True)
class Address:
    """What one guest is called on the test network."""

    ipv4: str
    ipv6: str


@dataclass(frozen=True)
class Ping:
    """The end of a ping."""

    sent: int
    received: int
    average_ms: float


@dataclass(frozen=True)
class Copy:
    """One file copied from guest to guest over TCP."""

    size: int
    received: int
    sha256_sent: str
    sha256_received: str
    seconds: float

    @property
    def intact(self) -> bool:
        """Every byte arrived, and as it was sent."""
        return self.received == self.size and self.sha256_received == self.sha256_sent


def address(number: int) -> Address:
    """The addresses of the guest with that number, 1..254."""
    return Address(f"10.0.0.{number}", f"fd00::{number:x}")


def bring_up(guest: Machine, number: int, device: str = "eth0") -> Address:
    """Gives a guest's device its addresses and turns it on."""
    mine = address(number)
    guest.run(
        f"ip addr add {mine.ipv4}/24 dev {device} && ip -6 addr add {mine.ipv6}/64 dev {device} && "
        f"ip link set {device} up"
    )
    return mine


def ping(guest: Machine, target: str, *, count: int = 5, interval_s: float = 0.1, size: int = 56) -> Ping:
    """Pings an IPv4 or IPv6 address from inside a guest; waits at most a second for the last answer."""
    _, printed = guest.call(
        f"ping -c {count} -i {interval_s} -s {size} -W 1 {target}", timeout_s=30 + count * (interval_s + 0.5)
    )
    return parse_ping(printed)


def parse_ping(printed: str) -> Ping:
    """Reads what busybox's ping printed.

    Raises:
        RigError: it did not get as far as its summary.
    """
    counts = re.search(r"(\d+) packets transmitted, (\d+) packets received", printed)
    if counts is None:
        raise RigError(f"ping printed no summary: {printed.strip()}")
    times = re.search(r"min/avg/max = [\d.]+/([\d.]+)/", printed)
    return Ping(int(counts[1]), int(counts[2]), float(times[1]) if times else 0.0)


class PingStream:
    """A ping that goes on, with the guest's clock beside every answer: how long a gap in the traffic was.

    Args:
        guest: who asks.
        target: the address asked.
        interval_s: seconds between two questions; an emulated CPU keeps up with 0.02.
    """

    def __init__(self, guest: Machine, target: str, *, interval_s: float = 0.02) -> None:
        self._guest = guest
        self._job = guest.spawn(f"ping -i {interval_s} {target} | ts %.s")

    def answers(self) -> list[float]:
        """When each answer came, in seconds of the guest's clock."""
        return [float(line.split()[0]) for line in self._job.output().splitlines() if " bytes from " in line]

    def wait_answers(self, more: int, timeout_s: float = 30) -> None:
        """Waits until that many answers more than now have come."""
        wanted = len(self.answers()) + more
        wait_for(
            lambda: len(self.answers()) >= wanted,
            timeout_s=timeout_s,
            what=f"{more} more pings of {self._guest.name} to be answered",
            interval_s=0.1,
        )

    def stop(self) -> list[float]:
        """Ends it and gives all answers."""
        self._guest.run("killall -INT ping")
        self._job.wait()
        return self.answers()


def longest_gap_s(answers: Sequence[float]) -> float:
    """The longest time without an answer; infinite when there are fewer than two."""
    return max((later - earlier for earlier, later in pairwise(answers)), default=float("inf"))


def copy_file(source: Machine, target: Machine, host: str, *, size_mib: int) -> Copy:
    """Makes a random file in ``source`` and fetches it from ``target`` over HTTP; both sides hash what they have.

    Args:
        source: the guest that serves it.
        target: the guest that fetches it.
        host: an address of ``source``.
        size_mib: MiB; both guests hold the file in memory.
    """
    # The guests' root is a tmpfs of half their memory: what earlier copies left would fill it.
    for guest in (source, target):
        guest.run("rm -f /var/www/* /tmp/fetched")
    sent = serve_file(source, size_mib=size_mib)
    began = time.monotonic()
    _fetch(target, host)
    seconds = time.monotonic() - began
    size, received = _fetched(target)
    return Copy(size_mib * _MIB, size, sent, received, seconds)


def serve_file(guest: Machine, *, size_mib: int) -> str:
    """Makes a random file in the guest, serves it as ``/file`` over HTTP, and gives its SHA-256."""
    guest.run("rm -f /var/www/*")
    guest.run(f"dd if=/dev/urandom of=/var/www/file bs=1M count={size_mib} 2>/dev/null", timeout_s=_COPY_TIMEOUT_S)
    guest.run("pidof httpd || httpd -h /var/www")
    return guest.run("sha256sum </var/www/file", timeout_s=_COPY_TIMEOUT_S).split()[0]


def fetched(guest: Machine, host: str) -> tuple[int, str]:
    """Fetches ``/file`` from a host over HTTP inside the guest; gives its size and SHA-256 there."""
    guest.run("rm -f /tmp/fetched")
    _fetch(guest, host)
    return _fetched(guest)


def _fetch(guest: Machine, host: str) -> None:
    guest.run(f"printf 'GET /file HTTP/1.0\\r\\n\\r\\n' | nc {host} 80 >/tmp/fetched", timeout_s=_COPY_TIMEOUT_S)


def _fetched(guest: Machine) -> tuple[int, str]:
    return int(_body(guest, "wc -c")), _body(guest, "sha256sum").split()[0]


class Stream:
    """A file on its way from guest to guest over TCP while something else happens; hashed at both ends.

    Args:
        source: the guest that serves it, and holds it in memory.
        target: the guest that fetches it, and keeps nothing of it.
        host: an address of ``source``.
        size_mib: MiB.
    """

    def __init__(self, source: Machine, target: Machine, host: str, *, size_mib: int) -> None:
        self._source = source
        source.run(
            f"dd if=/dev/urandom of=/var/www/stream bs=1M count={size_mib} 2>/dev/null", timeout_s=_COPY_TIMEOUT_S
        )
        source.run("pidof httpd || httpd -h /var/www")
        self._sent = source.run("sha256sum </var/www/stream", timeout_s=_COPY_TIMEOUT_S).split()[0]
        # The tail is the file: httpd's words come before it.
        fetch = f"printf 'GET /stream HTTP/1.0\\r\\n\\r\\n' | nc {host} 80"
        self._job = target.spawn(f"{fetch} | tail -c {size_mib * _MIB} | sha256sum")

    @property
    def ended(self) -> bool:
        """Whether it is over."""
        return self._job.ended

    def intact(self, *, timeout_s: float = 120) -> bool:
        """Waits for its end; True if every byte arrived as it was sent."""
        received = self._job.wait(timeout_s).split()[0]
        self._source.run("rm /var/www/stream")
        return received == self._sent


class Fetches:
    """A file fetched over TCP over and over into a guest's memory, for as long as that guest is moved about.

    Args:
        source: the guest that serves it.
        target: the guest that fetches it.
        host: an address of ``source``.
        size_mib: MiB.
    """

    def __init__(self, source: Machine, target: Machine, host: str, *, size_mib: int) -> None:
        source.run(f"dd if=/dev/urandom of=/var/www/kept bs=1M count={size_mib} 2>/dev/null")
        source.run("pidof httpd || httpd -h /var/www")
        self._sent = source.run("sha256sum </var/www/kept").split()[0]
        self._target = target
        # The tail is the file: httpd's words come before it.
        fetch = f"printf 'GET /kept HTTP/1.0\\r\\n\\r\\n' | nc {host} 80 | tail -c {size_mib * _MIB} >/tmp/kept"
        self._job = target.spawn(f"until test -e /tmp/enough; do {fetch}; sha256sum </tmp/kept; done")

    def follow(self, target: Machine) -> None:
        """The guest that fetches moved there."""
        self._job.follow(target)
        self._target = target

    def wait_more(self) -> None:
        """Waits until it was fetched twice more, so once from the beginning."""
        wanted = len(self._job.output().splitlines()) + 2
        wait_for(
            lambda: len(self._job.output().splitlines()) >= wanted,
            timeout_s=_COPY_TIMEOUT_S,
            what="a file to be fetched again",
            interval_s=0.1,
        )

    def finish(self) -> None:
        """Ends it.

        Raises:
            RigError: a file arrived that is not what was sent, or the last one changed since it arrived.
        """
        self._target.run("touch /tmp/enough")
        arrived = [line.split()[0] for line in self._job.wait().splitlines()]
        kept = self._target.run("sha256sum </tmp/kept").split()[0]
        wrong = sum(digest != self._sent for digest in arrived)
        if wrong or kept != self._sent:
            raise RigError(f"{wrong} of {len(arrived)} fetched files are not what was sent; the last: {kept}")


def _body(guest: Machine, command: str) -> str:
    # The shell reads the header line by line and leaves the body, byte for byte, to the command after it.
    skip = "while read -r line && [ ${#line} -gt 1 ]; do :; done"
    return guest.run(f"{{ {skip}; {command}; }} </tmp/fetched", timeout_s=_COPY_TIMEOUT_S)
