"""Bridges, ports and interfaces by name, as the commands that are not about the database see them.

A *fake* bridge is a port with a VLAN tag whose ``fake_bridge`` is set: commands see it as a bridge within its
parent, and the parent's ports with the same tag as its own.

The maps are a view of one moment. A verb that changes something behind their back calls
``Context.forget_topology``; what goes through the methods here keeps them right.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ovsvhost.errors import ConfigError
from ovsvhost.vsctl.console import warn
from ovsvhost.vsctl.datum import Datum

if TYPE_CHECKING:
    from ovsvhost.vsctl.context import Context
    from ovsvhost.vsctl.names import Needs
    from ovsvhost.vsctl.replica import Replica

VLANS = range(4096)


@dataclass(eq=False, slots=True)
class Bridge:
    """A bridge, real or fake.

    Attributes:
        name: its name.
        row: its Bridge row; its parent's if it is fake.
        parent: the real bridge that a fake one is in, None for a real one.
        vlan: a fake bridge's VLAN, 0 for a real one.
        ports: its ports, its own local port among them.
        children: a real bridge's fake ones, by VLAN.
    """

    name: str
    row: Any
    parent: Bridge | None = None
    vlan: int = 0
    ports: list[Port] = field(default_factory=list)
    children: dict[int, Bridge] = field(default_factory=dict)


@dataclass(eq=False, slots=True)
class Port:
    """A port: one interface, or a bond of several."""

    name: str
    row: Any
    bridge: Bridge
    interfaces: list[Interface] = field(default_factory=list)


@dataclass(eq=False, slots=True)
class Interface:
    """An interface of a port."""

    name: str
    row: Any
    port: Port


def need_topology(needs: Needs, *_: object) -> None:
    """Asks for all that a :class:`Topology` is made of, and for what tells of a new interface's fate."""
    needs.add("Open_vSwitch", "bridges")
    needs.add("Bridge", "name", "controller", "fail_mode", "ports")
    needs.add("Port", "name", "fake_bridge", "tag", "interfaces")
    needs.add("Interface", "name", "type", "ofport", "error")


def topology(context: Context) -> Topology:
    """The topology as the commands before this one left it."""
    if context.shared.topology is None:
        context.shared.topology = Topology(context.db, context.shared.root)
    return context.shared.topology


