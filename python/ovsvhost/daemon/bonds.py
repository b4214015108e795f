"""From a ``Port`` row with several interfaces to the bond that is meant: a pure function of the row and the machine.

What can be served and is asked for wrongly is not in force and said so; what cannot be served keeps the bond out, for a
bond that does something else than its neighbour expects loops or loses frames.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING

from ovsvhost.errors import ConfigError
from ovsvhost.model import (
    BOND_DELAY_MAX_MS,
    BOND_MODES,
    BOOLEANS,
    LACP_MAX,
    LACP_SYSTEM_PRIORITY_DEFAULT,
    REBALANCE_DEFAULT_MS,
    Bond,
    Lacp,
    LacpPort,
)
from ovsvhost.nic.port import TYPE_OF
from ovsvhost.numeral import is_whole

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from ovsvhost.daemon.rows import InterfaceRow, PortRow
    from ovsvhost.model import BondMode, NicPort

_ADDRESS = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")


def is_system(address: str) -> bool:
    """Whether this can be a system's own Ethernet address: not a group's, not all zeroes."""
    return bool(_ADDRESS.fullmatch(address)) and not int(address[:2], 16) & 1 and address != "00:00:00:00:00:00"


def interpret(row: PortRow, system: str) -> tuple[Bond, tuple[str, ...]]:
    """Says which bond is meant, and what of it is not in force, a sentence each.

    Args:
        row: the bond's row.
        system: the bridge's address, which the bond has for LACP if it is given no other.

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
    mode, lacp = _mode(row), _lacp(row, system, complaints)
    if mode == "balance-tcp" and lacp is None:
        complaints.append(
            f"port {row.name!r} has bond_mode=balance-tcp and no LACP, so it does not forward: "
            f"ovs-vsctl set port {row.name} lacp=active"
        )
    bond = Bond(
        key=row.uuid,
        name=row.name,
        mode=mode,
        lacp=lacp,
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
        f"port {row.name!r} has bond_mode={asked}, which is unknown, so it does not forward: "
        f"ovs-vsctl set port {row.name} bond_mode={', or bond_mode='.join(BOND_MODES)}"
    )


def lacp_port(row: InterfaceRow, ofport: int) -> tuple[LacpPort, tuple[str, ...]]:
    """What a link is to LACP, and what of that is not in force."""
    complaints: list[str] = []

    def number(key: str, least: int, default: int, name: str) -> int:
        what = f"other_config:{key}={{}} of interface {row.name!r} is not in force ({name} is)"
        return _number(row.other_config, key, (least, default), what, complaints)

    port = LacpPort(
        name=row.name,
        port_id=number("lacp-port-id", 1, ofport, "its ofport"),
        priority=number("lacp-port-priority", 1, LACP_MAX, str(LACP_MAX)),
        key=number("lacp-aggregation-key", 0, 0, "the bond's"),
    )
    return port, tuple(complaints)


def with_ports(bond: Bond, rows: Sequence[InterfaceRow], links: Sequence[NicPort]) -> Bond:
    """The bond with what its links are to LACP, if it speaks that."""
    if bond.lacp is None:
        return bond
    ofports = {link.name: link.ofport for link in links}
    ports = tuple(lacp_port(row, ofports[row.name])[0] for row in rows if row.name in ofports)
    # the same whichever of them are plugged in: a partner would take another key for another bond
    key = min(port.port_id for port in ports)
    return replace(bond, lacp=replace(bond.lacp, ports=ports, key=key))


def _lacp(row: PortRow, system: str, complaints: list[str]) -> Lacp | None:
    if row.lacp in (None, "off"):
        return None
    config, of = row.other_config, f"of port {row.name!r} is not in force"
    asked = config.get("lacp-system-id", system).lower()
    if not is_system(asked):
        complaints.append(
            f"other_config:lacp-system-id={config['lacp-system-id']!r} {of} ({system} is): give an Ethernet address, "
            "not a group's and not all zeroes"
        )
        asked = system
    time = config.get("lacp-time", "slow")
    if time not in ("fast", "slow"):
        complaints.append(f"other_config:lacp-time={time!r} {of} (slow is): give fast or slow")
    fallback = config.get("lacp-fallback-ab", "false")
    if fallback not in BOOLEANS:
        complaints.append(f"other_config:lacp-fallback-ab={fallback!r} {of} (false is): give true or false")
    default = (1, LACP_SYSTEM_PRIORITY_DEFAULT)
    what = f"other_config:lacp-system-priority={{}} {of} ({LACP_SYSTEM_PRIORITY_DEFAULT} is)"
    return Lacp(
        active=row.lacp == "active",
        fast=time == "fast",
        system=asked,
        system_priority=_number(config, "lacp-system-priority", default, what, complaints),
        fallback_ab=BOOLEANS.get(fallback, False),
    )


def _number(config: Mapping[str, str], key: str, limits: tuple[int, int], what: str, complaints: list[str]) -> int:
    """A number from the first of ``limits`` to 65535; the second where there is none."""
    least, default = limits
    text = config.get(key)
    if text is None:
        return default
    if is_whole(text) and least <= int(text) <= LACP_MAX:
        return int(text)
    complaints.append(f"{what.format(repr(text))}: give a number {least}..{LACP_MAX}")
    return default


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
