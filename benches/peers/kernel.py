"""TCP between two Linux guests: what the switch gives to drivers and stacks as users have them.

QEMU emulates the processors, which is slow, so the guests are the limit and only ratios within a run mean something.
Both share the generator's core; the switch has its own. They boot once and are stopped while another contestant has its
turn.
"""

from __future__ import annotations

import json
import os
import signal
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Self

import machine

from ovsvhost.testing.errors import RigError
from ovsvhost.testing.guest import Guest, Nic
from ovsvhost.testing.image import guest_image
from ovsvhost.testing.qemu import find_qemu
from ovsvhost.testing.traffic import address, bring_up, ping
from ovsvhost.testing.wait import wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rounds import Window
    from switches import Switch

_QEMU = "10.0"
"""The release with message signalled interrupts under emulation."""
_REACHABLE_TIMEOUT_S = 60
_OMITTED_S = 1
"""Of each transfer, seconds at its beginning that do not count: TCP finds its window."""


class KernelGuests:
    """Two guests behind the first two ports of a switch.

    Args:
        switch: has its ports already, and runs.
        cpu: the core of both guests once they are booted.
    """

    def __init__(self, switch: Switch, cpu: int) -> None:
        self._switch = switch
        self._cpu = cpu
        image, qemu = guest_image(), find_qemu(_QEMU)
        self._guests = [
            Guest(
                image,
                qemu,
                [Nic(socket=str(socket), type="dpdkvhostuserclient", mac=f"52:54:00:00:00:{number:02x}")],
                name=f"guest{number}",
                folder=switch.folder,
            )
            for number, socket in enumerate(switch.sockets, start=1)
        ]

    def __enter__(self) -> Self:
        """Boots both; returns when they reach each other and the receiver listens, and stops them."""
        try:
            self._boot()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """Ends both."""
        for guest in self._guests:
            guest.stop()

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Lets them run for a while."""
        self._signal(signal.SIGCONT)
        try:
            yield
        finally:
            self._signal(signal.SIGSTOP)

    def tcp(self, duration_s: float) -> Window:
        """One transfer from the first guest to the second; the switch and the guests have their turn."""
        sender, _ = self._guests
        target = address(2).ipv4
        command = f"iperf3 -c {target} -t {max(1, round(duration_s))} -O {_OMITTED_S} -J"
        job = sender.spawn(command)
        time.sleep(_OMITTED_S)
        self._switch.begin()
        time.sleep(duration_s)
        work, clock = self._switch.end()
        found = json.loads(job.wait())
        try:
            rate = float(found["end"]["sum_received"]["bits_per_second"])
        except KeyError:
            raise RigError(f"iperf3 between the guests gave no rate: {found.get('error', found)}") from None
        return {
            "bits_per_s": rate,
            "busy_share": work.busy_share,
            "cycles_per_packet": work.cycles_per_packet,
            "wait_share": clock.wait_share,
        }

    def _boot(self) -> None:
        for socket in self._switch.sockets:
            socket.unlink(missing_ok=True)
        for guest in self._guests:
            guest.start()
        for number, guest in enumerate(self._guests, start=1):
            bring_up(guest, number)
        sender, receiver = self._guests
        wait_for(
            lambda: ping(sender, address(2).ipv4, count=1).received,
            timeout_s=_REACHABLE_TIMEOUT_S,
            what="the second guest to answer a ping",
        )
        receiver.run("iperf3 -s -D")
        for guest in self._guests:
            for thread in machine.threads(guest.pid):
                # A thread may end while it is looked at.
                with suppress(ProcessLookupError):
                    os.sched_setaffinity(thread, {self._cpu})
        self._signal(signal.SIGSTOP)

    def _signal(self, number: int) -> None:
        for guest in self._guests:
            # One that ended is found out by whoever asks it next.
            with suppress(ProcessLookupError, RigError):
                os.kill(guest.pid, number)
