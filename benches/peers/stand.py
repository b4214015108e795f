"""The test stand: starts switches and generators when a row first needs them, and measures one contestant at a time.

Every switch is stopped (SIGSTOP) except in its turn. ``OURS_TOO``, ``OURS_TWO_PMDS``, ``OVS_TSO`` and those with
post-copy or IOMMU support are further ones for single rows; they end with the row.
"""

from __future__ import annotations

import itertools
import time
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Self

import moves
import quiet
from cases import (
    OURS_AWAKE,
    OURS_IOMMU,
    OURS_POSTCOPY,
    OURS_TOO,
    OURS_TWO_PMDS,
    OVS,
    OVS_FLOWS,
    OVS_IOMMU,
    OVS_POSTCOPY,
    OVS_TSO,
    TESTPMD,
    Load,
)
from generators import Frontend, VirtioUser
from kernel import KernelGuests
from switches import Ours, Ovs, OvsFlows, TestpmdIo

from ovsvhost.testing.errors import RigError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from cases import Case, Contestant, Row
    from generators import Counts, Generator
    from rounds import Timing, Window
    from switches import Switch

_EDGE_S = 0.1
"""Kept away from both ends of a generator's window, so that the switch's counters cover nothing else."""
_SETTLE_S = 0.15
"""After a generator ended: time for the switch to see its sockets close before it is stopped."""
_IDLE_S = 5.0
_TCP_S = 3.0
_HALF = 0.5
_PACED_PPS = 200_000


