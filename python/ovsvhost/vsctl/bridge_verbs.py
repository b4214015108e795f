"""``add-br``, ``del-br``, ``list-br`` and what else is asked of a bridge."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from ovsvhost.errors import ConfigError
from ovsvhost.vsctl.context import Exit
from ovsvhost.vsctl.datum import Datum
from ovsvhost.vsctl.grammar import Verb
from ovsvhost.vsctl.topology import VLANS, Bridge, Topology, need_topology, topology

if TYPE_CHECKING:
    from ovsvhost.vsctl.context import Context
    from ovsvhost.vsctl.names import Needs

_NO_SUCH_BRIDGE = 2
_INTEGER = re.compile(r"\s*([+-]?\d+)", re.ASCII)


def c_integer(text: str) -> int:
    """The number that a text starts with, 0 if it starts with none, as C's ``atoi`` has it."""
    match = _INTEGER.match(text)
    return int(match[1]) if match else 0


def put_sorted(context: Context, lines: list[str]) -> None:
    """Prints lines in ascending order."""
    context.put("".join(f"{line}\n" for line in sorted(lines)))


def _add_br(context: Context) -> None:
    name, *rest = context.arguments
    if not name:
        raise ConfigError("bridge name must not be empty string")
    if len(rest) == 1:
        raise ConfigError(f"'{context.command.verb.name}' command takes exactly 1 or 3 arguments")
    parent_name, vlan = (rest[0], c_integer(rest[1])) if rest else (None, 0)
    if vlan not in VLANS:
        raise ConfigError(f"{context.command.verb.name}: vlan must be between 0 and 4095")
    known = topology(context)
    if context.has("--may-exist"):
        present = known.find_bridge(name)
        if present is not None:
            _check_same(present, parent_name, vlan)
            return
    known.check_free(name, f"cannot create a bridge named {name}")
    if parent_name is None:
        _add_real(context, name)
    else:
        _add_fake(context, known, name, parent_name, vlan)
    context.forget_topology()


def _check_same(bridge: Bridge, parent: str | None, vlan: int) -> None:
    """Refuses ``--may-exist`` if the bridge of that name is not what would be made."""
    name = bridge.name
    if parent is None:
        if bridge.parent is not None:
            raise ConfigError(f'"--may-exist add-br {name}" but {name} is a VLAN bridge for VLAN {bridge.vlan}')
        return
    typed = f'"--may-exist add-br {name} {parent} {vlan}"'
    if bridge.parent is None:
        raise ConfigError(f"{typed} but {name} is not a VLAN bridge")
    if bridge.parent.name != parent:
        raise ConfigError(f"{typed} but {name} has the wrong parent {bridge.parent.name}")
    if bridge.vlan != vlan:
        raise ConfigError(f"{typed} but {name} is a VLAN bridge for the wrong VLAN {bridge.vlan}")


def _insert_local_port(context: Context, name: str) -> Any:
    """A new port with one interface of type ``internal``, both with the bridge's name."""
    db = context.db
    interface = db.insert("Interface")
    db.write(interface, "name", Datum.of_keys([name]))
    db.write(interface, "type", Datum.of_keys(["internal"]))
    context.shared.new_interfaces.append(interface.uuid)
    port = db.insert("Port")
    db.write(port, "name", Datum.of_keys([name]))
    db.write(port, "interfaces", Datum.of_keys([interface.uuid]))
    return port


def _add_real(context: Context, name: str) -> None:
    db, root = context.db, context.shared.root
    port = _insert_local_port(context, name)
    bridge = db.insert("Bridge")
    db.write(bridge, "name", Datum.of_keys([name]))
    db.write(bridge, "ports", Datum.of_keys([port.uuid]))
    db.write(root, "bridges", db.read(root, "bridges").union(Datum.of_keys([bridge.uuid])))


