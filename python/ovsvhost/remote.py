"""A switch that runs elsewhere, behind its database: what stands behind `ovsvhost.connect`.

Changes are written as ``ovs-vsctl`` writes them: one transaction that also counts ``next_cfg`` up, and a wait until the
switch has answered with ``cur_cfg``. A port that the switch refuses is taken out again and the reason of its row
raised, so that a refusal changes nothing, as in process. What the database does not hold (learned addresses) is asked
over the switch's control socket.

The replica is brought up to date at every question; there is no thread.
"""

from __future__ import annotations

import os
import re
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ovsvhost import options as port_options
from ovsvhost import pmd_settings
from ovsvhost.appctl.client import control_socket, transact
from ovsvhost.backend import no_port
from ovsvhost.errors import ConfigError, PeerError
from ovsvhost.model import (
    AGING_S_RANGE,
    FDB_SIZE_RANGE,
    MTU_DEFAULT,
    NIC_TYPES,
    OFPORT_LOCAL,
    OFPORT_MAX,
    PORT_TYPES,
)
from ovsvhost.nic import settings as nic_settings
from ovsvhost.nic.port import TYPE_OF
from ovsvhost.other_config import interface_settings
from ovsvhost.poll import Poller
from ovsvhost.rundir import DATABASE_SOCKET, PIDFILE, database_remote, run_directory
from ovsvhost.store import idl, operations

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from ovsvhost.model import NicType, PortType
    from ovsvhost.store.idl import Operation

