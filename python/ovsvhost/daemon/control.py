"""One switch under one database: rows in, datapath changed, state back into the rows.

::

    rows ──▶ configure ─▶ plan(desired, observed) ─▶ apply ─▶ datapath
      ▲  links ─▲                                               │ events, states
      └───────────── write-back (only what changed) ◀───────────┘

Every pass answers ``next_cfg`` with ``cur_cfg``, also when ports failed: ``ovs-vsctl`` waits for it. Runs in one thread
and waits for nothing but the end of a deleted port.
"""

from __future__ import annotations

import logging
import time
import uuid
from typing import TYPE_CHECKING

from ovsvhost import apply, events, observed, vhost_features
from ovsvhost.daemon import rows, writeback
from ovsvhost.daemon.answers import Answers
from ovsvhost.daemon.configure import Configuration, configure
from ovsvhost.daemon.settings import stats_interval_ms
from ovsvhost.model import NIC_TYPES, PORT_TYPES, Desired, NicPort
from ovsvhost.nic.device import Facts, facts
from ovsvhost.nic.links import LinkWatch
from ovsvhost.other_config import READ_AT_START
from ovsvhost.plan import plan
from ovsvhost.pmd_settings import LIVE

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from collections.abc import Set as AbstractSet
    from pathlib import Path

    from ovsvhost._core import Datapath, PortState
    from ovsvhost.daemon.settings import Startup
    from ovsvhost.poll import Poller
    from ovsvhost.store.idl import Operation, Replica

RETRY_S = 1.0
"""How soon what the datapath refused is tried again; the cause may lie outside (a directory, a right, a socket)."""

_log = logging.getLogger("ovsvhost.daemon")


