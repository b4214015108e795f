"""The commands on the switch as a whole: ``init``, ``show``, ``emer-reset``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ovsvhost.vsctl.datum import Datum
from ovsvhost.vsctl.grammar import Verb
from ovsvhost.vsctl.names import vswitch_schema
from ovsvhost.vsctl.replica import default

if TYPE_CHECKING:
    from ovsvhost.vsctl.context import Context
    from ovsvhost.vsctl.names import Needs


@dataclass(frozen=True, slots=True)
class _Shown:
    """How ``show`` prints a table's rows.

    Attributes:
        name: the column that heads a row, None for its uuid.
        columns: the columns below it; one that refers to another shown table prints that one's rows.
    """

    name: str | None
    columns: tuple[str, ...]


_SHOWN = {
    "Open_vSwitch": _Shown(None, ("manager_options", "bridges", "ovs_version")),
    "Bridge": _Shown("name", ("controller", "fail_mode", "datapath_type", "ports")),
    "Port": _Shown("name", ("tag", "trunks", "interfaces")),
    "Interface": _Shown("name", ("type", "options", "error", "bfd_status")),
    "Controller": _Shown("target", ("is_connected",)),
    "Manager": _Shown("target", ("is_connected",)),
}
_INDENT = 4

# What emer-reset empties, by table; "hwaddr" in a bridge's other_config survives.
_RESET_COLUMNS = {
    "Open_vSwitch": ("manager_options", "ssl"),
    "Bridge": ("controller", "fail_mode", "mirrors", "netflow", "sflow", "ipfix", "flood_vlans", "other_config"),
    "Port": ("other_config",),
    "Interface": ("ingress_policing_rate", "ingress_policing_burst"),
}
_RESET_TABLES = ("Mirror", "Controller", "Manager", "NetFlow", "SSL", "sFlow", "IPFIX")


def _init(_context: Context) -> None:
    """Does nothing: the one row of table ``Open_vSwitch`` is there by now, whatever the command."""


def _need_shown(needs: Needs, *_: object) -> None:
    for table, shown in _SHOWN.items():
        needs.add(table, *shown.columns, *([shown.name] if shown.name else []))


def _show(context: Context) -> None:
    for row in context.db.rows("Open_vSwitch"):
        _show_row(context, "Open_vSwitch", row, level=0, above=())


def _show_row(context: Context, table: str, row: Any, *, level: int, above: tuple[str, ...]) -> None:
    shown, columns = _SHOWN[table], vswitch_schema().tables[table].columns
    title = str(row.uuid)
    if shown.name is not None:
        title = f"{table} {context.db.read(row, shown.name).text(columns[shown.name].type)}"
    context.put(f"{' ' * _INDENT * level}{title}\n")
    if table in above:
        return
    for name in shown.columns:
        type_ = columns[name].type
        if type_.key.ref_table_name in _SHOWN:
            for each in context.db.referred(row, name):
                _show_row(context, type_.key.ref_table_name, each, level=level + 1, above=(*above, table))
            continue
        value = context.db.read(row, name)
        if value != default(type_):
            context.put(f"{' ' * _INDENT * (level + 1)}{name}: {value.text(type_)}\n")


def _need_reset(needs: Needs, *_: object) -> None:
    for table, columns in _RESET_COLUMNS.items():
        needs.add(table, *columns)
    for table in _RESET_TABLES:
        needs.add(table)


def _emer_reset(context: Context) -> None:
    db = context.db
    for table, columns in _RESET_COLUMNS.items():
        for row in db.rows(table):
            for column in columns:
                kept = default(vswitch_schema().tables[table].columns[column].type)
                if (table, column) == ("Bridge", "other_config"):
                    kept = Datum.of(pair for pair in db.read(row, column).pairs if pair[0] == "hwaddr")
                db.write(row, column, kept)
    for table in _RESET_TABLES:
        for row in db.rows(table):
            db.delete(row)
    context.forget_topology()


VERBS = (
    Verb("init", 0, 0, "", _init),
    Verb("show", 0, 0, "", _show, _need_shown),
    Verb("emer-reset", 0, 0, "", _emer_reset, _need_reset),
)