class Topology:
    """Bridges, ports and interfaces, each by name.

    Args:
        db: the replica, with an open transaction.
        root: the one row of table ``Open_vSwitch``.
    """

    def __init__(self, db: Replica, root: Any) -> None:
        self._db = db
        self._root = root
        self.bridges: dict[str, Bridge] = {}
        self.ports: dict[str, Port] = {}
        self.interfaces: dict[str, Interface] = {}
        self._read_bridges()
        for bridge in [each for each in self.bridges.values() if each.parent is None]:
            self._read_ports(bridge)

    def bridge(self, name: str) -> Bridge:
        """The bridge of a name.

        Raises:
            ConfigError: there is none.
        """
        found = self.find_bridge(name)
        if found is None:
            raise ConfigError(f"no bridge named {name}")
        return found

    def find_bridge(self, name: str) -> Bridge | None:
        """The bridge of a name, None if there is none."""
        self._db.verify(self._root, "bridges")
        return self.bridges.get(name)

    def real_bridge(self, name: str) -> Bridge:
        """The bridge of a name, which must not be fake.

        Raises:
            ConfigError: there is none, or it is fake.
        """
        found = self.bridge(name)
        if found.parent is not None:
            raise ConfigError(f"{name} is a fake bridge")
        return found

    def port(self, name: str) -> Port:
        """The port of a name, a bridge's local port excepted.

        Raises:
            ConfigError: there is none.
        """
        found = self.find_port(name)
        if found is None:
            raise ConfigError(f"no port named {name}")
        return found

    def find_port(self, name: str) -> Port | None:
        """The port of a name, a bridge's local port excepted; None if there is none."""
        self.verify_ports()
        found = self.ports.get(name)
        return None if found is None or found.bridge.name == name else found

    def interface(self, name: str) -> Interface:
        """The interface of a name, a bridge's local one excepted.

        Raises:
            ConfigError: there is none.
        """
        found = self.find_interface(name)
        if found is None:
            raise ConfigError(f"no interface named {name}")
        return found

    def find_interface(self, name: str) -> Interface | None:
        """The interface of a name, a bridge's local one excepted; None if there is none."""
        self.verify_ports()
        found = self.interfaces.get(name)
        return None if found is None or found.port.bridge.name == name else found

    def verify_ports(self) -> None:
        """Lets the commit fail, to be tried again, if someone else adds or deletes a port meanwhile."""
        self._db.verify(self._root, "bridges")
        for row in self._db.rows("Bridge"):
            self._db.verify(row, "ports")
        for row in self._db.rows("Port"):
            self._db.verify(row, "interfaces")

    def check_free(self, name: str, refusal: str) -> None:
        """Makes sure that nothing bears a name yet.

        Args:
            name: the name.
            refusal: what the error's text starts with.

        Raises:
            ConfigError: a bridge, port or interface of this name exists.
        """
        self.verify_ports()
        if name in self.bridges:
            raise ConfigError(f"{refusal} because a bridge named {name} already exists")
        if name in self.ports:
            where = self.ports[name].bridge.name
            raise ConfigError(f"{refusal} because a port named {name} already exists on bridge {where}")
        if name in self.interfaces:
            where = self.interfaces[name].port.bridge.name
            raise ConfigError(f"{refusal} because an interface named {name} already exists on bridge {where}")

    def attach(self, bridge: Bridge, name: str, row: Any, interfaces: dict[str, Any]) -> None:
        """Puts a new port, with its interfaces' rows by name, on a bridge."""
        ports = self._db.read(bridge.row, "ports")
        self._db.write(bridge.row, "ports", ports.union(Datum.of_keys([row.uuid])))
        port = self._add_port(bridge, name, row)
        for interface_name, interface_row in interfaces.items():
            self._add_interface(port, interface_name, interface_row)

    def add_interface(self, port: Port, name: str, row: Any) -> None:
        """Puts a new interface on a port."""
        self._db.merge(port.row, "interfaces", Datum.of_keys([row.uuid]))
        self._add_interface(port, name, row)

    def delete_interface(self, interface: Interface) -> None:
        """Takes an interface off its port."""
        interface.port.row.delvalue("interfaces", interface.row.uuid)
        self._drop_interface(interface)

    def delete_port(self, port: Port) -> None:
        """Takes a port with its interfaces off its bridge."""
        gone = Datum.of_keys([port.row.uuid])
        left = self._db.read(port.bridge.row, "ports").without(gone, keys_only=True)
        self._db.write(port.bridge.row, "ports", left)
        for interface in list(port.interfaces):
            self._drop_interface(interface)
        port.bridge.ports.remove(port)
        del self.ports[port.name]
        self._db.delete(port.row)

    def delete_bridge(self, bridge: Bridge) -> None:
        """Deletes a bridge with its ports and the fake bridges in it."""
        for child in list(bridge.children.values()):
            self.delete_bridge(child)
        for port in list(bridge.ports):
            self.delete_port(port)
        if bridge.parent is not None:
            del bridge.parent.children[bridge.vlan]
        else:
            self._db.delete(bridge.row)
            gone = Datum.of_keys([bridge.row.uuid])
            left = self._db.read(self._root, "bridges").without(gone, keys_only=True)
            self._db.write(self._root, "bridges", left)
        del self.bridges[bridge.name]

    def _drop_interface(self, interface: Interface) -> None:
        interface.port.interfaces.remove(interface)
        del self.interfaces[interface.name]
        self._db.delete(interface.row)

    def _tag(self, port: Any) -> int | None:
        """A port's VLAN tag, None if it has none that is valid."""
        tags = self._db.read(port, "tag").keys
        return tags[0] if tags and isinstance(tags[0], int) and tags[0] in VLANS else None

    def _fake_vlan(self, port: Any) -> int | None:
        """The VLAN of the fake bridge that a port is, None if it is none."""
        return self._tag(port) if self._db.read(port, "fake_bridge").keys == (True,) else None

    def _read_bridges(self) -> None:
        port_names: set[str] = set()
        for row in self._db.referred(self._root, "bridges"):
            name = self._db.text(row, "name")
            if name in self.bridges:
                warn("vsctl", f"{name}: database contains duplicate bridge name")
                continue
            bridge = self.bridges[name] = Bridge(name, row)
            for port in self._db.referred(row, "ports"):
                port_name = self._db.text(port, "name")
                vlan = self._fake_vlan(port)
                if port_name in port_names:
                    continue
                port_names.add(port_name)
                if vlan is not None and port_name not in self.bridges:
                    self._read_fake_bridge(bridge, port_name, vlan)

    def _read_fake_bridge(self, parent: Bridge, name: str, vlan: int) -> None:
        self.bridges[name] = bridge = Bridge(name, parent.row, parent, vlan)
        rival = parent.children.setdefault(vlan, bridge)
        if rival is not bridge:
            warn(
                "vsctl",
                f"{parent.name}: bridge has multiple VLAN bridges ({name} and {rival.name}) "
                f"for VLAN {vlan}, but only one is allowed",
            )

    def _read_ports(self, bridge: Bridge) -> None:
        for row in self._db.referred(bridge.row, "ports"):
            name = self._db.text(row, "name")
            known = self.ports.get(name)
            if known is not None:
                problem = f"port is in multiple bridges ({bridge.name} and {known.bridge.name})"
                warn("vsctl", f"{name}: {problem if known.row is row else 'database contains duplicate port name'}")
                continue
            port = self._add_port(bridge, name, row)
            for interface in self._db.referred(row, "interfaces"):
                self._read_interface(port, interface)

    def _read_interface(self, port: Port, row: Any) -> None:
        name = self._db.text(row, "name")
        known = self.interfaces.get(name)
        if known is None:
            self._add_interface(port, name, row)
            return
        problem = f"interface is in multiple ports ({name} and {known.port.name})"
        warn("vsctl", f"{name}: {problem if known.row is row else 'database contains duplicate interface name'}")

    def _add_port(self, bridge: Bridge, name: str, row: Any) -> Port:
        tag = self._tag(row)
        owner = bridge if tag is None else bridge.children.get(tag, bridge)
        port = self.ports[name] = Port(name, row, owner)
        owner.ports.append(port)
        return port

    def _add_interface(self, port: Port, name: str, row: Any) -> None:
        interface = self.interfaces[name] = Interface(name, row, port)
        port.interfaces.append(interface)
