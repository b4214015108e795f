"""Controllers, fail modes, managers and keys: ``set-controller``, ``get-fail-mode``, ``set-manager``, ``get-ssl``."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from ovsvhost.errors import ConfigError
from ovsvhost.vsctl.bridge_verbs import c_integer, put_sorted
from ovsvhost.vsctl.console import warn
from ovsvhost.vsctl.datum import Datum
from ovsvhost.vsctl.grammar import UNBOUNDED, Verb
from ovsvhost.vsctl.topology import need_topology, topology

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ovsvhost.vsctl.context import Context
    from ovsvhost.vsctl.names import Needs

_TARGET = re.compile(r"p?(?:tcp|ssl|unix):")
_FAIL_MODES = ("standalone", "secure")
_SSL_LINES = {
    "private_key": "Private key",
    "certificate": "Certificate",
    "ca_cert": "CA Certificate",
    "bootstrap_ca_cert": "Bootstrap",
}


def _need_controllers(needs: Needs, *_: object) -> None:
    need_topology(needs)
    needs.add("Controller", "target", "inactivity_probe")


def _targets(context: Context, owner: Any, column: str) -> list[str]:
    """The targets of the controllers or managers that a row refers to."""
    context.db.verify(owner, column)
    rows = context.db.referred(owner, column)
    for row in rows:
        context.db.verify(row, "target")
    return [context.db.text(row, "target") for row in rows]


def _replace(context: Context, owner: Any, column: str, table: str, targets: Iterable[str]) -> None:
    """Deletes the controllers or managers that a row refers to, and makes new ones."""
    db = context.db
    for row in db.referred(owner, column):
        db.delete(row)
    new = []
    for target in targets:
        if not _TARGET.match(target):
            warn("vsctl", f'target type "{target}" is possibly erroneous')
        row = db.insert(table)
        db.write(row, "target", Datum.of_keys([target]))
        probe = context.option("--inactivity-probe")
        if probe is not None:
            db.write(row, "inactivity_probe", Datum.of_keys([c_integer(probe)]))
        new.append(row.uuid)
    db.write(owner, column, Datum.of_keys(new))


def _get_controller(context: Context) -> None:
    bridge = topology(context).bridge(context.arguments[0])
    put_sorted(context, _targets(context, bridge.row, "controller"))


def _del_controller(context: Context) -> None:
    row = topology(context).real_bridge(context.arguments[0]).row
    if _targets(context, row, "controller"):
        _replace(context, row, "controller", "Controller", [])


def _set_controller(context: Context) -> None:
    row = topology(context).real_bridge(context.arguments[0]).row
    _targets(context, row, "controller")
    _replace(context, row, "controller", "Controller", context.arguments[1:])


def _get_fail_mode(context: Context) -> None:
    row = topology(context).bridge(context.arguments[0]).row
    context.db.verify(row, "fail_mode")
    mode = context.db.text(row, "fail_mode")
    if mode:
        context.put(f"{mode}\n")


def _del_fail_mode(context: Context) -> None:
    context.db.write(topology(context).real_bridge(context.arguments[0]).row, "fail_mode", Datum())


def _set_fail_mode(context: Context) -> None:
    name, mode = context.arguments
    row = topology(context).real_bridge(name).row
    if mode not in _FAIL_MODES:
        raise ConfigError('fail-mode must be "standalone" or "secure"')
    context.db.write(row, "fail_mode", Datum.of_keys([mode]))


def _need_managers(needs: Needs, *_: object) -> None:
    needs.add("Open_vSwitch", "manager_options")
    needs.add("Manager", "target", "inactivity_probe")


def _get_manager(context: Context) -> None:
    put_sorted(context, list(set(_targets(context, context.shared.root, "manager_options"))))


def _del_manager(context: Context) -> None:
    _targets(context, context.shared.root, "manager_options")
    _replace(context, context.shared.root, "manager_options", "Manager", [])


def _set_manager(context: Context) -> None:
    _targets(context, context.shared.root, "manager_options")
    _replace(context, context.shared.root, "manager_options", "Manager", context.arguments)


def _need_ssl(needs: Needs, *_: object) -> None:
    needs.add("Open_vSwitch", "ssl")
    needs.add("SSL", *_SSL_LINES)


def _get_ssl(context: Context) -> None:
    context.db.verify(context.shared.root, "ssl")
    for row in context.db.referred(context.shared.root, "ssl"):
        for column, label in _SSL_LINES.items():
            context.db.verify(row, column)
            context.put(f"{label}: {context.db.read(row, column).bare()}\n")


def _del_ssl(context: Context) -> None:
    root = context.shared.root
    for row in context.db.referred(root, "ssl"):
        context.db.verify(root, "ssl")
        context.db.delete(row)
        context.db.write(root, "ssl", Datum())


def _set_ssl(context: Context) -> None:
    db, root = context.db, context.shared.root
    db.verify(root, "ssl")
    for row in db.referred(root, "ssl"):
        db.delete(row)
    new = db.insert("SSL")
    for column, value in zip(_SSL_LINES, context.arguments, strict=False):
        db.write(new, column, Datum.of_keys([value]))
    db.write(new, "bootstrap_ca_cert", Datum.of_keys([context.has("--bootstrap")]))
    db.write(root, "ssl", Datum.of_keys([new.uuid]))


VERBS = (
    Verb("get-controller", 1, 1, "BRIDGE", _get_controller, _need_controllers),
    Verb("del-controller", 1, 1, "BRIDGE", _del_controller, _need_controllers),
    Verb(
        "set-controller",
        1,
        UNBOUNDED,
        "BRIDGE TARGET...",
        _set_controller,
        _need_controllers,
        options=("--inactivity-probe=",),
    ),
    Verb("get-fail-mode", 1, 1, "BRIDGE", _get_fail_mode, need_topology),
    Verb("del-fail-mode", 1, 1, "BRIDGE", _del_fail_mode, need_topology),
    Verb("set-fail-mode", 2, 2, "BRIDGE MODE", _set_fail_mode, need_topology),
    Verb("get-manager", 0, 0, "", _get_manager, _need_managers),
    Verb("del-manager", 0, 0, "", _del_manager, _need_managers),
    Verb(
        "set-manager",
        1,
        UNBOUNDED,
        "TARGET...",
        _set_manager,
        _need_managers,
        options=("--inactivity-probe=",),
    ),
    Verb("get-ssl", 0, 0, "", _get_ssl, _need_ssl),
    Verb("del-ssl", 0, 0, "", _del_ssl, _need_ssl),
    Verb(
        "set-ssl",
        3,
        3,
        "PRIVATE-KEY CERTIFICATE CA-CERT",
        _set_ssl,
        _need_ssl,
        options=("--bootstrap",),
    ),
)
