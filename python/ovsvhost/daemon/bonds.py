"""From a ``Port`` row with several interfaces to the bond that is meant: a pure function of the row and the machine.

What can be served and is asked for wrongly is not in force and said so; what cannot be served keeps the bond out, for a
bond that does something else than its neighbour expects loops or loses frames.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ovsvhost.errors import ConfigError
from ovsvhost.model import BOND_DELAY_MAX_MS, BOND_MODES, REBALANCE_DEFAULT_MS, Bond
from ovsvhost.nic.port import TYPE_OF
from ovsvhost.numeral import is_whole

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from ovsvhost.daemon.rows import InterfaceRow, PortRow
    from ovsvhost.model import BondMode, NicPort


def interpret(row: PortRow) -> tuple[Bond, tuple[str, ...]]:
    """Says which bond is meant, and what of it is not in force, a sentence each.

    Raises:
        ConfigError: it cannot be served; the text says why and the cure.
    """
    complaints: list[str] = []
    if row.other_config.get("bond-detect-mode", "carrier") != "carrier":
        complaints.append(
            f"other_config:bond-detect-mode={row.other_config['bond-detect-mode']!r} of port {row.name!r} is not in "
            "force (carrier is): clear it"
        )
    if row.other_config.get("all-members-active") == "true":
        complaints.append(
            f"other_config:all-members-active=true of port {row.name!r} is not in force: what is for all is taken from "
            "the active member only; clear it"
        )
    bond = Bond(
        key=row.uuid,
        name=row.name,
        mode=_mode(row),
        updelay_ms=_delay(row, "bond_updelay", row.bond_updelay, complaints),
        downdelay_ms=_delay(row, "bond_downdelay", row.bond_downdelay, complaints),
        primary=row.other_config.get("bond-primary") or None,
        rebalance_ms=_rebalance(row, complaints),
    )
    return bond, tuple(complaints)


def check_link(port: PortRow, row: InterfaceRow) -> None:
    """ConfigError if an interface cannot be a link of a bond."""
    if row.type not in TYPE_OF:
        names = ", ".join(interface.name for interface in port.interfaces)
        raise ConfigError(
            f"port {port.name!r} bonds {names}, and {row.name!r} has type={row.type!r}: only network devices can be "
            "bonded (type=afxdp, dpdk or system)"
        )


def last_active(row: PortRow, links: Iterable[NicPort], sysfs: Path) -> str | None:
    """The link whose device has the address in ``bond_active_slave``: it was active in an earlier run."""
    for link in links if row.bond_active_slave else ():
        try:
            address = (sysfs / "class/net" / link.device / "address").read_text()
        except OSError:  # the device is not there
            continue
        if address.strip() == row.bond_active_slave:
            return link.name
    return None


def _mode(row: PortRow) -> BondMode:
    asked = row.bond_mode or "active-backup"
    for mode in BOND_MODES:
        if mode == asked:
            return mode
    raise ConfigError(
        f"port {row.name!r} has bond_mode={asked}, which is not served yet, so it does not forward: "
        f"ovs-vsctl set port {row.name} bond_mode=active-backup, or bond_mode=balance-slb"
    )


def _rebalance(row: PortRow, complaints: list[str]) -> int:
    """In ms."""
    text = row.other_config.get("bond-rebalance-interval", str(REBALANCE_DEFAULT_MS))
    if is_whole(text) and int(text) <= BOND_DELAY_MAX_MS:
        return int(text)
    complaints.append(
        f"other_config:bond-rebalance-interval={text!r} of port {row.name!r} is not in force ({REBALANCE_DEFAULT_MS} "
        f"is): give milliseconds, 0..{BOND_DELAY_MAX_MS}"
    )
    return REBALANCE_DEFAULT_MS


def _delay(row: PortRow, column: str, asked_ms: int, complaints: list[str]) -> int:
    """In ms; as in Open vSwitch, less than none is none."""
    if asked_ms <= BOND_DELAY_MAX_MS:
        return max(0, asked_ms)
    complaints.append(
        f"{column}={asked_ms} of port {row.name!r} is not in force (0 is): give milliseconds, 0..{BOND_DELAY_MAX_MS}"
    )
    return 0
