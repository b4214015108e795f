"""The database's rows as frozen values: the configuration columns and nothing else.

What the daemon itself writes (``ofport``, ``error``, ``status`` …) is left out of equality, so its own writes coming
back as updates change nothing. Columns that are part of OVS's schema and are not served yet are read generically:
``unserved`` names those that are set, in words that go into the row's ``error``.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from uuid import UUID

COLUMNS: Mapping[str, tuple[str, ...]] = {
    "Open_vSwitch": (
        "bridges", "other_config", "external_ids", "next_cfg", "cur_cfg", "ovs_version", "db_version", "system_type",
        "system_version", "iface_types", "datapath_types",
    ),
    "Bridge": (
        "name", "datapath_type", "ports", "mirrors", "other_config", "fail_mode", "stp_enable", "rstp_enable",
        "mcast_snooping_enable", "controller", "netflow", "sflow", "ipfix", "flood_vlans", "flow_tables",
    ),
    "Port": (
        "name", "interfaces", "tag", "trunks", "cvlans", "vlan_mode", "qos", "protected", "lacp", "bond_fake_iface",
        "fake_bridge", "bond_mode", "bond_updelay", "bond_downdelay", "bond_active_slave", "other_config",
    ),
    "Interface": (
        "name", "type", "options", "other_config", "mac", "mtu_request", "ofport", "ofport_request", "bfd", "cfm_mpid",
        "lldp", "ingress_policing_rate", "ingress_policing_kpkts_rate",
    ),
    "Mirror": ("name", "select_all", "select_src_port", "select_dst_port", "select_vlan", "output_port"),
    "QoS": ("type",), "Controller": ("target",), "NetFlow": ("targets",), "sFlow": ("targets",), "IPFIX": ("targets",),
    "Flow_Table": ("name",),
}  # fmt: skip
"""What the daemon monitors; the last row of tables only so that references to them can be followed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InterfaceRow:
    """One row of ``Interface``. ``ofport`` is what an earlier run gave out (None if nothing was)."""

    uuid: str
    name: str
    type: str = ""
    options: Mapping[str, str] = field(default_factory=dict)
    other_config: Mapping[str, str] = field(default_factory=dict)
    mac: str | None = None
    mtu_request: int | None = None
    ofport_request: int | None = None
    unserved: tuple[str, ...] = ()
    ofport: int | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class PortRow:
    """One row of ``Port``. ``bond_active_slave`` is what this switch or an earlier run wrote."""

    uuid: str
    name: str
    interfaces: tuple[InterfaceRow, ...] = ()
    bond_mode: str | None = None
    bond_updelay: int = 0
    bond_downdelay: int = 0
    lacp: str | None = None
    other_config: Mapping[str, str] = field(default_factory=dict)
    unserved: tuple[str, ...] = ()
    bond_active_slave: str | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class BridgeRow:
    """One row of ``Bridge``."""

    uuid: str
    name: str
    datapath_type: str = ""
    other_config: Mapping[str, str] = field(default_factory=dict)
    ports: tuple[PortRow, ...] = ()
    unserved: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class RootRow:
    """The one row of ``Open_vSwitch``."""

    uuid: str
    other_config: Mapping[str, str] = field(default_factory=dict)
    bridges: tuple[BridgeRow, ...] = ()
    next_cfg: int = field(default=0, compare=False)


