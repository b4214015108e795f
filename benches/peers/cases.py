"""What is measured: the rows of the comparison, who takes part in each, and what has to be reached.

A row is one setting in which contestants are measured in turns. Most rows set the switches side by side; some set one
way of using ours beside another. A goal names a number of a row and what it is compared with; ``1.0`` means parity,
and parity is met within what five interleaved pairs can tell apart (`PARITY`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal

OURS = "ovsvhost"
OURS_AWAKE = "ovsvhost without sleep"
OURS_TOO = "ovsvhost again"
OURS_TWO_PMDS = "ovsvhost on both cores"
OURS_POSTCOPY = "ovsvhost with post-copy"
OURS_IOMMU = "ovsvhost with IOMMU support"
OVS = "ovs-dpdk"
OVS_FLOWS = "ovs-dpdk with two flows"
OVS_TSO = "ovs-dpdk with TSO"
OVS_POSTCOPY = "ovs-dpdk with post-copy"
OVS_IOMMU = "ovs-dpdk with IOMMU support"
TESTPMD = "testpmd"

SWITCHES = (OURS, OVS, OVS_FLOWS, TESTPMD)
"""Side by side, in this order."""

PARITY = 0.97
"""A ratio that is to be 1.0 is met from here on."""
LATENCY_PARITY = 1.05
"""The same for times, which are to be at most the peer's."""
GENERATOR_LIMITS = 0.1
"""Where the sender finds its ring full less often than this, the sender is the limit and cycles are compared."""

_STANDARD_MTU = 1600
_JUMBO_MTU = 9000
_ETHERNET = 1514
"""Bytes of the longest frame over a cable of usual MTU."""


class Load(StrEnum):
    """Who sends and receives."""

    OWN = "own front-end"
    VIRTIO_USER = "virtio-user, back-off 2 µs"
    VIRTIO_USER_POLLING = "virtio-user, no back-off"
    ROUND_TRIPS = "one frame in flight"
    HALF = f"own front-end, half of what {TESTPMD} takes"
    PACED = "own front-end, 200 000 frames a second"
    MOVE = "own front-end, stopped here and started there at once"
    MOVE_KERNEL = "Linux guests in QEMU, emulated"
    KERNEL = "two Linux guests in QEMU, emulated"
    SILENT = "silent guests"


@dataclass(frozen=True)
class Case:
    """How ports and guests are set up.

    Attributes:
        size: bytes of a frame, without FCS, as it lies in the ring.
        both: whether both guests send.
        packed: packed rings instead of split ones.
        layout: descriptors of a sent frame, as ``vhost-frontend`` names them.
        ports: ports of the bridge; the guests of those without traffic are connected and silent.
        pairs: pairs of guests with traffic, each with a core for its generator.
        queues: queue pairs of a guest, and flows that are spread over them.
        addresses: MAC addresses behind the receiving port, sent to in turn.
        interval_us: round trips: from one frame to the next, µs; 0: at once.
        nic: ``out``: the guest sends to a network device, the switch's other port; ``in``: it gets what that sends.
        iommu_kib: KiB of the pages in which the IOMMU before each guest's device maps its memory, once for all; 0: no
            guest has one.
        buffers: buffers of a queue, used in turn, each on a page of its own; 0: one for each entry of the usual ring,
            side by side.
        zero_copy: whether the sender's port has ``dq-zero-copy``; None where the cable has no queue for it either.
        log: whether what is written to the receiver is marked in a dirty log, as ``vhost-frontend`` names it.
        others: what guests of ports without traffic do: ``silent`` ones are connected, ``absent`` ones are not, and the
            first of those that are ``arriving`` comes by post-copy meanwhile, its pages late.
    """

    size: int = 64
    both: bool = False
    packed: bool = False
    layout: str = "one"
    ports: int = 2
    pairs: int = 1
    queues: int = 1
    addresses: int = 1
    interval_us: int = 0
    nic: Literal["", "out", "in"] = ""
    iommu_kib: int = 0
    buffers: int = 0
    zero_copy: bool | None = None
    log: str = "no"
    others: str = "silent"

    @property
    def mtu(self) -> int:
        """``mtu_request`` of the ports: the same buffers for all up to 1518 B, jumbo ones past that."""
        return _STANDARD_MTU if self.size <= _STANDARD_MTU else _JUMBO_MTU

    @property
    def cable_mtu(self) -> int:
        """MTU of a network device."""
        return 1500 if self.size <= _ETHERNET else _JUMBO_MTU


