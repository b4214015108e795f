"""What is measured: frame sizes and directions, one transmitq polled by one core of the switch."""

from __future__ import annotations

from dataclasses import dataclass

_STANDARD_MTU = 1600
_JUMBO_MTU = 9000


@dataclass(frozen=True)
class Case:
    """One row of the table: split rings, mergeable receive buffers.

    Attributes:
        size: bytes of a frame, without FCS, as it lies in the ring.
        both: whether both guests send.
        must: what the ratio to each peer must reach, by the peer's name; with the project's own front-end.
    """

    size: int
    both: bool
    must: dict[str, float]

    @property
    def name(self) -> str:
        """What the row is called, and what ``--cases`` takes."""
        return f"{self.size}{'-both' if self.both else ''}"

    @property
    def title(self) -> str:
        """The same in words."""
        return f"{self.size} B, {'both directions' if self.both else 'one direction'}"

    @property
    def mtu(self) -> int:
        """``mtu_request`` of the ports: the same buffers for all up to 1518 B, jumbo ones past that."""
        return _STANDARD_MTU if self.size <= _STANDARD_MTU else _JUMBO_MTU


OVS = "ovs-dpdk"
TESTPMD = "testpmd"

CASES = (
    Case(64, both=False, must={OVS: 2.0, TESTPMD: 1.5}),
    Case(512, both=False, must={}),
    Case(1518, both=False, must={OVS: 1.4, TESTPMD: 1.2}),
    Case(9000, both=False, must={}),
    Case(64, both=True, must={}),
)
