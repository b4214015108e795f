"""What becomes of a row of ``Interface``: exactly one verdict each.

::

    local     the bridge's own port: number 65534, never in the datapath
    active    goes into `Desired`
    waiting   a client port without a path: keeps its number, is not built
    refused   its ``error`` says what, why and the cure; ofport is -1
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from ovsvhost.model import NO_MAC

if TYPE_CHECKING:
    from ovsvhost.daemon.rows import InterfaceRow
    from ovsvhost.model import AnyPort


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What became of one row of ``Interface``.

    Attributes:
        uuid: the row; it is the port's ``key`` too.
        name: the port's name.
        bridge: the bridge it is on.
        kind: see the page above.
        ofport: 65534, the number it has or keeps, or -1.
        errors: sentences for the row's ``error``.
        mac: what ``mac_in_use`` shows.
        device: the network device of a NIC port.
    """

    uuid: str
    name: str
    bridge: str
    kind: Literal["local", "active", "waiting", "refused"]
    ofport: int
    errors: tuple[str, ...] = ()
    mac: str = NO_MAC
    device: str | None = None


@dataclass(frozen=True, slots=True)
class Wanted:
    """One row that can be served, before sockets, devices and numbers are shared out.

    Attributes:
        claims: the socket or device, of which there is one for one port.
        port: what is built, its number to come; None while it waits for a path.
    """

    row: InterfaceRow
    bridge: str
    errors: tuple[str, ...]
    claims: tuple[Literal["socket", "device"], str] | None
    port: AnyPort | None


def keep_out(verdict: Verdict, *errors: str) -> Verdict:
    """The same row, kept out for these reasons."""
    return replace(verdict, kind="refused", ofport=-1, errors=errors)