@dataclass(frozen=True)
class Contestant:
    """One side of a comparison: a switch in a setting, under a name."""

    name: str
    switch: str
    case: Case


@dataclass(frozen=True)
class Goal:
    """A number that has to be reached.

    Attributes:
        metric: ``pps``, ``bits_per_s``, ``cycles_per_packet``, ``p50_us``, ``p99_us``, ``p999_us``, ``outage_ms`` or
            ``cores``.
        of: the contestant that is judged.
        by: the contestant it is divided by, round by round; None judges the number itself.
        must: what has to be reached; a floor for rates, a ceiling for all else; None where there is only an aim.
        aim: what is hoped for.
        scale: what the number is multiplied with when shown.
        unit: what it is then called.
    """

    metric: str
    of: str
    by: str | None
    must: float | None
    aim: float
    scale: float = 1.0
    unit: str = ""

    @property
    def is_floor(self) -> bool:
        """Whether more is better."""
        return self.metric in {"pps", "bits_per_s"}

    def is_reached(self, value: float, limit: float) -> bool:
        """Whether ``value`` keeps ``limit``, which is `must` or `aim`; parity is judged with its tolerance."""
        if limit == 1.0 and self.by is not None:
            limit = PARITY if self.is_floor else LATENCY_PARITY
        return value >= limit if self.is_floor else value <= limit


@dataclass(frozen=True)
class Row:
    """One line of the comparison.

    Attributes:
        name: what ``--rows`` takes.
        title: the same in words.
        load: who sends and receives.
        contestants: who is measured, in turns.
        goals: what has to be reached.
        rounds_at_most: fewer rounds than asked for, where a row is only reported.
        is_crowded: whether more threads than cores take part: waiting then spoils no window, it is what limits.
        is_drawn: whether the picture has it: its numbers are of the size of the others'.
    """

    name: str
    title: str
    load: Load
    contestants: tuple[Contestant, ...]
    goals: tuple[Goal, ...] = field(default=())
    rounds_at_most: int = 100
    is_crowded: bool = False
    is_drawn: bool = True


def _beside(case: Case, switches: tuple[str, ...] = SWITCHES) -> tuple[Contestant, ...]:
    return tuple(Contestant(switch, switch, case) for switch in switches)


def _times(ovs: tuple[float, float] | None, testpmd: tuple[float, float]) -> tuple[Goal, ...]:
    """Rates as multiples of the peers', each ``(must, aim)``."""
    goals = [Goal("pps", OURS, TESTPMD, *testpmd)]
    return (Goal("pps", OURS, OVS, *ovs), *goals) if ovs else tuple(goals)


_SWITCHING = (OURS, OVS, TESTPMD)
"""One of each kind: what rows can do with that are about something else than what a lookup costs."""


def _virtio_user() -> list[Row]:
    rows = []
    for both in (False, True):
        for packed in (False, True):
            for load in (Load.VIRTIO_USER, Load.VIRTIO_USER_POLLING):
                words = ["virtio-user", *["packed"] * packed, *["polling"] * (load is Load.VIRTIO_USER_POLLING)]
                rows.append(
                    Row(
                        "-".join([*words, *["both"] * both]),
                        f"64 B, {'both directions' if both else 'one direction'}, {'packed' if packed else 'split'}",
                        load,
                        _beside(Case(both=both, packed=packed), _SWITCHING if both else SWITCHES),
                        () if both else _times((1.3, 2.0), (1.0, 1.4)),
                        rounds_at_most=3 if both else 100,
                    )
                )
    return rows


