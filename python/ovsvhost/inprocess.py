"""The datapath in this process, under a configuration held in memory: what stands behind `ovsvhost.Switch`.

The daemon's path without a database: each change makes a new `Desired`, which is planned and applied; if any of it is
refused the old one is restored and the refusal raised. Calls may come from any thread.

After a fork the child's is closed: the poll threads are the parent's, and so are the guests.
"""

from __future__ import annotations

import os
import select
import threading
import uuid
import weakref
from dataclasses import replace
from typing import TYPE_CHECKING

from ovsvhost import apply, events, observed, pmd_settings
from ovsvhost import options as port_options
from ovsvhost.backend import no_port
from ovsvhost.errors import ConfigError, OvsvhostError
from ovsvhost.model import (
    AGING_S_RANGE,
    FDB_SIZE_RANGE,
    MTU_DEFAULT,
    NIC_TYPES,
    OFPORT_MAX,
    PORT_TYPES,
    Bridge,
    Desired,
    NicPort,
    PollThreads,
    free_ofport,
)
from ovsvhost.nic.links import LinkWatch
from ovsvhost.nic.port import TYPE_OF, Asked, interpret
from ovsvhost.other_config import interface_settings
from ovsvhost.plan import plan
from ovsvhost.rundir import make_private, run_directory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    from ovsvhost._core import Datapath, FdbEntry, PmdState, PortState
    from ovsvhost.model import AnyPort, NicType, PortType

_LOOK_AGAIN_MS = 50
"""Another thread may take the event that this one waits for; it looks again after this time."""

_open: weakref.WeakSet[InProcess] = weakref.WeakSet()


