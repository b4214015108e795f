"""What ``ovs-appctl`` asks about bonds and LACP, in Open vSwitch 3.1's own layout: scripts cut these texts by column.

There is no recirculation here and no ``lb_output`` action, and the lines about them say so in OVS's words.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ovsvhost.model import NO_MAC

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from ovsvhost._core import BondLink, BondState, LacpLink


def bond_list(bonds: Sequence[BondState]) -> str:
    """``bond/list``."""
    lines = ["bond\ttype\trecircID\tmembers"]
    lines += [f"{bond.name}\t{bond.mode}\t0\t{', '.join(link.name for link in bond.links)}" for bond in bonds]
    return "".join(f"{line}\n" for line in lines)


def bond_show(bonds: Sequence[BondState], macs: Mapping[str, str]) -> str:
    """``bond/show [PORT]``; ``macs`` has the links' addresses by name."""
    return "".join(f"{line}\n" for bond in bonds for line in _show(bond, macs))


def _show(bond: BondState, macs: Mapping[str, str]) -> Iterator[str]:
    yield f"---- {bond.name} ----"
    yield f"bond_mode: {bond.mode}"
    yield "bond may use recirculation: no, Recirc-ID : -1"
    yield "bond-hash-basis: 0"
    yield "lb_output action: disabled, bond-id: -1"
    if bond.mode == "balance-slb":
        yield "all members active: false"
    yield f"updelay: {bond.updelay_ms} ms"
    yield f"downdelay: {bond.downdelay_ms} ms"
    if bond.rebalance_ms is not None:
        yield f"next rebalance: {bond.rebalance_ms} ms"
    lacp = bond.lacp
    yield f"lacp_status: {'off' if lacp is None else 'negotiated' if lacp.negotiated else 'configured'}"
    yield f"lacp_fallback_ab: {_truth(lacp is not None and lacp.fallback_ab)}"
    missing = bond.primary is not None and all(link.name != bond.primary for link in bond.links)
    yield f"active-backup primary: {bond.primary or '<none>'}{' (no such member)' if missing else ''}"
    yield f"active member mac: {macs.get(bond.active or '', NO_MAC)}({bond.active or 'none'})"
    for link in bond.links:
        yield ""
        yield from _link(link, is_active=link.name == bond.active)
        if bond.rebalance_ms is not None:
            yield from (f"  hash {share}: {size >> 10} kB load" for share, size in link.shares if size >> 10)
    yield ""


def _link(link: BondLink, *, is_active: bool) -> Iterator[str]:
    yield f"member {link.name}: {'enabled' if link.enabled else 'disabled'}"
    if is_active:
        yield "  active member"
    if link.due_ms is not None:
        yield f"  {'downdelay' if link.enabled else 'updelay'} expires in {link.due_ms} ms"
    yield f"  may_enable: {_truth(link.may_enable)}"


def lacp_show(bonds: Sequence[BondState]) -> str:
    """``lacp/show [PORT]`` of bonds that speak it."""
    return "".join(f"{line}\n" for bond in bonds for line in _show_lacp(bond))


def _show_lacp(bond: BondState) -> Iterator[str]:
    lacp = bond.lacp
    if lacp is None:
        return
    yield f"---- {bond.name} ----"
    yield f"  status: {'active' if lacp.active else 'passive'}{' negotiated' if lacp.negotiated else ''}"
    yield f"  sys_id: {lacp.system}"
    yield f"  sys_priority: {lacp.system_priority}"
    yield f"  aggregation key: {lacp.key}"
    yield f"  lacp_time: {'fast' if lacp.fast else 'slow'}"
    for link in bond.links:
        if link.lacp is not None:
            yield ""
            yield from _show_lacp_link(link.name, link.lacp)


def _show_lacp_link(name: str, link: LacpLink) -> Iterator[str]:
    yield f"member: {name}: {link.status} {'attached' if link.attached else 'detached'}"
    yield f"  port_id: {link.actor.port}"
    yield f"  port_priority: {link.actor.port_priority}"
    yield f"  may_enable: {_truth(link.may_enable)}"
    for which, end in (("actor", link.actor), ("partner", link.partner)):
        yield ""
        yield f"  {which} sys_id: {end.system}"
        yield f"  {which} sys_priority: {end.system_priority}"
        yield f"  {which} port_id: {end.port}"
        yield f"  {which} port_priority: {end.port_priority}"
        yield f"  {which} key: {end.key}"
        yield f"  {which} state:{''.join(f' {bit}' for bit in end.state)}"


def _truth(value: bool) -> str:
    return "true" if value else "false"