_COLUMNS = {
    "Open_vSwitch": ("bridges", "next_cfg", "cur_cfg", "other_config"),
    "Bridge": ("name", "ports"),
    "Port": ("name", "interfaces"),
    "Interface": (
        "name", "type", "ofport", "error", "link_state", "link_resets", "mtu", "status", "statistics",
    ),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class RemotePort:
    """A port's row, read at one moment; see `ovsvhost.backend.PortView`."""

    name: str
    bridge: str
    ofport: int
    link_up: bool
    link_resets: int
    mtu: int
    error: str | None
    status: dict[str, str]
    statistics: dict[str, int]


@dataclass(frozen=True, slots=True)
class RemoteFdbEntry:
    """One line of ``fdb/show``; see `ovsvhost.backend.FdbView`."""

    ofport: int
    vlan: int
    mac: str
    age_s: int


class OverDatabase:
    """A connection to a running switch.

    Args:
        db: its database's remote; None is the one in the run directory.
        rundir: its run directory, for its control socket.
        timeout_s: how long the database and the switch may take to answer.

    Raises:
        ConfigError: the database does not answer, or is none of a switch's.
        PeerError: it has stopped to answer.
    """

    def __init__(self, db: str | None, rundir: str | os.PathLike[str] | None, timeout_s: float) -> None:
        idl.prepare()
        self._rundir = run_directory(rundir)
        self._remote = db or database_remote(self._rundir)
        self._timeout_s = timeout_s
        self._lock = threading.RLock()
        self._pid = os.getpid()
        self._poller = Poller()
        self._replica: idl.Replica | None = idl.Replica(
            self._remote, idl.fetch_schema(self._remote, timeout_s), _COLUMNS
        )
        self._until(lambda replica: replica.connected, f"database {self._remote} does not answer: start its server")

    @property
    def closed(self) -> bool:
        """Whether it was closed, or belongs to the process that this one was forked from."""
        return self._replica is None or os.getpid() != self._pid

    def close(self) -> None:
        """Hangs up; the switch goes on. May be called again."""
        with self._lock:
            replica, self._replica = self._replica, None
            if replica is not None and os.getpid() == self._pid:
                replica.close()

    def bridges(self) -> Sequence[str]:
        """Names, sorted."""
        return sorted(bridge.name for bridge in self._root().bridges)

    def add_bridge(self, name: str, mac_aging_time_s: int, mac_table_size: int, forward_bpdu: bool) -> None:
        """ConfigError: the name is taken or a value is out of range."""
        port_options.within("mac_aging_time_s", mac_aging_time_s, *AGING_S_RANGE)
        port_options.within("mac_table_size", mac_table_size, *FDB_SIZE_RANGE)
        with self._lock:
            if name in self.bridges():
                raise ConfigError(f"bridge {name!r} is already there: choose another")
            other_config = [
                ["mac-aging-time", str(mac_aging_time_s)],
                ["mac-table-size", str(mac_table_size)],
                ["forward-bpdu", "true" if forward_bpdu else "false"],
            ]
            bridge = {
                "name": name,
                "datapath_type": "netdev",
                "other_config": ["map", other_config],
                "ports": ["named-uuid", "port"],
            }
            self._commit(
                [
                    operations.insert("Interface", "interface", {"name": name, "type": "internal"}),
                    operations.insert("Port", "port", {"name": name, "interfaces": ["named-uuid", "interface"]}),
                    operations.insert("Bridge", "bridge", bridge),
                    operations.change("Open_vSwitch", self._root(), "bridges", "insert", ["named-uuid", "bridge"]),
                ]
            )

    def del_bridge(self, name: str) -> None:
        """ConfigError if there is none of that name."""
        with self._lock:
            bridge = ["uuid", str(self._bridge(name).uuid)]
            self._commit([operations.change("Open_vSwitch", self._root(), "bridges", "delete", bridge)])

    def fdb(self, bridge: str) -> Sequence[RemoteFdbEntry]:
        """The addresses a bridge has learned, asked over the control socket."""
        lines = self._ask("fdb/show", bridge).splitlines()[1:]
        words = (line.split() for line in lines)
        return [
            RemoteFdbEntry(OFPORT_LOCAL if port == "LOCAL" else int(port), int(vlan), mac, int(age))
            for port, vlan, mac, age in words
        ]

    def flush_fdb(self, bridge: str) -> None:
        """Forgets them."""
        self._ask("fdb/flush", bridge)

    def ports(self, bridge: str) -> Sequence[str]:
        """Names, sorted, without the bridge's own; of a bond those of its links, as in the datapath."""
        ports = (port for port in self._bridge(bridge).ports if port.name != bridge)
        return sorted(interface.name for port in ports for interface in port.interfaces)

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
        """ConfigError: what can be judged here, and what the switch refused, in its words."""
        self._judge(name, type, options, ofport, mtu)
        interface_settings("device" if type in NIC_TYPES else "guest", name, other_config).checked()
        with self._lock:
            on = self._bridge(bridge)
            if name in self._names():
                raise ConfigError(f"port {name!r} is already there: choose another")
            row: dict[str, Any] = {"name": name, "type": type, "options": ["map", sorted(map(list, options.items()))]}
            if other_config:
                row["other_config"] = ["map", sorted(map(list, other_config.items()))]
            if ofport is not None:
                row["ofport_request"] = ofport
            if mtu is not None:
                row["mtu_request"] = mtu
            self._commit(
                [
                    operations.insert("Interface", "interface", row),
                    operations.insert("Port", "port", {"name": name, "interfaces": ["named-uuid", "interface"]}),
                    operations.change("Bridge", on, "ports", "insert", ["named-uuid", "port"]),
                ]
            )
            _, interface = self._interface(name)
            if _only(interface.ofport) == -1:
                refusal = _only(interface.error) or f"port {name!r} was refused; the switch's log says why"
                self.del_port(bridge, name)
                raise ConfigError(refusal)

    def del_port(self, bridge: str, name: str) -> None:
        """ConfigError if there is none of that name on the bridge, or it is a link of a bond."""
        with self._lock:
            on = self._bridge(bridge)
            there = self.ports(bridge)
            if name not in there:
                raise no_port(name, bridge, there)
            (port,) = (port for port in on.ports if any(link.name == name for link in port.interfaces))
            if len(port.interfaces) > 1:
                raise ConfigError(f"port {name!r} is a link of bond {port.name!r}: ovs-vsctl del-port {port.name}")
            self._commit([operations.change("Bridge", on, "ports", "delete", ["uuid", str(port.uuid)])])

    def set_mtu(self, name: str, mtu: int) -> None:
        """Changes it live; ConfigError out of range."""
        port_options.check_mtu(name, mtu)
        with self._lock:
            _, row = self._interface(name)
            where = [["_uuid", "==", ["uuid", str(row.uuid)]]]
            self._commit([{"op": "update", "table": "Interface", "where": where, "row": {"mtu_request": mtu}}])

    def set_rxq_affinity(self, name: str, affinity: str) -> None:
        """Pins queues live; ConfigError if that is no list of pairs."""
        pmd_settings.rxq_affinity(affinity)
        with self._lock:
            _, row = self._interface(name)
            self._commit([operations.set_keys("Interface", row, ["pmd-rxq-affinity"], {"pmd-rxq-affinity": affinity})])

    def set_pmds(self, settings: Mapping[str, str]) -> None:
        """Changes the poll threads live; ConfigError: what can be judged here, and cores that the switch refused."""
        wanted = pmd_settings.checked(settings)
        with self._lock:
            before = dict(self._root().other_config)
            self._write_pmds(settings)
            threads = self._ask("dpif-netdev/pmd-sleep-show")
            cores = {int(core) for core in re.findall(r"core_id (\d+):", threads)}
            if wanted.cpus and cores != wanted.cpus:
                self._write_pmds({key: before[key] for key in before if key.startswith(pmd_settings.PREFIX)})
                mask = settings["pmd-cpu-mask"]
                raise ConfigError(f"pmd-cpu-mask={mask} holds a core that the switch may not use; its log says which")

    def rebalance(self) -> None:
        """Shares the queues out anew, asked over the control socket; it is done when this returns."""
        self._ask("dpif-netdev/pmd-rxq-rebalance")

    def _write_pmds(self, settings: Mapping[str, str]) -> None:
        root = self._root()
        old = {key for key in root.other_config if key.startswith(pmd_settings.PREFIX)}
        self._commit([operations.set_keys("Open_vSwitch", root, sorted(old | set(settings)), settings)])

    def port(self, name: str) -> RemotePort:
        """A port's row as it is now; ConfigError if there is none of that name."""
        with self._lock:
            bridge, row = self._interface(name)
            return RemotePort(
                name=name,
                bridge=bridge,
                ofport=_only(row.ofport) or -1,
                link_up=_only(row.link_state) == "up",
                link_resets=_only(row.link_resets) or 0,
                mtu=_only(row.mtu) or MTU_DEFAULT,
                error=_only(row.error),
                status=row.status,
                statistics=row.statistics,
            )

    def wait_change(self, timeout_ms: float) -> None:
        """Waits until the database changed."""
        with self._lock:
            replica = self._pump()
            replica.wait(self._poller)
            self._poller.timer_wait(timeout_ms)
            self._poller.block()

    def _judge(
        self, name: str, kind: PortType | NicType, asked: Mapping[str, str], ofport: int | None, mtu: int | None
    ) -> None:
        """Refuses what the switch would only complain about, as the switch in process does."""
        if mtu is not None:
            port_options.check_mtu(name, mtu)
        if ofport is not None:
            port_options.within("ofport", ofport, 1, OFPORT_MAX)
        if kind in NIC_TYPES:
            # which device it is, the switch knows: it may run in another namespace
            complaints = nic_settings.parse(TYPE_OF[kind], "packet" if kind == "system" else "afxdp", asked).complaints
            if complaints:
                raise ConfigError("; ".join(complaints))
            return
        if kind != port_options.CLIENT and kind != port_options.SERVER:  # noqa: PLR1714 - narrows the type
            raise ConfigError(
                f"type={kind!r} is not served: give one of {', '.join(sorted((*PORT_TYPES, *NIC_TYPES)))}"
            )
        meant = port_options.parse(name, kind, asked, self._rundir)
        if meant.complaints:
            raise ConfigError("; ".join(meant.complaints))
        if meant.socket is None:
            raise ConfigError(f"port {name!r} has no path: give options={{'vhost-server-path': '/…'}}")

    def _pump(self) -> idl.Replica:
        """Takes in what the database has sent."""
        if self.closed or self._replica is None:
            raise ConfigError("the connection is closed: connect again")
        while self._replica.run():
            pass
        return self._replica

    def _until(self, done: Callable[[idl.Replica], bool], otherwise: str) -> None:
        """Waits until ``done``; PeerError with ``otherwise`` after the time-out."""
        deadline = time.monotonic() + self._timeout_s
        while not done(replica := self._pump()):
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                raise PeerError(f"{otherwise} (after {self._timeout_s:g} s)")
            replica.wait(self._poller)
            self._poller.timer_wait(left_s * 1000)
            self._poller.block()

    def _root(self) -> Any:
        with self._lock:
            for row in self._pump().tables["Open_vSwitch"].rows.values():
                return row
        raise ConfigError(f"no switch has served database {self._remote} yet: start ovsvhost daemon")

    def _bridge(self, name: str) -> Any:
        for bridge in self._root().bridges:
            if bridge.name == name:
                return bridge
        raise ConfigError(f"there is no bridge {name!r}: add it with add_bridge")

    def _interface(self, name: str) -> tuple[str, Any]:
        """The interface of that name and its bridge's name."""
        for bridge in self._root().bridges:
            for port in bridge.ports:
                for interface in port.interfaces:
                    if interface.name == name:
                        return bridge.name, interface
        raise no_port(name)

    def _names(self) -> set[str]:
        """Names that no new port can have."""
        ports = [port for bridge in self._root().bridges for port in bridge.ports]
        return {row.name for port in ports for row in (port, *port.interfaces)}

    def _commit(self, changes: Sequence[Operation]) -> None:
        """Writes one transaction and waits until the switch has followed."""
        root = self._root()
        where = [["_uuid", "==", ["uuid", str(root.uuid)]]]
        count = {"op": "mutate", "table": "Open_vSwitch", "where": where, "mutations": [["next_cfg", "+=", 1]]}
        replies: list[list[str]] = []
        if not self._pump().write([*changes, count], replies.append):
            raise PeerError(f"database {self._remote} has hung up: connect again")
        self._until(lambda _replica: bool(replies), f"database {self._remote} does not answer")
        if replies[0]:
            raise ConfigError(f"database {self._remote} refused the change: {'; '.join(replies[0])}")
        # the update with our count comes before the reply
        target = root.next_cfg
        self._until(lambda _replica: root.cur_cfg >= target, "the switch does not follow its database: is it running?")

    def _ask(self, command: str, *arguments: str) -> str:
        path = self._control_socket()
        try:
            fine, answer = transact(path, command, arguments, timeout_s=self._timeout_s)
        except TimeoutError:
            raise PeerError(
                f"the switch does not answer on {str(path)!r} (after {self._timeout_s:g} s): look into its log"
            ) from None
        if not fine:
            raise ConfigError(answer.strip())
        return answer

    def _control_socket(self) -> Path:
        beside = self._remote.removeprefix("unix:").removesuffix(f"/{DATABASE_SOCKET}")
        rundir = self._rundir
        if self._remote == f"unix:{beside}/{DATABASE_SOCKET}":
            rundir = run_directory(beside)
        return control_socket(PIDFILE.removesuffix(".pid"), rundir)


def _only(values: Sequence[Any]) -> Any:
    return values[0] if values else None