def _nic() -> list[Row]:
    """A guest and a veth pair over AF_XDP."""
    words = {"out": "guest to NIC", "in": "NIC to guest"}
    return [
        Row(
            f"nic-{way}-{size}",
            f"{size} B, {words[way]} (AF_XDP on veth), split",
            Load.VIRTIO_USER,
            _beside(Case(size, nic=way), _SWITCHING),
            _times((1.0, 1.2), (0.95, 1.0)),
        )
        for way in ("out", "in")
        for size in (64, 1500)
    ]


def _zero_copy() -> list[Row]:
    """What `dq-zero-copy` saves, from below the size from which on it is used."""
    return [
        Row(
            f"nic-zero-copy-{size}",
            f"{size} B, guest to NIC (AF_XDP on veth), split, with dq-zero-copy and without",
            Load.VIRTIO_USER,
            (
                Contestant(OURS, OURS, Case(size, nic="out", zero_copy=False)),
                Contestant(_ZERO_COPY, OURS_TOO, Case(size, nic="out", zero_copy=True)),
            ),
            tuple(Goal(metric, _ZERO_COPY, OURS, 1.0 if size >= _ZERO_COPY_MIN else None, 1.0) for metric in _CURVE),
            is_drawn=False,
        )
        for size in _ZERO_COPY_SIZES
    ]


_ZERO_COPY = "ovsvhost, dq-zero-copy"
_ZERO_COPY_SIZES, _ZERO_COPY_MIN = (512, 1024, 1500, 2048, 4096, 9000), 1024
"""Shorter frames are copied all the same."""
_CURVE = ("cycles_per_packet", "pps")
_ONE, _TWO, _INDIRECT = "one descriptor", "header and data", "indirect"
_FEW_PORTS, _MANY_PORTS = "2 ports", "100 ports"
_ONE_ADDRESS, _MANY_ADDRESSES = "1 address", "100 000 addresses"
_MANY_QUEUES = 8
_ALONE, _BESIDE = "ovsvhost, the pair alone", "ovsvhost, beside it"
_LOGGED, _LOGGED_BEFORE = "ovsvhost, dirty log", "ovsvhost, dirty log off again"
_ALL_GUESTS = 32
_HUGE_PAGE_KIB = 2048
_MANY_BUFFERS = 10_000
_TENTH_KIB = 4096
"""A tenth of what so many buffers take, rounded up to a page size."""
_GUARDED = "ovsvhost, guests with an IOMMU"
_FEW_MAPPINGS, _MANY_MAPPINGS = "ovsvhost, 10 mappings", "ovsvhost, 10 000 mappings"

_BESIDE_ARRIVING = tuple(
    Contestant(f"{name}, {which}", switch, Case(ports=3, others=others))
    for name, switch in ((OURS, OURS_POSTCOPY), (OVS, OVS_POSTCOPY))
    for which, others in (("the pair alone", "absent"), ("beside it", "arriving"))
)
"""A pair of guests, and the same while a third moves in."""

