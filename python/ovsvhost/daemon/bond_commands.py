"""What ``ovs-appctl`` asks about bonds, in Open vSwitch 3.1's own layout: scripts cut these texts by column.

There is no recirculation here and no ``lb_output`` action, and the lines about them say so in OVS's words.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ovsvhost.model import NO_MAC

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from ovsvhost._core import BondLink, BondState


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
    yield "lacp_status: off"
    yield "lacp_fallback_ab: false"
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
    yield f"  may_enable: {'true' if link.may_enable else 'false'}"
