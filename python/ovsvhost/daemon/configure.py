"""From rows to what can be built: a pure function that refuses no database.

Every row of ``Interface`` gets exactly one verdict (`ovsvhost.daemon.verdict`); what two rows want of which there is
one is shared out by `ovsvhost.daemon.claims`.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from ovsvhost import options, other_config
from ovsvhost.daemon import bonds
from ovsvhost.daemon.claims import share_out
from ovsvhost.daemon.settings import Startup, not_served, pending
from ovsvhost.daemon.verdict import Verdict, Wanted, keep_out
from ovsvhost.errors import ConfigError
from ovsvhost.model import (
    AGING_S_DEFAULT,
    AGING_S_RANGE,
    BOOLEANS,
    FDB_SIZE_DEFAULT,
    FDB_SIZE_RANGE,
    MTU_DEFAULT,
    MTU_MAX,
    MTU_MIN,
    NO_MAC,
    OFPORT_LOCAL,
    PORT_TYPES,
    Bridge,
    Desired,
    NicPort,
    PollThreads,
)
from ovsvhost.nic.port import SYSFS, TYPE_OF, Asked, interpret
from ovsvhost.numeral import is_whole
from ovsvhost.pmd_settings import poll_threads
from ovsvhost.vhost_features import feature_limit

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from ovsvhost.daemon.rows import BridgeRow, InterfaceRow, PortRow, RootRow
    from ovsvhost.model import AnyPort, Bond, FeatureLimit, PortType, TxSteering


POLL_THREADS_DEFAULT = PollThreads()


@dataclass(frozen=True, slots=True)
class Configuration:
    """What the rows mean: what to build, a verdict a row, the options that wait for a restart and those refused."""

    desired: Desired
    verdicts: tuple[Verdict, ...]
    pending: tuple[str, ...]
    refused: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Bonded:
    """A row of ``Port`` with several interfaces.

    Attributes:
        row: the row.
        bond: what it means; None if it cannot be served.
        errors: what is not in force of it, or why it cannot be served: for the rows of all its interfaces.
    """

    row: PortRow
    bond: Bond | None
    errors: tuple[str, ...]

    @classmethod
    def of(cls, row: PortRow, system: str) -> _Bonded:
        try:
            return cls(row, *bonds.interpret(row, system))
        except ConfigError as error:
            return cls(row, None, (str(error),))

    def join(self, interface: InterfaceRow, want: Wanted) -> Wanted:
        """One of its interfaces as a link; ConfigError if that cannot be."""
        bonds.check_link(self.row, interface)
        if self.bond is None or not isinstance(want.port, NicPort):
            raise ConfigError("; ".join(self.errors))
        errors = [*want.errors, *self.errors]
        if self.bond.lacp is not None:
            errors += bonds.lacp_port(interface, want.port.ofport)[1]
        return replace(want, port=replace(want.port, bond=self.bond.name), errors=tuple(errors))


def configure(
    root: RootRow,
    at_start: Startup,
    rundir: Path,
    held: Mapping[str, int],
    *,
    before: PollThreads = POLL_THREADS_DEFAULT,
    limit_before: FeatureLimit = "all",
    sysfs: Path = SYSFS,
) -> Configuration:
    """Says what the rows mean.

    Args:
        root: the whole database.
        at_start: the options in force since start.
        rundir: where server ports' sockets lie.
        held: port numbers in use or given out before, by row uuid.
        before: the poll threads as they are: what an option that is refused leaves.
        limit_before: the same of what guests are offered.
        sysfs: where the kernel tells which device is which.
    """
    bridges: list[Bridge] = []
    verdicts: list[Verdict] = []
    wanted: list[Wanted] = []
    bonded: list[_Bonded] = []
    for row in root.bridges:
        bridge, errors = _bridge(row)
        if bridge is not None:
            bridges.append(bridge)
        for port in row.ports:
            bond = _Bonded.of(port, _system(row)) if len(port.interfaces) > 1 else None
            if bond is not None:
                bonded.append(bond)
            for interface in port.interfaces:
                verdict = _verdict(row, port, interface, () if bridge else errors)
                at_port = other_config.complaints("Port", f"port {port.name!r}", port.other_config)
                if verdict.kind == "local" and bridge:
                    own = other_config.complaints("local", f"interface {interface.name!r}", interface.other_config)
                    verdict = replace(verdict, errors=(*errors, *at_port, *own))
                if verdict.kind != "active":
                    verdicts.append(verdict)
                    continue
                try:
                    want = _interpret(row, interface, at_start, rundir, sysfs)
                    want = bond.join(interface, want) if bond is not None else want
                    wanted.append(replace(want, errors=(*want.errors, *at_port)))
                except ConfigError as error:
                    verdicts.append(keep_out(verdict, str(error)))
    ports, shared = share_out(wanted, held)
    verdicts += shared
    by_bridge = {bridge.name: tuple(ports.get(bridge.name, ())) for bridge in bridges}
    pmds, refused = poll_threads(root.other_config, before)
    limit, refused_limit = feature_limit(root.other_config, limit_before)
    return Configuration(
        Desired(
            tuple(
                replace(bridge, ports=on, bonds=tuple(_bonds(on, bonded, sysfs)))
                for bridge in bridges
                for on in [by_bridge[bridge.name]]
            ),
            pmds,
            limit,
        ),
        tuple(verdicts),
        pending(at_start, root.other_config),
        not_served(root.other_config) | refused | refused_limit,
    )


def _bonds(ports: Sequence[AnyPort], bonded: Sequence[_Bonded], sysfs: Path) -> Iterator[Bond]:
    """The bonds that have links among ``ports``."""
    for each in bonded:
        links = [port for port in ports if isinstance(port, NicPort) and port.bond == each.row.name]
        if each.bond is not None and links:
            bond = bonds.with_ports(each.bond, each.row.interfaces, links)
            yield replace(bond, last_active=bonds.last_active(each.row, links, sysfs))


def _bridge(row: BridgeRow) -> tuple[Bridge | None, tuple[str, ...]]:
    """The bridge, or None; and what its own port's row or, without a bridge, every row on it has to say."""
    if row.datapath_type != "netdev":
        now = f"datapath_type={row.datapath_type}" if row.datapath_type else "no datapath_type"
        return None, (
            (
                f"bridge {row.name!r} has {now} and this switch serves userspace bridges only: "
                f"ovs-vsctl set bridge {row.name} datapath_type=netdev"
            ),
        )
    if row.unserved:
        return None, (
            (
                f"bridge {row.name!r} has {', '.join(row.unserved)}, so nothing on it forwards (it is not served yet): "
                "clear it"
            ),
        )
    complaints: list[str] = []
    aging = _number(row, "mac-aging-time", AGING_S_DEFAULT, AGING_S_RANGE, complaints)
    size = _number(row, "mac-table-size", FDB_SIZE_DEFAULT, FDB_SIZE_RANGE, complaints)
    forward_bpdu = _boolean(row, "forward-bpdu", complaints)
    if (address := row.other_config.get("hwaddr")) is not None and not _is_address(address):
        complaints.append(
            f"other_config:hwaddr={address!r} of bridge {row.name!r} is not in force: give an address of one station, "
            "as 02:00:00:00:00:01"
        )
    complaints += other_config.complaints("Bridge", f"bridge {row.name!r}", row.other_config)
    bridge = Bridge(key=row.uuid, name=row.name, mac_aging_time_s=aging, mac_table_size=size, forward_bpdu=forward_bpdu)
    return bridge, tuple(complaints)


