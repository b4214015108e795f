"""What the switch is, written back into the database's rows.

The columns are computed as values (``interface``, ``root``); a ``Written`` remembers what the database was told and
gives only what changed, as RFC 7047 operations. Nothing here decides anything.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ovsvhost.model import MTU_DEFAULT

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from ovsvhost._core import BondState, LacpLink, PortState
    from ovsvhost.daemon.verdict import Verdict
    from ovsvhost.nic.device import Facts
    from ovsvhost.nic.rtnetlink import Link
    from ovsvhost.store.idl import Operation

    Columns = dict[str, Any]

EMPTY: list[Any] = ["set", []]
_CLEARED: Mapping[str, Any] = {
    "ofport": -1, "error": EMPTY, "admin_state": EMPTY, "link_state": EMPTY, "link_resets": EMPTY, "mac_in_use": EMPTY,
    "mtu": EMPTY, "link_speed": EMPTY, "duplex": EMPTY, "ifindex": EMPTY, "status": ["map", []],
    "lacp_current": EMPTY,
}  # fmt: skip
_NO_DEVICE: Mapping[str, Any] = {"ofport": -1, "admin_state": EMPTY, "mtu": EMPTY}
"""Of a port whose device is not there: by the number ``ovs-vsctl`` knows that there is an error to be shown."""


def interface(
    verdict: Verdict,
    state: PortState | None,
    failure: str | None,
    pending: Iterable[str],
    device: tuple[Link, Facts] | None = None,
    *,
    lacp: LacpLink | None = None,
) -> Columns:
    """The status columns of one row of ``Interface``.

    Args:
        verdict: what became of the row.
        state: its port in the datapath, if it is there.
        failure: why the datapath refused it or a change of it.
        pending: options that wait for a restart.
        device: what the kernel tells of a NIC port's device.
        lacp: what LACP has of it, if it is a link of a bond that speaks it.
    """
    errors = [*verdict.errors]
    if failure:
        errors.append(failure)
    columns: Columns = dict(_CLEARED)
    status: dict[str, str] = {}
    if verdict.kind == "local":
        columns |= {"ofport": verdict.ofport, "mac_in_use": verdict.mac, "mtu": MTU_DEFAULT}
        columns |= {"admin_state": "down", "link_state": "down", "link_resets": 0}
    elif verdict.kind == "waiting":
        columns |= {"ofport": verdict.ofport, "mac_in_use": verdict.mac, "link_state": "down", "admin_state": "up"}
        status = {"mode": "client", "status": "waiting for options:vhost-server-path"}
    elif state is not None:
        is_missing = verdict.device is not None and device is None
        if state.error:
            errors.append(state.error)
        elif is_missing:
            # the port's own thread finds out a moment later; by then ovs-vsctl has shown what stands beside the number
            errors.append(f"there is no network device {verdict.device}: create it, or name another")
        status = dict(state.status)
        columns |= {
            "ofport": state.ofport,
            "admin_state": "up" if state.admin_up else "down",
            "link_state": "up" if state.link_up else "down",
            "link_resets": state.link_resets,
            "mac_in_use": verdict.mac,
            "mtu": state.mtu,
        }
        if lacp is not None:
            # as in Open vSwitch, what was said of late counts for a while after that
            columns["lacp_current"] = lacp.status != "defaulted"
        if device is not None:
            columns |= _device(*device)
        elif is_missing:
            columns |= _NO_DEVICE
    waiting = ",".join(pending)
    if waiting and verdict.kind != "local":
        status["pending-restart"] = waiting
    columns["status"] = string_map(status)
    columns["error"] = text("; ".join(errors)) if errors else EMPTY
    return columns


def _device(link: Link, facts: Facts) -> Columns:
    """A device's columns; what its driver does not know stays empty."""
    columns: Columns = {
        "admin_state": "up" if link.admin_up else "down",
        "ifindex": link.ifindex,
        "link_speed": EMPTY if facts.speed is None else facts.speed,
        "duplex": EMPTY if facts.duplex is None else facts.duplex,
    }
    if link.mac:
        columns["mac_in_use"] = link.mac
    return columns


def bond(state: BondState, macs: Mapping[str, str]) -> Columns:
    """The status columns of a bond's row of ``Port``; ``macs`` has the links' addresses by name."""
    return {"bond_active_slave": macs.get(state.active or "", EMPTY)}


def stopped(columns: Columns) -> Columns:
    """What is left of a port's status when the switch has stopped."""
    if columns.get("link_state") != "up":
        return columns
    return {**columns, "link_state": "down", "status": string_map({"status": "the switch has stopped"})}


def string_map(values: Mapping[str, str]) -> list[Any]:
    """An OVSDB map of strings."""
    return ["map", [[text(key), text(value)] for key, value in sorted(values.items())]]


def number_map(values: Mapping[str, int]) -> list[Any]:
    """An OVSDB map of numbers; a counter past 2⁶³ - 1 stands still there, as in OVS."""
    return ["map", [[text(key), min(value, 2**63 - 1)] for key, value in sorted(values.items())]]


def string_set(values: Iterable[str]) -> list[Any]:
    """An OVSDB set of strings."""
    return ["set", sorted(values)]


def text(value: str) -> str:
    """``value`` as a database takes it: UTF-8, and no NUL."""
    return value.encode(errors="backslashreplace").decode().replace("\0", "\\0")


class Written:
    """What the database was told in this connection, by row."""

    def __init__(self) -> None:
        self._rows: dict[tuple[str, str], Columns] = {}

    def update(self, table: str, uuid: str, columns: Columns) -> list[Operation]:
        """The operation that brings the row to ``columns``; none when it is there already."""
        known = self._rows.setdefault((table, uuid), {})
        changed = {column: value for column, value in columns.items() if known.get(column) != value}
        if not changed:
            return []
        known |= changed
        return [{"op": "update", "table": table, "where": [["_uuid", "==", ["uuid", uuid]]], "row": changed}]

    def forget(self) -> None:
        """After a lost connection or a refused transaction: nothing is certain."""
        self._rows.clear()

    def keep_only(self, uuids: Iterable[str]) -> None:
        """Drops the rows that are gone."""
        alive = set(uuids)
        self._rows = {key: columns for key, columns in self._rows.items() if key[1] in alive}