class InProcess:
    """A running datapath and its configuration.

    Args:
        rundir: where sockets of ``dpdkvhostuser`` ports lie; None as for the daemon.
        pmd_cpus: cores of the poll threads.
        max_sleep_us: longest sleep of an idle poll thread.

    Raises:
        ConfigError: a core that this process may not use.
        KernelError: no thread or descriptor to be had.
    """

    def __init__(
        self, rundir: str | os.PathLike[str] | None, pmd_cpus: Iterable[int], max_sleep_us: int | None
    ) -> None:
        self._rundir = rundir
        self._lock = threading.RLock()
        self._desired = Desired()
        self._ledger = observed.Ledger()
        self._links: LinkWatch | None = None  # from the first NIC port on
        self._datapath: Datapath | None = apply.open_datapath()
        try:
            self._set_pmds(PollThreads(cpus=frozenset(pmd_cpus), max_sleep_us=max_sleep_us))
        except OvsvhostError:
            apply.close(self._datapath)
            raise
        _open.add(self)

    @property
    def closed(self) -> bool:
        """Whether it was closed here, or is the parent's."""
        return self._datapath is None

    def close(self) -> None:
        """Drains the rings, ends every session and stops the threads. May be called again."""
        with self._lock:
            datapath, self._datapath = self._datapath, None
            links, self._links = self._links, None
            self._desired, self._ledger = Desired(), observed.Ledger()
        if links is not None:
            links.close()
        _open.discard(self)
        if datapath is not None:
            apply.close(datapath)

    def bridges(self) -> Sequence[str]:
        """Names, in the order in which they were added."""
        return [bridge.name for bridge in self._desired.bridges]

    def add_bridge(self, name: str, mac_aging_time_s: int, mac_table_size: int, forward_bpdu: bool) -> None:
        """ConfigError: the name is taken or a value is out of range."""
        port_options.within("mac_aging_time_s", mac_aging_time_s, *AGING_S_RANGE)
        port_options.within("mac_table_size", mac_table_size, *FDB_SIZE_RANGE)
        bridge = Bridge(
            key=str(uuid.uuid4()),
            name=name,
            mac_aging_time_s=mac_aging_time_s,
            mac_table_size=mac_table_size,
            forward_bpdu=forward_bpdu,
        )
        self._change(lambda bridges: (*bridges, bridge))

    def del_bridge(self, name: str) -> None:
        """ConfigError if there is none of that name."""
        with self._lock:
            self._bridge(name)
            self._change(lambda bridges: tuple(bridge for bridge in bridges if bridge.name != name))

    def fdb(self, bridge: str) -> Sequence[FdbEntry]:
        """The addresses a bridge has learned."""
        return observed.fdb(self._running(), self._bridge(bridge).name)

    def flush_fdb(self, bridge: str) -> None:
        """Forgets them."""
        apply.flush_fdb(self._running(), self._bridge(bridge).name)

    def ports(self, bridge: str) -> Sequence[str]:
        """Names, in the order in which they were added."""
        return [port.name for port in self._bridge(bridge).ports]

    def add_port(
        self,
        bridge: str,
        name: str,
        *,
        type: PortType | NicType,  # noqa: A002 - the column's name
        options: Mapping[str, str],
        ofport: int | None,
        mtu: int | None,
        other_config: Mapping[str, str],
    ) -> None:
        """ConfigError: an option, key, name, number or path that cannot be. KernelError: no socket to be had."""
        with self._lock:
            taken = [there.ofport for there in self._bridge(bridge).ports]
            number = free_ofport(taken) if ofport is None else ofport
            port_options.within("ofport", number, 1, OFPORT_MAX)
            port = self._port(name, type, options, ofport=number, mtu=mtu, other_config=other_config)
            self._change_ports(bridge, lambda ports: (*ports, port))

    def del_port(self, bridge: str, name: str) -> None:
        """ConfigError if there is none of that name on the bridge."""
        with self._lock:
            if name not in (there := self.ports(bridge)):
                raise no_port(name, bridge, there)
            self._change_ports(bridge, lambda ports: tuple(port for port in ports if port.name != name))

    def set_mtu(self, name: str, mtu: int) -> None:
        """Changes it live; ConfigError out of range."""
        port_options.check_mtu(name, mtu)
        self._change_ports(
            self.port(name).bridge,
            lambda ports: tuple(replace(port, mtu=mtu) if port.name == name else port for port in ports),
        )

    def port(self, name: str) -> PortState:
        """A port's live state; ConfigError if there is none of that name."""
        datapath = self._running()
        if not any(port.name == name for bridge in self._desired.bridges for port in bridge.ports):
            raise no_port(name)
        return observed.port_state(datapath, name)

    def wait_change(self, timeout_ms: float) -> None:
        """Waits until something may have changed, and logs what happened."""
        poll = select.poll()
        poll.register(self._running().event_fd(), select.POLLIN)
        if self._links is not None:
            poll.register(self._links, select.POLLIN)
        poll.poll(min(max(timeout_ms, 0), _LOOK_AGAIN_MS))
        with self._lock:
            self._refresh_nics()
        events.log(apply.take_events(self._running()))

    def pmds(self) -> Sequence[PmdState]:
        """The poll threads."""
        return observed.pmds(self._running())

    def set_pmds(self, settings: Mapping[str, str]) -> None:
        """Changes the poll threads live; ConfigError for a core that this process may not use: nothing changed then."""
        self._set_pmds(pmd_settings.checked(settings))

    def set_rxq_affinity(self, name: str, affinity: str) -> None:
        """Pins queues live; ConfigError if that is no list of pairs."""
        cpus = pmd_settings.rxq_affinity(affinity)
        self._change_ports(
            self.port(name).bridge,
            lambda ports: tuple(replace(port, rxq_affinity=cpus) if port.name == name else port for port in ports),
        )

    def rebalance(self) -> None:
        """Shares the queues out anew; it is done when this returns."""
        apply.rebalance(self._running())

    def clear_pmd_stats(self) -> None:
        """Starts their counters at zero."""
        apply.clear_pmd_stats(self._running())

    def _set_pmds(self, pmds: PollThreads) -> None:
        self._become(lambda desired: replace(desired, pmds=pmds))

    def _running(self) -> Datapath:
        datapath = self._datapath
        if datapath is None:
            raise ConfigError("the switch is closed: make another Switch")
        return datapath

    def _bridge(self, name: str) -> Bridge:
        for bridge in self._desired.bridges:
            if bridge.name == name:
                return bridge
        self._running()
        raise ConfigError(f"there is no bridge {name!r}: add it with add_bridge")

    def _port(
        self,
        name: str,
        port_type: PortType | NicType,
        asked: Mapping[str, str],
        *,
        ofport: int,
        mtu: int | None,
        other_config: Mapping[str, str],
    ) -> AnyPort:
        if port_type in NIC_TYPES:
            nic = self._nic(name, TYPE_OF[port_type], asked, ofport, mtu)
            return replace(nic, rxq_affinity=interface_settings("device", name, other_config).checked().rxq_affinity)
        if port_type != port_options.CLIENT and port_type != port_options.SERVER:  # noqa: PLR1714 - narrows the type
            raise ConfigError(
                f"type={port_type!r} is not served: give one of {', '.join(sorted((*PORT_TYPES, *NIC_TYPES)))}"
            )
        mtu = MTU_DEFAULT if mtu is None else mtu
        port_options.check_mtu(name, mtu)
        settings = interface_settings("guest", name, other_config).checked()
        directory = self._socket_dir() if port_type == port_options.SERVER else None
        meant = port_options.parse(name, port_type, asked, directory)
        if meant.complaints:
            raise ConfigError("; ".join(meant.complaints))
        key = str(uuid.uuid4())
        port = meant.port(
            key=key, name=name, port_type=port_type, ofport=ofport, mtu=mtu, steering=settings.tx_steering
        )
        if port is None:
            raise ConfigError(f"port {name!r} has no path: give options={{'vhost-server-path': '/…'}}")
        return replace(port, rxq_affinity=settings.rxq_affinity)

    def _nic(self, name: str, kind: NicType, asked: Mapping[str, str], ofport: int, mtu: int | None) -> NicPort:
        """ConfigError unless every option can be as asked; the device itself may come later."""
        if mtu is not None:
            port_options.check_mtu(name, mtu)
        wish = Asked(key=str(uuid.uuid4()), name=name, type=kind, options=asked, ofport=ofport, mtu_request=mtu)
        port, complaints = interpret(wish)
        self._links = self._links or LinkWatch()
        if complaints:
            raise ConfigError("; ".join(complaints))
        return port

    def _socket_dir(self) -> Path:
        return make_private(run_directory(self._rundir))

    def _change(self, change: Callable[[tuple[Bridge, ...]], tuple[Bridge, ...]]) -> None:
        self._become(lambda desired: replace(desired, bridges=change(desired.bridges)))

    def _become(self, change: Callable[[Desired], Desired]) -> None:
        with self._lock:
            datapath = self._running()
            before, wanted = self._desired, change(self._desired)
            failures = apply.apply(datapath, self._ledger, plan(wanted, self._observed(datapath)))
            if not failures:
                self._desired = wanted
                return
            apply.apply(datapath, self._ledger, plan(before, self._observed(datapath)))
            raise failures[0].error

    def _observed(self, datapath: Datapath) -> observed.Observed:
        self._refresh_nics()
        links = self._links.links if self._links is not None else {}
        return observed.read(datapath, self._ledger, links)

    def _refresh_nics(self) -> None:
        """Tells NIC ports whose devices changed; a datapath that is not told finds out within a second."""
        changed = self._links.run() if self._links is not None else ()
        for name, port in self._ledger.ports.items():
            if isinstance(port, NicPort) and port.device in changed:
                apply.refresh_nic(self._running(), name)

    def _change_ports(self, name: str, change: Callable[[tuple[AnyPort, ...]], tuple[AnyPort, ...]]) -> None:
        self._change(
            lambda bridges: tuple(
                replace(bridge, ports=change(bridge.ports)) if bridge.name == name else bridge for bridge in bridges
            )
        )

    def leave_to_parent(self) -> None:
        """In a forked child: this object is closed, and the parent's datapath is left alone."""
        self._lock = threading.RLock()  # the thread that may have held the old one is not here
        self._links = None
        self._datapath, self._desired, self._ledger = None, Desired(), observed.Ledger()


def _after_fork() -> None:
    for switch in list(_open):
        switch.leave_to_parent()


os.register_at_fork(after_in_child=_after_fork)
