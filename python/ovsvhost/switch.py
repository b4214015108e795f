"""The switch as objects: `Switch`, `Bridge`, `Port`.

::

    with Switch(pmd_cpus={1}) as switch:                 the datapath in this process
        bridge = switch.add_bridge("br0")
        port = bridge.add_port("v0", options={"vhost-server-path": "/tmp/v0"})
        port.wait_link(timeout_s=5)

    with connect() as switch:                            the same objects over a running ovsvhost daemon
        print(switch.bridges)

The objects hold names and ask anew at every question; what answers is an `ovsvhost.backend.Backend`. Over a daemon
every question may raise PeerError: the database, or the switch behind it, does not answer in time.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Self

from ovsvhost.model import AGING_S_DEFAULT, FDB_SIZE_DEFAULT

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Mapping, Sequence
    from types import TracebackType

    from ovsvhost.backend import Backend, FdbView, PortView
    from ovsvhost.model import NicType, PortType


class Port:
    """A port; made by `Bridge.add_port`."""

    def __init__(self, backend: Backend, name: str) -> None:
        self.name = name
        self._backend = backend

    def __repr__(self) -> str:
        """For people."""
        return f"Port({self.name!r})"

    @property
    def state(self) -> PortView:
        """Everything about it, read at one moment. ConfigError if it was deleted."""
        return self._backend.port(self.name)

    @property
    def ofport(self) -> int:
        """Its number on the bridge."""
        return self.state.ofport

    @property
    def link_up(self) -> bool:
        """Whether a guest is there and its first queue pair runs; of a network device, whether it has a carrier."""
        return self.state.link_up

    @property
    def error(self) -> str | None:
        """Why the link is down or degraded, with the cure; None when nothing is wrong."""
        return self.state.error

    @property
    def status(self) -> dict[str, str]:
        """As the ``status`` column of ``Interface``."""
        return self.state.status

    @property
    def statistics(self) -> dict[str, int]:
        """As the ``statistics`` column of ``Interface``; rx is what came from the guest or device; cumulative."""
        return self.state.statistics

    @property
    def mtu(self) -> int:
        """Bytes of IP payload; may be set live, 68..9702."""
        return self.state.mtu

    @mtu.setter
    def mtu(self, mtu: int) -> None:
        self._backend.set_mtu(self.name, mtu)

    def set_rxq_affinity(self, affinity: str) -> None:
        """Pins the port's queues to cores, live; those not named are shared out.

        They are what poll threads receive from: a guest's transmitqs, a network device's receive queues.

        Args:
            affinity: ``queue:core`` pairs, as ``0:3,1:7`` (``pmd-rxq-affinity`` in ``ovs-vswitchd.conf.db(5)``).

        Raises:
            ConfigError: it is no list of pairs.
            PeerError: over a daemon: it, or its database, does not answer.
        """
        self._backend.set_rxq_affinity(self.name, affinity)

    def wait_link(self, *, timeout_s: float, up: bool = True) -> None:
        """Waits until the link is up (or down).

        Raises:
            TimeoutError: it is not so after ``timeout_s``; the text says what is known about why.
        """
        deadline = time.monotonic() + timeout_s
        while (state := self.state).link_up != up:
            left_ms = (deadline - time.monotonic()) * 1000
            if left_ms <= 0:
                waits = state.status.get("waiting-for")
                why = state.error or (f"waiting for {waits}" if waits else "its rings are not enabled")
                raise TimeoutError(f"port {self.name!r} is not {'up' if up else 'down'} after {timeout_s} s: {why}")
            self._backend.wait_change(left_ms)


class Bridge:
    """A learning bridge; made by `Switch.add_bridge`."""

    def __init__(self, backend: Backend, name: str) -> None:
        self.name = name
        self._backend = backend

    def __repr__(self) -> str:
        """For people."""
        return f"Bridge({self.name!r})"

    @property
    def ports(self) -> tuple[Port, ...]:
        """Its ports; the links of bonds are among them. Bonds are made and deleted by ``ovs-vsctl``."""
        return tuple(Port(self._backend, name) for name in self._backend.ports(self.name))

    def add_port(
        self,
        name: str,
        *,
        type: PortType | NicType = "dpdkvhostuserclient",  # noqa: A002 - the column's name
        options: Mapping[str, str] | None = None,
        ofport: int | None = None,
        mtu: int | None = None,
        other_config: Mapping[str, str] | None = None,
    ) -> Port:
        """Adds a port for a guest, or a network device of this machine; it comes up by itself (see `Port.wait_link`).

        Args:
            name: unique in the switch; of an ``afxdp`` or ``system`` port the device's name.
            type: who makes a guest's socket: the VMM (``dpdkvhostuserclient``) or we (``dpdkvhostuser``). Or a network
                device: ``afxdp``, ``dpdk`` with ``dpdk-devargs``, or ``system``, which is any device over AF_PACKET.
            options: as in the database's ``options`` column: ``vhost-server-path``, ``tx-retries-max``,
                ``backpressure-us``, ``dpdk-devargs``, ``n_rxq``, ``xdp-mode`` …
            ofport: 1..65279; None takes the lowest free one.
            mtu: bytes of IP payload, 68..9702; None is 1500 for a guest, and what a device has.
            other_config: as in the database's ``other_config`` column of ``Interface``: ``pmd-rxq-affinity``, and of a
                guest's port ``tx-steering``.

        Raises:
            ConfigError: an option, key, name, number or path that cannot be, or over a daemon whatever the switch
                refused; nothing changed.
            KernelError: the socket could not be created.
            PeerError: over a daemon: it, or its database, does not answer.
        """
        self._backend.add_port(
            self.name,
            name,
            type=type,
            options=dict(options or {}),
            ofport=ofport,
            mtu=mtu,
            other_config=dict(other_config or {}),
        )
        return Port(self._backend, name)

    def del_port(self, name: str) -> None:
        """Deletes a port; its guest gets every buffer back.

        Raises:
            ConfigError: there is none of that name here, or it is a link of a bond.
            PeerError: over a daemon: it, or its database, does not answer.
        """
        self._backend.del_port(self.name, name)

    def fdb(self) -> Sequence[FdbView]:
        """The addresses it has learned."""
        return self._backend.fdb(self.name)

    def flush_fdb(self) -> None:
        """Forgets every learned address."""
        self._backend.flush_fdb(self.name)


class Switch:
    """A running switch in this process; `close` it, or use it in a ``with`` statement.

    After a fork the child holds a closed switch; the parent's goes on.

    Args:
        rundir: where sockets of ``dpdkvhostuser`` ports lie; as for ``ovsvhost daemon``, and created when needed.
        pmd_cpus: cores of the poll threads, one each; empty means one on the first core allowed.
        max_sleep_us: longest sleep of an idle poll thread in µs; None is adaptive, 0 never sleeps.

    Raises:
        ConfigError: a core that this process may not use.
        KernelError: no thread or descriptor to be had.
    """

    def __init__(
        self,
        rundir: str | os.PathLike[str] | None = None,
        *,
        pmd_cpus: Iterable[int] = (),
        max_sleep_us: int | None = None,
    ) -> None:
        from ovsvhost.inprocess import InProcess  # noqa: PLC0415 - loads the Rust core

        self._backend: Backend = InProcess(rundir, pmd_cpus, max_sleep_us)

    @classmethod
    def over(cls, backend: Backend) -> Self:
        """The same objects over another backend."""
        switch = cls.__new__(cls)
        switch._backend = backend  # noqa: SLF001 - another way to make one of these
        return switch

    def __enter__(self) -> Self:
        """The switch itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Closes it."""
        self.close()

    def close(self) -> None:
        """Drains the rings, ends every session and stops the threads. May be called again."""
        self._backend.close()

    @property
    def closed(self) -> bool:
        """Whether it was closed, or is the parent's and this is a forked child."""
        return self._backend.closed

    @property
    def bridges(self) -> tuple[Bridge, ...]:
        """The bridges."""
        return tuple(Bridge(self._backend, name) for name in self._backend.bridges())

    def add_bridge(
        self,
        name: str,
        *,
        mac_aging_time_s: int = AGING_S_DEFAULT,
        mac_table_size: int = FDB_SIZE_DEFAULT,
        forward_bpdu: bool = False,
    ) -> Bridge:
        """Adds a learning bridge.

        Args:
            name: unique in the switch.
            mac_aging_time_s: 15..3600.
            mac_table_size: 10..1000000 addresses.
            forward_bpdu: forward reserved multicast too.

        Raises:
            ConfigError: the name is taken or a value is out of range.
        """
        self._backend.add_bridge(name, mac_aging_time_s, mac_table_size, forward_bpdu)
        return Bridge(self._backend, name)

    def del_bridge(self, name: str) -> None:
        """Deletes a bridge and every port on it. ConfigError if there is none of that name."""
        self._backend.del_bridge(name)

    def set_pmds(self, settings: Mapping[str, str]) -> None:
        """Sets the poll threads up anew, live: threads come and go and queues move without losing a frame.

        Args:
            settings: the ``pmd-`` keys of ``Open_vSwitch:other_config`` (``ovs-vswitchd.conf.db(5)``), as
                ``{"pmd-cpu-mask": "0x6", "pmd-rxq-assign": "group"}``; what is left out has its default.

        Raises:
            ConfigError: one of them cannot be, or a core is not the switch's to use; nothing changed.
            KernelError: no thread to be had.
            PeerError: over a daemon: it, or its database, does not answer.
        """
        self._backend.set_pmds(settings)

    def rebalance(self) -> None:
        """Shares the queues out anew among the poll threads, by the loads of the last minute."""
        self._backend.rebalance()


def connect(db: str | None = None, *, rundir: str | os.PathLike[str] | None = None, timeout_s: float = 10) -> Switch:
    """The same objects over a running ``ovsvhost daemon``; closing them leaves it running.

    Args:
        db: its database's remote, as ``unix:/run/openvswitch/db.sock``; None is the one in the run directory.
        rundir: its run directory; needed for learned addresses only where the database is elsewhere.
        timeout_s: how long the database, and the switch after a change, may take to answer.

    Raises:
        ConfigError: the database does not answer, or is none of a switch's.
        PeerError: it has stopped to answer.
    """
    from ovsvhost.remote import OverDatabase  # noqa: PLC0415 - loads the database client

    return Switch.over(OverDatabase(db, rundir, timeout_s))
