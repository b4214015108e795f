"""A network device as the second port of a switch: a veth pair, one end the switch's, the other the generator's.

The pair is made anew for each switch, of the same make: OVS-DPDK keeps to a network namespace of its own, and its end
is put there. Neither end has an address, so the kernel has nothing of its own to say.
"""

from __future__ import annotations

from contextlib import suppress

from ovsvhost.testing.errors import RigError
from ovsvhost.testing.namespace import device_name, ip_command

_RING_FRAMES = 4096


class Cable:
    """One pair, until `unplug`.

    Args:
        owner: the process whose network namespace gets the switch's end; None leaves it in this one's.
        mtu: bytes, of both ends.
        more_to_send: queues that the switch's end has to send on besides its first.

    Attributes:
        near: the switch's end.
        far: the generator's.
    """

    def __init__(self, owner: int | None = None, *, mtu: int = 1500, more_to_send: int = 0) -> None:
        self.near, self.far = device_name("bn"), device_name("bf")
        one, many, size = "1", str(1 + more_to_send), ("mtu", str(mtu))
        ip_command(
            *("ip", "link", "add", self.near, *size, "numtxqueues", many, "numrxqueues", one, "type", "veth"),
            *("peer", "name", self.far, *size, "numtxqueues", one, "numrxqueues", many),
        )
        inside: tuple[str, ...] = ()
        if owner is not None:
            ip_command("ip", "link", "set", self.near, "netns", str(owner))
            inside = ("nsenter", f"--net=/proc/{owner}/ns/net", "--")
        for name, prefix in ((self.near, inside), (self.far, ())):
            ip_command("ip", "link", "set", name, "addrgenmode", "none", "up", prefix=prefix)

    @property
    def as_port(self) -> str:
        """The switch's end as DPDK names it, over AF_XDP; a virtual device's number goes into the braces."""
        return f"net_af_xdp{{}},iface={self.near}"

    @property
    def as_station(self) -> str:
        """The other end for a generator on DPDK, over AF_PACKET."""
        return f"net_af_packet{{}},iface={self.far},framecnt={_RING_FRAMES},qdisc_bypass=1"

    def unplug(self) -> None:
        """Deletes the pair; it may have gone with the process that had the other end."""
        with suppress(RigError):
            ip_command("ip", "link", "del", self.far)