def _number(row: BridgeRow, key: str, default: int, valid: tuple[int, int], complaints: list[str]) -> int:
    text = row.other_config.get(key)
    if text is None:
        return default
    if is_whole(text) and valid[0] <= int(text) <= valid[1]:
        return int(text)
    complaints.append(
        f"other_config:{key}={text!r} of bridge {row.name!r} is not in force ({default} is): "
        f"give a number {valid[0]}..{valid[1]}"
    )
    return default


def _boolean(row: BridgeRow, key: str, complaints: list[str]) -> bool:
    text = row.other_config.get(key, "false")
    if text not in BOOLEANS:
        complaints.append(
            f"other_config:{key}={text!r} of bridge {row.name!r} is not in force (false is): "
            f"give {' or '.join(BOOLEANS)}"
        )
    return BOOLEANS.get(text, False)


def _is_address(text: str) -> bool:
    """Whether ``text`` is the address of one station."""
    return text != NO_MAC and bool(re.fullmatch("[0-9a-fA-F][02468aceACE](:[0-9a-fA-F]{2}){5}", text))


def _verdict(bridge: BridgeRow, port: PortRow, row: InterfaceRow, errors: tuple[str, ...]) -> Verdict:
    """A first verdict, from what needs no look at other rows."""
    verdict = Verdict(uuid=row.uuid, name=row.name, bridge=bridge.name, kind="active", ofport=-1, mac=row.mac or NO_MAC)
    if errors:
        return keep_out(verdict, *errors)
    unserved = (*port.unserved, *row.unserved)
    if unserved:
        return keep_out(
            verdict,
            f"port {row.name!r} has {', '.join(unserved)}, which is not served yet, so it does not forward: clear it",
        )
    if row.name == bridge.name:
        return replace(verdict, kind="local", ofport=OFPORT_LOCAL, mac=_local_mac(bridge, row))
    if row.type not in PORT_TYPES and row.type not in TYPE_OF:
        return keep_out(verdict, _type_error(row))
    return verdict


