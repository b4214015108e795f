"""Connection tracking zones, datapath capabilities and Auto Attach mappings: columns that the verbs only keep.

The switch serves none of them; they are here because scripts written for ``ovs-vsctl`` may set them.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from ovsvhost.errors import ConfigError
from ovsvhost.vsctl.bridge_verbs import c_integer
from ovsvhost.vsctl.datum import Atom, Datum
from ovsvhost.vsctl.grammar import UNBOUNDED, Verb
from ovsvhost.vsctl.topology import need_topology, topology

if TYPE_CHECKING:
    from ovsvhost.vsctl.context import Context
    from ovsvhost.vsctl.names import Needs

_ZONE = re.compile(r"zone=\s*([+-]?\d+)", re.ASCII)
_NUMBER = re.compile(r"\s*\+?\d+", re.ASCII)


def _need_zones(needs: Needs, *_: object) -> None:
    needs.add("Open_vSwitch", "datapaths")
    needs.add("Datapath", "ct_zones")
    needs.add("CT_Zone", "timeout_policy")
    needs.add("CT_Timeout_Policy", "timeouts")


def _need_capabilities(needs: Needs, *_: object) -> None:
    needs.add("Open_vSwitch", "datapaths")
    needs.add("Datapath", "capabilities")


def _datapath(context: Context, refusal: str) -> Any:
    """The Datapath row that the first argument names; else an error with this text."""
    uuid = context.db.read(context.shared.root, "datapaths").lookup(context.arguments[0])
    row = context.db.row_of("Datapath", uuid)
    if row is None:
        raise ConfigError(refusal)
    return row


def _zone(context: Context) -> int:
    match = _ZONE.match(context.arguments[1])
    if match is None:
        raise ConfigError(f"{context.arguments[1]}: not of the form zone=NUMBER")
    return int(match[1])


def _add_zone_tp(context: Context) -> None:
    db, name = context.db, context.arguments[0]
    datapath, zone = _datapath(context, f"datapath {name} does not exist"), _zone(context)
    zones = db.read(datapath, "ct_zones")
    row = db.row_of("CT_Zone", zones.lookup(zone))
    if row is not None and not context.has("--may-exist"):
        raise ConfigError(f"zone id {zone} already exists")
    policy = _policy(context)
    if row is None:
        row = db.insert("CT_Zone")
        db.merge(datapath, "ct_zones", Datum.of([(zone, row.uuid)]))
    db.write(row, "timeout_policy", Datum.of_keys([policy.uuid]))


def _policy(context: Context) -> Any:
    """The timeout policy of the arguments; one that is there already is used again."""
    pairs: dict[Atom, Atom] = {}
    for argument in context.arguments[2:]:
        for word in re.split(r"[, \t\r\n]+", argument.strip(", \t\r\n")):
            key, _, value = word.partition("=")
            pairs[key] = c_integer(value)
    wanted = Datum.of(pairs.items())
    for row in context.db.rows("CT_Timeout_Policy"):
        if context.db.read(row, "timeouts") == wanted:
            return row
    row = context.db.insert("CT_Timeout_Policy")
    context.db.write(row, "timeouts", wanted)
    return row


def _del_zone_tp(context: Context) -> None:
    datapath, zone = _datapath(context, f"datapath {context.arguments[0]} does not exist"), _zone(context)
    if zone in context.db.read(datapath, "ct_zones"):
        datapath.delkey("ct_zones", zone)
    elif not context.has("--if-exists"):
        raise ConfigError(f"zone id {zone} does not exist")


def _list_zone_tp(context: Context) -> None:
    db = context.db
    datapath = _datapath(context, f"datapath: {context.arguments[0]} record not found")
    for zone, uuid in db.read(datapath, "ct_zones").pairs:
        row = db.row_of("CT_Zone", uuid)
        policies = [] if row is None else db.referred(row, "timeout_policy")
        text = " ".join(db.read(policy, "timeouts").bare() for policy in policies) or "system default"
        context.put(f"Zone:{zone}, Timeout Policies: {text}\n")


def _list_dp_cap(context: Context) -> None:
    datapath = _datapath(context, f'datapath "{context.arguments[0]}" record not found')
    context.put(f"{context.db.read(datapath, 'capabilities').bare()}\n")


def _need_mappings(needs: Needs, *_: object) -> None:
    need_topology(needs)
    needs.add("Bridge", "auto_attach")
    needs.add("AutoAttach", "mappings")


def _bridge_row(context: Context) -> Any:
    return topology(context).bridge(context.arguments[0]).row


def _mapping(context: Context) -> tuple[int, int]:
    """The service identifier and the VLAN that the arguments name."""
    for argument in context.arguments[1:]:
        if not _NUMBER.match(argument):
            raise ConfigError(f"Invalid argument {argument}")
    return c_integer(context.arguments[1]), c_integer(context.arguments[2])


def _add_aa_mapping(context: Context) -> None:
    db, (isid, vlan) = context.db, _mapping(context)
    bridge = _bridge_row(context)
    attached = db.referred(bridge, "auto_attach")
    row = attached[0] if attached else db.insert("AutoAttach")
    if not attached:
        db.write(bridge, "auto_attach", Datum.of_keys([row.uuid]))
    db.write(row, "mappings", Datum.of([(isid, vlan)]).union(db.read(row, "mappings")))


def _del_aa_mapping(context: Context) -> None:
    mapping = _mapping(context)
    for row in context.db.referred(_bridge_row(context), "auto_attach"):
        have = context.db.read(row, "mappings")
        if mapping in have.pairs:
            left = (pair for pair in have.pairs if pair[0] != mapping[0] and pair[1] != mapping[1])
            context.db.write(row, "mappings", Datum.of(left))


def _get_aa_mapping(context: Context) -> None:
    bridge = _bridge_row(context)
    context.db.verify(bridge, "auto_attach")
    for row in context.db.referred(bridge, "auto_attach"):
        context.db.verify(row, "mappings")
        for isid, vlan in context.db.read(row, "mappings").pairs:
            context.put(f"{isid} {vlan}\n")


VERBS = (
    Verb("add-aa-mapping", 3, 3, "BRIDGE ARG ARG", _add_aa_mapping, _need_mappings),
    Verb("del-aa-mapping", 3, 3, "BRIDGE ARG ARG", _del_aa_mapping, _need_mappings),
    Verb("get-aa-mapping", 1, 1, "BRIDGE", _get_aa_mapping, _need_mappings),
    Verb(
        "add-zone-tp",
        3,
        UNBOUNDED,
        "DATAPATH zone=NUMBER POLICY=SECONDS...",
        _add_zone_tp,
        _need_zones,
        options=("--may-exist",),
    ),
    Verb("del-zone-tp", 2, 2, "DATAPATH zone=NUMBER", _del_zone_tp, _need_zones, options=("--if-exists",)),
    Verb("list-zone-tp", 1, 1, "DATAPATH", _list_zone_tp, _need_zones),
    Verb("list-dp-cap", 1, 1, "DATAPATH", _list_dp_cap, _need_capabilities),
)