class Reader:
    """Reads a replica's tables, and of each table's rows again only those that changed.

    A row of the replica costs some hundred microseconds to read (each column is converted from JSON); a database of a
    thousand ports must not cost that for every port at every change.
    """

    def __init__(self) -> None:
        self._interfaces: dict[UUID, InterfaceRow] = {}
        self._ports: dict[UUID, tuple[PortRow, Sequence[Any]]] = {}

    def forget(self, row: UUID) -> None:
        """The row changed or is gone; uuids are unique over all tables."""
        self._interfaces.pop(row, None)
        self._ports.pop(row, None)

    def forget_all(self) -> None:
        """After a new connection nothing is told of what went before."""
        self._interfaces.clear()
        self._ports.clear()

    def read(self, tables: Mapping[str, Any]) -> RootRow | None:
        """Reads ``tables`` (those of `ovs.db.idl.Idl`); None while there is no ``Open_vSwitch`` row."""
        for row in tables["Open_vSwitch"].rows.values():
            bridges = tuple(sorted((self._bridge(bridge) for bridge in row.bridges), key=_name))
            return RootRow(uuid=str(row.uuid), other_config=row.other_config, bridges=bridges, next_cfg=row.next_cfg)
        return None

    def _bridge(self, row: Any) -> BridgeRow:
        unserved = [
            *_set(row, "stp_enable", "rstp_enable", "mcast_snooping_enable", "controller", "netflow", "sflow", "ipfix"),
            *_set(row, "flood_vlans", "flow_tables"),
        ]
        if row.fail_mode == ["secure"]:
            unserved.append("fail_mode=secure")
        mirrored: dict[str, str] = {}
        for mirror in row.mirrors:
            ends = {port.name for port in (*mirror.select_src_port, *mirror.select_dst_port, *mirror.output_port)}
            if mirror.select_all or mirror.select_vlan or not ends:
                unserved.append(f"mirrors={mirror.name}")
            mirrored |= dict.fromkeys(ends, f"mirror {mirror.name}")
        ports = [self._port(port) for port in row.ports]
        if mirrored:
            ports = [
                replace(port, unserved=(*port.unserved, mirrored[port.name])) if port.name in mirrored else port
                for port in ports
            ]
        return BridgeRow(
            uuid=str(row.uuid),
            name=row.name,
            datapath_type=row.datapath_type,
            other_config=row.other_config,
            ports=tuple(sorted(ports, key=_name)),
            unserved=tuple(unserved),
        )

    def _port(self, row: Any) -> PortRow:
        known = self._ports.get(row.uuid)
        if known is None:
            known = self._ports[row.uuid] = (_bare_port(row), tuple(row.interfaces))
        port, rows = known
        interfaces = tuple(sorted((self._interface(interface) for interface in rows), key=_name))
        # the same objects as before as long as nothing changed: comparing two readings is then quick
        if all(new is old for new, old in zip(interfaces, port.interfaces, strict=False)) and port.interfaces:
            return port
        port = replace(port, interfaces=interfaces)
        self._ports[row.uuid] = (port, rows)
        return port

    def _interface(self, row: Any) -> InterfaceRow:
        known = self._interfaces.get(row.uuid)
        if known is None:
            known = self._interfaces[row.uuid] = _read_interface(row)
        return known


def _name(row: InterfaceRow | PortRow | BridgeRow) -> str:
    return row.name


def _bare_port(row: Any) -> PortRow:
    unserved = _set(row, "tag", "trunks", "cvlans", "vlan_mode", "qos", "protected", "bond_fake_iface", "fake_bridge")
    if row.lacp not in ([], ["off"]) and len(row.interfaces) < 2:
        unserved.append(f"lacp={row.lacp[0]}")
    return PortRow(
        uuid=str(row.uuid),
        name=row.name,
        bond_mode=_only(row.bond_mode),
        bond_updelay=row.bond_updelay,
        bond_downdelay=row.bond_downdelay,
        lacp=_only(row.lacp),
        other_config=row.other_config,
        unserved=tuple(unserved),
        bond_active_slave=_only(row.bond_active_slave),
    )


def _read_interface(row: Any) -> InterfaceRow:
    unserved = _set(row, "ingress_policing_rate", "ingress_policing_kpkts_rate", "cfm_mpid")
    unserved += [f"{column}:enable" for column in ("bfd", "lldp") if getattr(row, column).get("enable") == "true"]
    return InterfaceRow(
        uuid=str(row.uuid),
        name=row.name,
        type=row.type,
        options=row.options,
        other_config=row.other_config,
        mac=_only(row.mac),
        mtu_request=_only(row.mtu_request),
        ofport_request=_only(row.ofport_request),
        unserved=tuple(unserved),
        ofport=_only(row.ofport),
    )


def _set(row: Any, *columns: str) -> list[str]:
    """Those of ``columns`` that are set, as ``column=value``; a reference's value is its table's business."""
    found = []
    for column in columns:
        value = getattr(row, column, None)  # an older schema may lack the column
        match value:
            case None | False | 0 | [] | {}:
                continue
            case True:
                found.append(f"{column}=true")
            case int():
                found.append(f"{column}={value}")
            case [int() | str(), *_]:
                found.append(f"{column}={','.join(map(str, value))}")
            case _:
                found.append(column)
    return found


def _only(values: Iterable[Any]) -> Any:
    return next(iter(values), None)