def _type_error(row: InterfaceRow) -> str:
    cure = (
        f"set type={options.CLIENT} (the VMM creates the socket), type={options.SERVER} (the switch does), or "
        "type=afxdp or dpdk for a network device"
    )
    if row.type == "internal":
        return f"interface {row.name!r} is internal and only the bridge's own port can be: {cure}"
    return f"interface {row.name!r} has type={row.type!r}, which is unknown or not served: {cure}"


def _interpret(bridge: BridgeRow, row: InterfaceRow, at_start: Startup, rundir: Path, sysfs: Path) -> Wanted:
    nic_type = TYPE_OF.get(row.type)
    settings = other_config.interface_settings("guest" if nic_type is None else "device", row.name, row.other_config)
    if nic_type is None:
        want = _vhost(bridge, row, at_start, rundir, settings.tx_steering)
    else:
        asked = Asked(key=row.uuid, name=row.name, type=nic_type, options=row.options, mtu_request=row.mtu_request)
        port, complaints = interpret(asked, sysfs)
        want = Wanted(row, bridge.name, complaints, ("device", port.device), port)
    return replace(
        want,
        port=want.port and replace(want.port, rxq_affinity=settings.rxq_affinity),
        errors=(*want.errors, *settings.complaints),
    )


def _vhost(bridge: BridgeRow, row: InterfaceRow, at_start: Startup, rundir: Path, steering: TxSteering) -> Wanted:
    port_type: PortType = options.SERVER if row.type == options.SERVER else options.CLIENT
    directory = options.socket_directory(rundir, at_start.sock_dir) if port_type == options.SERVER else None
    settings = options.parse(row.name, port_type, row.options, directory)
    errors = list(settings.complaints)
    if row.mtu_request is not None and not MTU_MIN <= row.mtu_request <= MTU_MAX:
        errors.append(f"{row.name}: unsupported MTU {row.mtu_request}: set mtu_request to {MTU_MIN}..{MTU_MAX}")
    mtu = row.mtu_request or MTU_DEFAULT
    port = settings.port(
        key=row.uuid,
        name=row.name,
        port_type=port_type,
        ofport=0,
        mtu=mtu if MTU_MIN <= mtu <= MTU_MAX else None,
        steering=steering,
    )
    if port is None:
        waits = (
            f"{row.name} waits for its socket's path: set options:vhost-server-path to the path where the VMM listens"
        )
        return Wanted(row, bridge.name, (waits, *errors), None, None)
    return Wanted(row, bridge.name, tuple(errors), ("socket", port.socket), port)


def _system(bridge: BridgeRow) -> str:
    """The bridge's address: who its bonds are to LACP, if they are given no other."""
    rows = (row for port in bridge.ports for row in port.interfaces)
    local = _local_mac(bridge, next((row for row in rows if row.name == bridge.name), None))
    return local if _is_address(local) else _made_mac(bridge)


def _local_mac(bridge: BridgeRow, row: InterfaceRow | None) -> str:
    """``hwaddr``, the interface's ``mac``, or one made from the bridge's uuid."""
    hwaddr = bridge.other_config.get("hwaddr", "")
    asked = hwaddr if _is_address(hwaddr) else row.mac if row is not None else None
    return asked.lower() if asked else _made_mac(bridge)


def _made_mac(bridge: BridgeRow) -> str:
    """Local, and the same every time."""
    digest = hashlib.sha256(bridge.uuid.encode()).digest()
    return ":".join(f"{byte:02x}" for byte in (digest[0] & 0xFC | 0x02, *digest[1:6]))