class Control:
    """The control side of one datapath.

    Args:
        datapath: the switch; `stop` closes it.
        replica: the database's rows.
        at_start: the options that the datapath was started with.
        rundir: where server ports' sockets lie.
        version: what ``ovs_version`` shows.
    """

    def __init__(self, datapath: Datapath, replica: Replica, at_start: Startup, rundir: Path, version: str) -> None:
        self.datapath = datapath
        self.at_start = at_start
        self.configuration = Configuration(Desired(), (), ())
        self._replica = replica
        self._rundir = rundir
        self._version = version
        self._reader = rows.Reader()
        self._ledger = observed.Ledger()
        self.answers = Answers(datapath, self._ledger, self._macs)
        self._written = writeback.Written()
        self._held: dict[str, int] = {}
        self._failures: dict[str, str] = {}
        self._said: dict[str, str] = {}
        self._refused: Mapping[str, str] = {}
        self._root: rows.RootRow | None = None
        self._answered: tuple[str, int] | None = None
        self._seen = (-1, -1)
        self._links = LinkWatch()
        self._facts: dict[str, Facts] = {}
        replica.on_change = self._reader.forget
        now = time.monotonic()
        self._retry_at = now
        self._stats_at = now

    def run(self) -> None:
        """One turn: what changed in the database, what happened in the datapath, what is due."""
        connection = self._replica.connection
        if connection != self._seen[0]:
            self._reader.forget_all()
            self._written.forget()
            self._answered = None
        online = self._replica.connected and self._replica.has_lock
        changed = self._links.run()
        answer: list[Operation] = []
        if online:
            seen = (connection, self._replica.change_seqno)
            if seen != self._seen:
                self._seen = seen
                answer = self._follow()
        if changed or (self._failures and time.monotonic() >= self._retry_at):
            self._build()
            self._refresh(changed)
        events.log(apply.take_events(self.datapath))
        if online:
            states = observed.port_states(self.datapath)
            statistics = self._statistics(states) if time.monotonic() >= self._stats_at else []
            self._send([*self._states(states), *answer, *statistics])

    def wait(self, poller: Poller) -> None:
        """Wakes ``poller`` when `run` has something to do."""
        poller.fd_wait(self.datapath.event_fd(), 1)
        self._links.wait(poller)
        now = time.monotonic()
        poller.timer_wait((self._stats_at - now) * 1000)
        if self._failures:
            poller.timer_wait((self._retry_at - now) * 1000)

    def stop(self) -> None:
        """Writes the last counters, says of every link that it is down, and closes the datapath."""
        states = observed.port_states(self.datapath)
        operations = self._statistics(states)
        for key, columns in self._columns(states).items():
            operations += self._written.update("Interface", key, writeback.stopped(columns))
        apply.close(self.datapath)
        self._links.close()
        self._send(operations)

    def _follow(self) -> list[Operation]:
        """Follows the rows; returns what answers them: who we are, and ``cur_cfg``."""
        root = self._reader.read(self._replica.tables)
        if root is None:
            # as ovs-vsctl does it: whoever comes first makes the row; the wait keeps it the only one
            empty = {"op": "wait", "table": "Open_vSwitch", "timeout": 0, "where": [], "columns": ["next_cfg"]}
            return [empty | {"until": "==", "rows": []}, {"op": "insert", "table": "Open_vSwitch", "row": {}}]
        if root != self._root:
            self._root = root
            self._build()
            for key in self.configuration.pending:
                self._say(key, f"other_config:{key} was changed and waits for a restart of the switch")
            for key in set(READ_AT_START).difference(self.configuration.pending):
                self._said.pop(key, None)
        operations = self._identity(root)
        if self._answered != (root.uuid, root.next_cfg):
            self._answered = (root.uuid, root.next_cfg)
            operations += self._written.update("Open_vSwitch", root.uuid, {"cur_cfg": root.next_cfg})
        return operations

    def _build(self) -> None:
        """From the rows to the datapath; what it refuses is kept for the rows' ``error`` and tried again."""
        if self._root is None:
            return
        interfaces = [
            interface for bridge in self._root.bridges for port in bridge.ports for interface in port.interfaces
        ]
        held = {row.uuid: self._held.get(row.uuid, row.ofport or -1) for row in interfaces}
        self.configuration = configure(
            self._root,
            self.at_start,
            self._rundir,
            held,
            before=self._ledger.pmds,
            limit_before=self._ledger.feature_limit,
        )
        self._held = {verdict.uuid: verdict.ofport for verdict in self.configuration.verdicts if verdict.ofport > 0}
        actions = plan(self.configuration.desired, observed.read(self.datapath, self._ledger, self._links.links))
        failures = apply.apply(self.datapath, self._ledger, actions)
        self._failures = {failure.key: str(failure.error) for failure in failures}
        used = {verdict.device for verdict in self.configuration.verdicts if verdict.device}
        self._facts = {device: facts(device) for device in used}
        self._retry_at = time.monotonic() + RETRY_S
        self._stats_at = time.monotonic()  # new ports show counters at once, and a new interval counts from now
        bonds = [bond.key for bridge in self.configuration.desired.bridges for bond in bridge.bonds]
        self._written.keep_only([self._root.uuid, *held, *bonds])
        for verdict in self.configuration.verdicts:
            sentences = [*verdict.errors, *filter(None, [self._failures.get(verdict.uuid)])]
            self._say(verdict.uuid, "; ".join(sentences), port=verdict.name)
        for bridge in self.configuration.desired.bridges:
            self._say(bridge.key, self._failures.get(bridge.key, ""), bridge=bridge.name)
            for bond in bridge.bonds:
                self._say(bond.key, self._failures.get(bond.key, ""), bridge=bridge.name)
        refused, self._refused = self._refused, self.configuration.refused
        for option in sorted({*LIVE, vhost_features.KEY, *refused, *self._refused}):
            problems = (self._refused.get(option), self._failures.get(option))
            self._say(option, "; ".join(filter(None, problems)))

    def _refresh(self, changed: AbstractSet[str]) -> None:
        """Tells NIC ports whose devices changed."""
        for bridge in self.configuration.desired.bridges:
            for port in bridge.ports:
                if isinstance(port, NicPort) and port.device in changed and port.name in self._ledger.ports:
                    apply.refresh_nic(self.datapath, port.name)

    def _say(self, about: str, sentence: str, **extra: str) -> None:
        """Logs a row's trouble once, and once more when it is over."""
        before = self._said.get(about, "")
        if sentence == before:
            return
        if sentence:
            self._said[about] = sentence
            _log.warning("%s", sentence, extra=extra)
        else:
            del self._said[about]
            _log.info("no longer: %s", before, extra=extra)

    def _states(self, states: Mapping[str, PortState]) -> list[Operation]:
        operations: list[Operation] = []
        for key, columns in self._columns(states).items():
            operations += self._written.update("Interface", key, columns)
        macs = self._macs()
        for bond in observed.bonds(self.datapath):
            _, known = self._ledger.bonds[bond.name]
            operations += self._written.update("Port", known.key, writeback.bond(bond, macs))
        return operations

    def _macs(self) -> dict[str, str]:
        """The addresses of network devices by the names of their ports."""
        links = {verdict.name: self._links.links.get(verdict.device or "") for verdict in self.configuration.verdicts}
        return {name: link.mac for name, link in links.items() if link is not None and link.mac}

    def _statistics(self, states: Mapping[str, PortState]) -> list[Operation]:
        """The counters that moved; sets the time of the next turn."""
        interval_ms = stats_interval_ms(self._root.other_config if self._root else {})
        self._stats_at = time.monotonic() + interval_ms / 1000
        operations: list[Operation] = []
        for verdict in self.configuration.verdicts:
            state = states.get(verdict.name) if verdict.kind == "active" else None
            if state is not None:
                columns = {"statistics": writeback.number_map(state.statistics)}
                operations += self._written.update("Interface", verdict.uuid, columns)
        return operations

    def _columns(self, states: Mapping[str, PortState]) -> dict[str, writeback.Columns]:
        keys = {bridge.name: bridge.key for bridge in self.configuration.desired.bridges}
        lacp = {link.name: link.lacp for bond in observed.bonds(self.datapath) for link in bond.links}
        pending = self.configuration.pending
        columns = {}
        for verdict in self.configuration.verdicts:
            failure = self._failures.get(keys.get(verdict.bridge, "") if verdict.kind == "local" else verdict.uuid)
            state = states.get(verdict.name) if verdict.kind == "active" else None
            link = self._links.links.get(verdict.device or "")
            device = (link, self._facts.get(link.name, Facts())) if link else None
            columns[verdict.uuid] = writeback.interface(
                verdict, state, failure, pending, device, lacp=lacp.get(verdict.name)
            )
        return columns

    def _identity(self, root: rows.RootRow) -> list[Operation]:
        """Who serves this database: written when it differs; ``system-id`` and ``system_type`` only when empty."""
        row = self._replica.tables["Open_vSwitch"].rows[uuid.UUID(root.uuid)]
        columns: writeback.Columns = {
            "ovs_version": self._version,
            "db_version": self._replica.schema_version,
            "iface_types": writeback.string_set([*PORT_TYPES, *NIC_TYPES, "internal"]),
            "datapath_types": writeback.string_set(["netdev"]),
        }
        if not row.system_type:
            columns["system_type"] = "ovsvhost"
        if not row.system_version:
            columns["system_version"] = self._version
        operations = self._written.update("Open_vSwitch", root.uuid, columns)
        if "system-id" not in row.external_ids:
            where = [["_uuid", "==", ["uuid", root.uuid]]]
            added = ["external_ids", "insert", writeback.string_map({"system-id": str(uuid.uuid4())})]
            operations.append({"op": "mutate", "table": "Open_vSwitch", "where": where, "mutations": [added]})
        return operations

    def _send(self, operations: Sequence[Operation]) -> None:
        """Sends one transaction; if it is refused, every operation once more for itself.

        So one bad row holds up no other, and ``cur_cfg`` arrives.
        """
        if not operations or not self._replica.has_lock:
            return

        def again(errors: list[str]) -> None:
            if operations[0]["op"] == "wait":
                return  # somebody else was first, and their row comes with the next pass
            if errors and len(operations) > 1:
                for operation in operations:
                    self._send([operation])
            for error in errors if len(operations) == 1 else ():
                _log.error("the database refused a write to %s: %s", operations[0]["table"], error)

        self._replica.write(operations, again)