ROWS = (
    Row(
        "64",
        "64 B, one direction, split",
        Load.OWN,
        _beside(Case()),
        (
            *_times((2.5, 3.5), (1.7, 2.5)),
            Goal("cycles_per_packet", OURS, None, 180, 120, unit="cycles a packet"),
            Goal("cycles_per_packet", OURS, OVS, 0.5, 0.3),
        ),
    ),
    Row("64-both", "64 B, both directions, split", Load.OWN, _beside(Case(both=True)), _times((2.3, 3), (1.9, 2.5))),
    Row(
        "64-packed", "64 B, one direction, packed", Load.OWN, _beside(Case(packed=True)), _times((2.4, 3.5), (1.5, 2.3))
    ),
    Row("512", "512 B, one direction, split", Load.OWN, _beside(Case(512)), _times((2.2, 2.8), (1.7, 2.2))),
    Row("1518", "1518 B, one direction, split", Load.OWN, _beside(Case(1518)), _times((1.5, 2), (1.3, 1.6))),
    Row("9000", "9000 B, one direction, split", Load.OWN, _beside(Case(9000)), _times((1.6, 2), (1.25, 1.6))),
    Row(
        "layouts",
        "64 B, what Linux guests post",
        Load.OWN,
        (
            Contestant(_ONE, OURS, Case()),
            Contestant(_TWO, OURS, Case(layout="two")),
            Contestant(_INDIRECT, OURS, Case(layout="indirect:2")),
        ),
        (
            Goal("cycles_per_packet", _TWO, _ONE, 1.25, 1.1),
            Goal("cycles_per_packet", _INDIRECT, _ONE, 1.25, 1.1),
        ),
    ),
    *_virtio_user(),
    *_nic(),
    *_zero_copy(),
    Row(
        "round-trips",
        "one 64 B frame there and back, the next at once",
        Load.ROUND_TRIPS,
        _beside(Case(), _SWITCHING),
        (
            Goal("p50_us", OURS, TESTPMD, 1.0, 1.0),
            Goal("p99_us", OURS, TESTPMD, 1.0, 1.0),
            Goal("p50_us", OURS, None, None, 2, unit="µs at the median"),
            Goal("p99_us", OURS, None, None, 3, unit="µs at p99"),
        ),
    ),
    Row(
        "round-trips-ms",
        "one 64 B frame there and back each ms",
        Load.ROUND_TRIPS,
        _beside(Case(interval_us=1000), (OURS, OURS_AWAKE, OVS, TESTPMD)),
        (Goal("p50_us", OURS, None, 50, 25, unit="µs at the median"),),
    ),
    Row(
        "half-load",
        "64 B, one direction, split: how long frames are on their way",
        Load.HALF,
        _beside(Case(), _SWITCHING),
        tuple(Goal(metric, OURS, TESTPMD, 1.0, 1.0) for metric in ("p50_us", "p99_us", "p999_us")),
    ),
    Row(
        "tcp",
        "TCP from guest to guest",
        Load.KERNEL,
        _beside(Case(), (OURS, OVS, OVS_TSO)),
        (Goal("bits_per_s", OURS, OVS_TSO, 1.0, 1.2), Goal("bits_per_s", OURS, OVS, None, 1.0)),
    ),
    Row(
        "queues",
        f"64 B, one direction, split, {_MANY_QUEUES} queue pairs",
        Load.OWN,
        _beside(Case(queues=_MANY_QUEUES), _SWITCHING),
        rounds_at_most=3,
    ),
    Row(
        "ports",
        "64 B, two of many ports with traffic",
        Load.OWN,
        (Contestant(_FEW_PORTS, OURS, Case()), Contestant(_MANY_PORTS, OURS_TOO, Case(ports=100))),
        (Goal("pps", _MANY_PORTS, _FEW_PORTS, 0.95, 1.0),),
    ),
    Row(
        "addresses",
        "64 B, each frame to another address",
        Load.OWN,
        (Contestant(_ONE_ADDRESS, OURS, Case()), Contestant(_MANY_ADDRESSES, OURS_TOO, Case(addresses=100_000))),
        (Goal("pps", _MANY_ADDRESSES, _ONE_ADDRESS, 0.85, 0.95),),
    ),
    Row(
        "logging",
        "64 B, while the receiving guest moves: every page written to it is marked",
        Load.OWN,
        (
            Contestant(OURS, OURS, Case()),
            Contestant(_LOGGED, OURS, Case(log="yes")),
            Contestant(_LOGGED_BEFORE, OURS, Case(log="off-again")),
            Contestant(OVS, OVS, Case()),
            Contestant("ovs-dpdk, dirty log", OVS, Case(log="yes")),
        ),
        (Goal("pps", _LOGGED, OURS, 0.85, 0.95), Goal("pps", _LOGGED_BEFORE, OURS, 1.0, 1.0)),
    ),
    Row(
        "iommu",
        "64 B, with IOMMU support, and from and to guests whose IOMMU maps their memory in huge pages, once for all",
        Load.OWN,
        (
            Contestant(OURS, OURS, Case()),
            Contestant(OURS_IOMMU, OURS_IOMMU, Case()),
            Contestant(_GUARDED, OURS_IOMMU, Case(iommu_kib=_HUGE_PAGE_KIB)),
            Contestant(OVS, OVS, Case()),
            Contestant("ovs-dpdk, guests with an IOMMU", OVS_IOMMU, Case(iommu_kib=_HUGE_PAGE_KIB)),
        ),
        (Goal("pps", OURS_IOMMU, OURS, 1.0, 1.0), Goal("pps", _GUARDED, OURS, 0.9, 1.0)),
    ),
    Row(
        "iommu-mappings",
        "64 B, packed, 10 000 buffers on a page each, used in turn, from and to guests whose IOMMU maps them",
        Load.OWN,
        tuple(
            Contestant(name, switch, Case(packed=True, buffers=_MANY_BUFFERS, iommu_kib=kib))
            for name, switch, kib in (
                ("ovsvhost, no IOMMU", OURS_IOMMU, 0),
                (_FEW_MAPPINGS, OURS_IOMMU, _TENTH_KIB),
                (_MANY_MAPPINGS, OURS_IOMMU, 4),
                ("ovs-dpdk, 10 mappings", OVS_IOMMU, _TENTH_KIB),
                ("ovs-dpdk, 10 000 mappings", OVS_IOMMU, 4),
            )
        ),
        (Goal("pps", _MANY_MAPPINGS, _FEW_MAPPINGS, None, 0.5),),
        rounds_at_most=3,
        is_drawn=False,
    ),
    Row(
        "postcopy",
        "64 B, beside a guest of the same poll thread that waits for its memory (post-copy, each page 20 ms late)",
        Load.OWN,
        _BESIDE_ARRIVING,
        (Goal("pps", _BESIDE, _ALONE, 0.95, 1.0),),
    ),
    Row(
        "postcopy-times",
        "64 B, how long frames are on their way beside a guest in post-copy",
        Load.PACED,
        _BESIDE_ARRIVING,
        (Goal("p99_us", _BESIDE, _ALONE, 1.0, 1.0),),
        is_drawn=False,
    ),
    Row(
        "moves",
        "a guest moves from port to port: the switch's part of its downtime",
        Load.MOVE,
        _beside(Case(ports=3), (OURS, OVS)),
        (Goal("outage_ms", OURS, None, 20, 5, unit="ms in which nothing arrived"),),
    ),
    Row(
        "moves-guests",
        "a guest moves from port to port by pre-copy, pinged each 5 ms: the longest gap",
        Load.MOVE_KERNEL,
        _beside(Case(ports=3), (OURS, OVS)),
    ),
    Row(
        "pmds",
        "64 B, two poll threads share both cores with two generators",
        Load.OWN,
        (
            Contestant("one PMD, one pair", OURS, Case()),
            Contestant("two PMDs, two pairs", OURS_TWO_PMDS, Case(ports=4, pairs=2)),
        ),
        rounds_at_most=3,
        is_crowded=True,
    ),
    Row(
        "idle",
        f"{_ALL_GUESTS} connected guests that say nothing",
        Load.SILENT,
        (Contestant(OURS, OURS_TOO, Case(ports=_ALL_GUESTS)), Contestant(OVS, OVS, Case(ports=_ALL_GUESTS))),
        (Goal("cores", OURS, None, 0.03, 0.01, scale=100, unit="% of a core"),),
        rounds_at_most=3,
    ),
)