class Stand:
    """Everything that is measured, and what measures it.

    Args:
        folder: for run directories, sockets and logs; a short path.
        frontend: the built ``vhost-frontend``.
        cpu: the core of the poll threads.
        generator_cpu: the core of the generators.
        timing: how long a window is.
    """

    def __init__(self, folder: Path, frontend: Path, *, cpu: int, generator_cpu: int, timing: Timing) -> None:
        self._folder = folder
        self._cpu = cpu
        self._generator_cpu = generator_cpu
        self._timing = timing
        self._own = Frontend(generator_cpu, folder, frontend)
        self._virtio_user: dict[Load, VirtioUser] = {}
        self._switches: dict[str, Switch] = {}
        self._numbers = itertools.count()
        self._guests = ExitStack()
        self._kernels: dict[str, KernelGuests] = {}
        self._moving: dict[str, moves.MovingGuest] = {}
        self._half_pps = 0.0

    def __enter__(self) -> Self:
        """Nothing runs yet."""
        return self

    def __exit__(self, *_: object) -> None:
        """Ends everything."""
        self._guests.close()
        for name in list(self._switches):
            self._stop(name)

    @contextmanager
    def row(self, row: Row) -> Iterator[None]:
        """Around the windows of a row: what was started for it alone ends with it."""
        try:
            yield
        finally:
            self._guests.close()
            self._kernels.clear()
            self._moving.clear()
            self._half_pps = 0.0
            for name in (OURS_TOO, OURS_TWO_PMDS, OVS_TSO, OURS_POSTCOPY, OVS_POSTCOPY, OURS_IOMMU, OVS_IOMMU):
                if any(contestant.switch == name for contestant in row.contestants):
                    self._stop(name)

    def window(self, row: Row, contestant: Contestant) -> Window:
        """One contestant once.

        Raises:
            RigError: switch or generator did not do what was asked; says what and why.
        """
        try:
            return self._window(row, contestant)
        except BaseException:
            # Whatever state it is in now: the next window begins with a fresh one.
            self._stop(contestant.switch)
            raise

    def _window(self, row: Row, contestant: Contestant) -> Window:
        case = contestant.case
        switch = self._switch(contestant.switch)
        with switch.turn():
            is_new = switch.fit(case)
            others = switch.other_sockets(case)
            if is_new and others and case.others == "silent" and row.load is Load.OWN:
                self._guests.enter_context(self._own.crowd(others))
        match row.load:
            case Load.SILENT:
                return quiet.idle(switch, self._own, case, _IDLE_S)
            case Load.ROUND_TRIPS:
                warmup_s, duration_s = self._timing.warmup_s, self._timing.duration_s
                return quiet.round_trips(switch, self._own, case, warmup_s=warmup_s, duration_s=duration_s)
            case Load.HALF:
                return self._at_half_load(switch, case)
            case Load.PACED:
                return self._paced(switch, case, _PACED_PPS)
            case Load.MOVE:
                return moves.at_once(switch, self._own, switch.all_sockets(case))
            case Load.MOVE_KERNEL:
                with switch.turn():
                    return self._moving_guest(contestant.switch, switch, case).move()
            case Load.KERNEL:
                guests = self._kernel_guests(contestant.switch, switch)
                with switch.turn(), guests.turn():
                    return guests.tcp(_TCP_S)
            case _:
                return self._under_load(self._generator(row.load), switch, case)

    def _under_load(self, generator: Generator, switch: Switch, case: Case) -> Window:
        timing = self._timing
        if case.nic:
            return self._with_cable(generator, switch, case)
        runs: list[tuple[Generator, tuple[Path, ...], list[str]]] = []
        for number, core in zip(range(case.pairs), (generator.cpu, switch.cpu), strict=False):
            there, sockets = generator.on(core), switch.pair(number)
            runs.append((there, sockets, there.command(case, sockets, timing.warmup_s, timing.duration_s, pair=number)))
        window, loads = self._run(switch, case, runs)
        known = switch.known
        if case.addresses > 1 and known is not None and known < case.addresses:
            raise RigError(f"{switch.name} knows {known} addresses where {case.addresses} were announced")
        return {"pps": sum(load.pps for load in loads), **window}

    def _with_cable(self, generator: Generator, switch: Switch, case: Case) -> Window:
        """A guest and a network device."""
        if not isinstance(generator, VirtioUser) or switch.cable is None:
            raise RigError(f"{generator.name} has no way to a network device: give the row another load")
        socket, _ = switch.sockets
        command = generator.with_cable(case, socket, switch.cable, self._timing.warmup_s, self._timing.duration_s)
        opened = switch.lanes_opened() if isinstance(switch, Ours) else 0
        window, (load,) = self._run(switch, case, [(generator, (socket,), command)])
        if isinstance(switch, Ours) and bool(case.zero_copy) != (switch.lanes_opened() > opened):
            raise RigError(f"{switch.name}: dq-zero-copy={case.zero_copy} was not what its guest got")
        return {"pps": load.pps, **window}

    def _at_half_load(self, switch: Switch, case: Case) -> Window:
        """The rate is half of what testpmd takes, the same for all."""
        if not self._half_pps:
            testpmd = self._switch(TESTPMD)
            with testpmd.turn():
                testpmd.fit(case)
            self._half_pps = _HALF * self._under_load(self._own, testpmd, case)["pps"]
        return self._paced(switch, case, self._half_pps)

    def _paced(self, switch: Switch, case: Case, rate_pps: float) -> Window:
        """A rate that is the same for all, and the times that frames are on their way."""
        timing = self._timing
        command = self._own.paced(case, switch.sockets, rate_pps, timing.warmup_s, timing.duration_s)
        window, (load,) = self._run(switch, case, [(self._own, switch.sockets, command)])
        return {"arrived_pps": load.pps, **load.transit, **window}

    def _run(
        self, switch: Switch, case: Case, commands: list[tuple[Generator, tuple[Path, ...], list[str]]]
    ) -> tuple[Window, list[Counts]]:
        """Generators and switch through one window: what all such windows have, and what each generator saw."""
        timing = self._timing
        with switch.turn():
            with ExitStack() as stack:
                runs = [stack.enter_context(there.start(sockets, command)) for there, sockets, command in commands]
                if case.others == "arriving":
                    stack.enter_context(moves.arriving(self._own, switch.other_sockets(case)[0]))
                for run in runs:
                    run.wait_for_window(timing.warmup_s)
                time.sleep(_EDGE_S)
                switch.begin()
                time.sleep(timing.duration_s - 2 * _EDGE_S)
                work, clock = switch.end()
                loads = [run.result() for run in runs]
            time.sleep(_SETTLE_S)
            switch.known = switch.addresses()
        return {
            "ring_full_share": min(load.ring_full_share for load in loads),
            "lost_share": max(load.lost_share for load in loads),
            "busy_share": work.busy_share,
            "cycles_per_packet": work.cycles_per_packet,
            "wait_share": max(clock.wait_share, *(load.wait_share for load in loads)),
        }, loads

    def _kernel_guests(self, name: str, switch: Switch) -> KernelGuests:
        """The guests behind a switch, booted when they are first asked for."""
        if name not in self._kernels:
            with switch.turn():
                guests = self._guests.enter_context(KernelGuests(switch, self._generator_cpu))
            self._kernels[name] = guests
        return self._kernels[name]

    def _moving_guest(self, name: str, switch: Switch, case: Case) -> moves.MovingGuest:
        """The guest that moves between two ports of a switch, booted when it is first asked for."""
        if name not in self._moving:
            guests = moves.MovingGuest(switch, switch.all_sockets(case))
            self._moving[name] = self._guests.enter_context(guests)
        return self._moving[name]

    def _generator(self, load: Load) -> Generator:
        if load is Load.OWN:
            return self._own
        if load not in self._virtio_user:
            backoff_us = 2 if load is Load.VIRTIO_USER else 0
            self._virtio_user[load] = VirtioUser(self._generator_cpu, self._folder, backoff_us)
        return self._virtio_user[load]

    def _switch(self, name: str) -> Switch:
        if name not in self._switches:
            folder = self._folder / str(next(self._numbers))
            folder.mkdir(exist_ok=True)
            switch = self._started(name, folder)
            self._switches[name] = switch
            switch.hold()
        return self._switches[name]

    def _started(self, name: str, folder: Path) -> Switch:
        if name in {OVS, OVS_TSO, OVS_POSTCOPY, OVS_IOMMU}:
            options = {"offloads": name == OVS_TSO, "postcopy": name == OVS_POSTCOPY, "iommu": name == OVS_IOMMU}
            return Ovs(folder, self._cpu, **options)
        if name == OVS_FLOWS:
            return OvsFlows(folder, self._cpu)
        if name == TESTPMD:
            return TestpmdIo(folder, self._cpu, main_cpu=self._generator_cpu)
        more_cpus = (self._generator_cpu,) if name == OURS_TWO_PMDS else ()
        is_awake = name in {OURS_AWAKE, OURS_POSTCOPY}
        options = {"postcopy": name == OURS_POSTCOPY, "iommu": name == OURS_IOMMU}
        return Ours(folder, self._cpu, sleeps=not is_awake, more_cpus=more_cpus, **options)

    def _stop(self, name: str) -> None:
        if name in self._switches:
            self._switches.pop(name).stop()
