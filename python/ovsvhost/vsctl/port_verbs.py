"""``add-port``, ``add-bond``, ``del-port`` and what else is asked of ports and interfaces."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ovsvhost.errors import ConfigError
from ovsvhost.vsctl import records
from ovsvhost.vsctl.bridge_verbs import put_sorted
from ovsvhost.vsctl.datum import Datum
from ovsvhost.vsctl.grammar import UNBOUNDED, Verb
from ovsvhost.vsctl.names import table_named
from ovsvhost.vsctl.topology import Port, Topology, need_topology, topology

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ovsvhost.vsctl.context import Context
    from ovsvhost.vsctl.grammar import Command
    from ovsvhost.vsctl.names import Needs

_SMALLEST_BOND = 2


def _need_port_settings(needs: Needs, command: Command) -> None:
    need_topology(needs)
    needs.add("Port", "bond_fake_iface")
    port = table_named("Port")
    for argument in command.words[3:]:
        try:
            needs.settings(port, [argument])
        except ConfigError:
            # An interface of a bond, or a mistake: the verb itself tells them apart, and says so.
            continue


def _add_port(context: Context) -> None:
    bridge, name, *settings = context.arguments
    _create_port(context, bridge, name, [name], settings)


def _add_bond(context: Context) -> None:
    bridge, name, *rest = context.arguments
    count = next((at for at, word in enumerate(rest) if "=" in word), len(rest))
    if count < _SMALLEST_BOND:
        raise ConfigError(f"add-bond requires at least 2 interfaces, but only {count} were specified")
    _create_port(context, bridge, name, rest[:count], rest[count:])


def _create_port(
    context: Context,
    bridge_name: str,
    name: str,
    interface_names: Sequence[str],
    settings: Sequence[str],
) -> None:
    if not name:
        raise ConfigError("port name must not be empty string")
    if not all(interface_names):
        raise ConfigError("interface name must not be empty string")
    db, known = context.db, topology(context)
    if context.has("--may-exist"):
        present = known.find_port(name)
        if present is not None:
            _check_same(context, present, bridge_name, interface_names)
            return
    known.check_free(name, f"cannot create a port named {name}")
    for each in interface_names:
        known.check_free(each, f"cannot create an interface named {each}")
    bridge = known.bridge(bridge_name)
    interfaces = {each: _insert_interface(context, each) for each in interface_names}
    port = db.insert("Port")
    db.write(port, "name", Datum.of_keys([name]))
    db.write(port, "interfaces", Datum.of_keys(row.uuid for row in interfaces.values()))
    db.write(port, "bond_fake_iface", Datum.of_keys([context.has("--fake-iface")]))
    if bridge.parent is not None:
        db.write(port, "tag", Datum.of_keys([bridge.vlan]))
    for setting in settings:
        records.assign(context, table_named("Port"), port, setting, may_merge=False)
    known.attach(bridge, name, port, interfaces)


def _insert_interface(context: Context, name: str) -> Any:
    row = context.db.insert("Interface")
    context.db.write(row, "name", Datum.of_keys([name]))
    context.shared.new_interfaces.append(row.uuid)
    return row


def _check_same(context: Context, port: Port, bridge_name: str, interface_names: Sequence[str]) -> None:
    """Refuses ``--may-exist`` if the port of that name is not what would be made."""
    line = context.command.line()
    if port.bridge.name != bridge_name:
        raise ConfigError(f'"{line}" but {port.name} is actually attached to bridge {port.bridge.name}')
    have = sorted(context.db.text(row, "name") for row in context.db.referred(port.row, "interfaces"))
    if have != sorted(interface_names):
        raise ConfigError(f'"{line}" but {port.name} actually has interface(s) {", ".join(have)}')


def _add_bond_iface(context: Context) -> None:
    known = topology(context)
    port_name, name = context.arguments
    port = known.port(port_name)
    if context.has("--may-exist"):
        present = known.find_interface(name)
        if present is not None:
            if present.port is port:
                return
            line = context.command.line()
            raise ConfigError(f'"{line}" but {name} is actually attached to port {present.port.name}')
    known.check_free(name, f"cannot create an interface named {name}")
    known.add_interface(port, name, _insert_interface(context, name))


def _del_bond_iface(context: Context) -> None:
    known, name = topology(context), context.arguments[-1]
    interface = known.find_interface(name) if context.has("--if-exists") else known.interface(name)
    if interface is None:
        return
    if len(context.arguments) > 1 and interface.port is not known.port(context.arguments[0]):
        raise ConfigError(f"port {context.arguments[0]} does not have an interface {name}")
    if len(interface.port.interfaces) == 1:
        raise ConfigError(f"cannot delete last interface from port {interface.port.name}")
    known.delete_interface(interface)


def _del_port(context: Context) -> None:
    known = topology(context)
    port = _port_to_delete(context, known)
    if port is None:
        return
    if len(context.arguments) > 1:
        bridge = known.bridge(context.arguments[0])
        if port.bridge is not bridge:
            text = f"bridge {bridge.name} does not have a port {context.arguments[1]}"
            if port.bridge.parent is bridge:
                text += f" (although its child bridge {port.bridge.name} does)"
            raise ConfigError(text)
    known.delete_port(port)


def _port_to_delete(context: Context, known: Topology) -> Port | None:
    target, must_exist = context.arguments[-1], not context.has("--if-exists")
    if known.find_bridge(target) is not None:
        if must_exist:
            raise ConfigError(
                f"cannot delete port {target} because it is the local port for bridge {target} "
                "(deleting this port requires deleting the entire bridge)",
            )
        return None
    port = known.find_port(target)
    if not context.has("--with-iface"):
        return known.port(target) if must_exist else port
    interface = known.find_interface(target) if port is None else None
    if interface is not None:
        return interface.port
    if must_exist and port is None:
        raise ConfigError(f"no port or interface named {target}")
    return port


def _list_ports(context: Context) -> None:
    bridge = topology(context).bridge(context.arguments[0])
    context.db.verify(bridge.row, "ports")
    put_sorted(context, [port.name for port in bridge.ports if port.name != bridge.name])


def _port_to_br(context: Context) -> None:
    context.put(f"{topology(context).port(context.arguments[0]).bridge.name}\n")


def _list_ifaces(context: Context) -> None:
    known = topology(context)
    bridge = known.bridge(context.arguments[0])
    known.verify_ports()
    interfaces = [interface.name for port in bridge.ports for interface in port.interfaces]
    put_sorted(context, [name for name in interfaces if name != bridge.name])


def _iface_to_br(context: Context) -> None:
    context.put(f"{topology(context).interface(context.arguments[0]).port.bridge.name}\n")


VERBS = (
    Verb("list-ports", 1, 1, "BRIDGE", _list_ports, need_topology),
    Verb(
        "add-port",
        2,
        UNBOUNDED,
        "BRIDGE NEW-PORT [COLUMN[:KEY]=VALUE]...",
        _add_port,
        _need_port_settings,
        options=("--may-exist",),
    ),
    Verb(
        "del-port",
        1,
        2,
        "[BRIDGE] PORT|IFACE",
        _del_port,
        need_topology,
        options=("--if-exists", "--with-iface"),
    ),
    Verb("port-to-br", 1, 1, "PORT", _port_to_br, need_topology),
    Verb(
        "add-bond",
        4,
        UNBOUNDED,
        "BRIDGE BOND IFACE... [COLUMN[:KEY]=VALUE]...",
        _add_bond,
        _need_port_settings,
        options=("--may-exist", "--fake-iface"),
    ),
    Verb("add-bond-iface", 2, 2, "BOND IFACE", _add_bond_iface, need_topology, options=("--may-exist",)),
    Verb("del-bond-iface", 1, 2, "[BOND] IFACE", _del_bond_iface, need_topology, options=("--if-exists",)),
    Verb("list-ifaces", 1, 1, "BRIDGE", _list_ifaces, need_topology),
    Verb("iface-to-br", 1, 1, "IFACE", _iface_to_br, need_topology),
)
