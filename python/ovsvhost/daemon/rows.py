"""The database's rows as frozen values: the configuration columns and nothing else.

What the daemon itself writes (``ofport``, ``error``, ``status`` …) is left out of equality, so its own writes coming
back as updates change nothing. Columns that are part of OVS's schema and are not served yet are read generically:
``unserved`` names those that are set, in words that go into the row's ``error``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

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
        "fake_bridge",
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
    """One row of ``Port``."""

    uuid: str
    name: str
    interfaces: tuple[InterfaceRow, ...] = ()
    unserved: tuple[str, ...] = ()


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


def read(tables: Mapping[str, Any]) -> RootRow | None:
    """Reads the replica's ``tables`` (those of `ovs.db.idl.Idl`); None while there is no ``Open_vSwitch`` row."""
    for row in tables["Open_vSwitch"].rows.values():
        bridges = tuple(sorted((_bridge(bridge) for bridge in row.bridges), key=lambda bridge: bridge.name))
        return RootRow(uuid=str(row.uuid), other_config=row.other_config, bridges=bridges, next_cfg=row.next_cfg)
    return None


def _bridge(row: Any) -> BridgeRow:
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
    ports = (_port(port, (mirrored[port.name],) if port.name in mirrored else ()) for port in row.ports)
    return BridgeRow(
        uuid=str(row.uuid),
        name=row.name,
        datapath_type=row.datapath_type,
        other_config=row.other_config,
        ports=tuple(sorted(ports, key=lambda port: port.name)),
        unserved=tuple(unserved),
    )


def _port(row: Any, mirrored: tuple[str, ...]) -> PortRow:
    unserved = [
        *_set(row, "tag", "trunks", "cvlans", "vlan_mode", "qos", "protected", "bond_fake_iface", "fake_bridge"),
        *mirrored,
    ]
    if row.lacp not in ([], ["off"]):
        unserved.append(f"lacp={row.lacp[0]}")
    interfaces = sorted((_interface(interface) for interface in row.interfaces), key=lambda interface: interface.name)
    return PortRow(uuid=str(row.uuid), name=row.name, interfaces=tuple(interfaces), unserved=tuple(unserved))


def _interface(row: Any) -> InterfaceRow:
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