def _add_fake(context: Context, known: Topology, name: str, parent_name: str, vlan: int) -> None:
    parent = known.find_bridge(parent_name)
    if parent is None:
        raise ConfigError(f"parent bridge {parent_name} does not exist")
    if parent.parent is not None:
        raise ConfigError("cannot create bridge with fake bridge as parent")
    rival = parent.children.get(vlan)
    if rival is not None:
        raise ConfigError(f"bridge {parent_name} already has a child VLAN bridge {rival.name} on VLAN {vlan}")
    db = context.db
    port = _insert_local_port(context, name)
    db.write(port, "fake_bridge", Datum.of_keys([True]))
    db.write(port, "tag", Datum.of_keys([vlan]))
    db.write(parent.row, "ports", db.read(parent.row, "ports").union(Datum.of_keys([port.uuid])))


def _del_br(context: Context) -> None:
    known, name = topology(context), context.arguments[0]
    bridge = known.find_bridge(name) if context.has("--if-exists") else known.bridge(name)
    if bridge is not None:
        known.delete_bridge(bridge)


def _list_br(context: Context) -> None:
    real, fake = context.has("--real"), context.has("--fake")
    neither = not real and not fake
    bridges = topology(context).bridges.values()
    put_sorted(context, [each.name for each in bridges if neither or (fake if each.parent else real)])


def _br_exists(context: Context) -> None:
    if topology(context).find_bridge(context.arguments[0]) is None:
        raise Exit(_NO_SUCH_BRIDGE)


def _br_to_vlan(context: Context) -> None:
    context.put(f"{topology(context).bridge(context.arguments[0]).vlan}\n")


def _br_to_parent(context: Context) -> None:
    bridge = topology(context).bridge(context.arguments[0])
    context.put(f"{(bridge.parent or bridge).name}\n")


def _need_external_ids(needs: Needs, *_: object) -> None:
    need_topology(needs)
    needs.add("Bridge", "external_ids")
    needs.add("Port", "external_ids")


def _external_ids(context: Context) -> tuple[Any, str]:
    """The row with a bridge's external-ids, and the prefix that a fake bridge's keys have in it."""
    known, name = topology(context), context.arguments[0]
    bridge = known.bridge(name)
    row, prefix = (bridge.row, "") if bridge.parent is None else (known.ports[name].row, "fake-bridge-")
    context.db.verify(row, "external_ids")
    return row, prefix


def _br_set_external_id(context: Context) -> None:
    row, prefix = _external_ids(context)
    key = prefix + context.arguments[1]
    left = context.db.read(row, "external_ids").without(Datum.of_keys([key]), keys_only=True)
    new = Datum.of((key, value) for value in context.arguments[2:])
    context.db.write(row, "external_ids", left.union(new))


def _br_get_external_id(context: Context) -> None:
    row, prefix = _external_ids(context)
    ids = context.db.read(row, "external_ids")
    if len(context.arguments) > 1:
        value = ids.lookup(prefix + context.arguments[1])
        if value is not None:
            context.put(f"{value}\n")
        return
    for key, value in ids.pairs:
        if str(key).startswith(prefix):
            context.put(f"{str(key).removeprefix(prefix)}={value}\n")


VERBS = (
    Verb(
        "add-br",
        1,
        3,
        "NEW-BRIDGE [PARENT] [NEW-VLAN]",
        _add_br,
        need_topology,
        options=("--may-exist",),
    ),
    Verb("del-br", 1, 1, "BRIDGE", _del_br, need_topology, options=("--if-exists",)),
    Verb("list-br", 0, 0, "", _list_br, need_topology, options=("--real", "--fake")),
    Verb("br-exists", 1, 1, "BRIDGE", _br_exists, need_topology),
    Verb("br-to-vlan", 1, 1, "BRIDGE", _br_to_vlan, need_topology),
    Verb("br-to-parent", 1, 1, "BRIDGE", _br_to_parent, need_topology),
    Verb("br-set-external-id", 2, 3, "BRIDGE KEY [VALUE]", _br_set_external_id, _need_external_ids),
    Verb("br-get-external-id", 1, 2, "BRIDGE [KEY]", _br_get_external_id, _need_external_ids),
)
