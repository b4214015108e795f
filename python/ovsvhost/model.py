"""What the switch shall be: frozen values, nothing else.

::

    Desired ─┬─ Bridge ─┬─ Port        a vhost-user port;  identity is ``key``, not the name
             │          ├─ NicPort     a network device of this machine
             │          └─ Bond        several of those that are one port
             ├─ PollThreads
             └─ FeatureLimit

A ``key`` is the database row's uuid (or one that `Switch` made up): when a script deletes ``br0`` and adds another
``br0`` in one transaction, the name stays and the key changes, and everything on it is built anew. ``Desired`` holds
only what can be given to the datapath as it stands: names, sockets and port numbers are unique, values are in range.
What a user wrote and what cannot be served never gets this far (see ``daemon.configure``).

This module must not know databases, sockets or the datapath.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, TypeAlias, get_args

from ovsvhost.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable

PortType: TypeAlias = Literal["dpdkvhostuserclient", "dpdkvhostuser"]

NicType: TypeAlias = Literal["afxdp", "dpdk", "system"]

NicDriver: TypeAlias = Literal["afxdp", "packet"]

XdpMode: TypeAlias = Literal["best-effort", "native-with-zerocopy", "native", "generic"]

BondMode: TypeAlias = Literal["active-backup", "balance-slb", "balance-tcp"]

TxSteering: TypeAlias = Literal["hash", "thread"]

FeatureLimit: TypeAlias = Literal["all", "ovs-3.1", "ovs-3.1-tso"] | int
"""What guests are offered at most: all that is served, what another switch offers, or a mask of virtio bits."""

PORT_TYPES: frozenset[str] = frozenset(get_args(PortType))
"""Interface types for guests: the VMM creates the socket, or we do."""

NIC_TYPES: frozenset[str] = frozenset(get_args(NicType))
"""Interface types for network devices of this machine."""

OFPORT_LOCAL = 65534
"""The bridge's own port (``ovs-vswitchd.conf.db(5)``, OpenFlow's OFPP_LOCAL)."""
OFPORT_MAX = 65279
"""Highest number a user may ask for (OFPP_MAX - 1)."""
SOCKET_PATH_MAX = 107
"""Bytes of a path in a ``sockaddr_un``, without its closing NUL (``unix(7)``)."""

RESTART_HOLD_MS = 1000
"""How long frames wait after a crash for the ports that were up (``other_config:restart-hold-ms``)."""
RESTART_HOLD_MAX_MS = 60_000
MTU_DEFAULT = 1500
MTU_MIN = 68
MTU_MAX = 9702
TX_RETRIES_DEFAULT = 8
TX_RETRIES_MAX = 32
SLEEP_MAX_US = 10_000
"""Longest sleep of a poll thread that can be asked for (``ovs-vswitchd.conf.db(5)``: pmd-sleep-max)."""
BOOLEANS = {"true": True, "false": False}
"""How an option says yes or no."""
RXQ_POLICIES = ("cycles", "group", "roundrobin")
"""How queues that are not pinned are shared out (``ovs-vswitchd.conf.db(5)``: pmd-rxq-assign)."""
REBALANCE_MIN_MAX = 20_000
BACKPRESSURE_MAX_US = 100_000
XDP_MODES: tuple[XdpMode, ...] = get_args(XdpMode)
"""How an XDP program is attached (``ovs-vswitchd.conf.db(5)``: xdp-mode)."""
NIC_QUEUES_MAX = 128
"""What the core's queue numbers hold (``QUEUES_MAX`` in ``rust/datapath/nic.rs``)."""
NIC_DESCRIPTORS_RANGE = (64, 4096)
"""Descriptors of a NIC's ring; a power of two."""
BUSY_BUDGET_MAX = 65_535
ZERO_COPY_MIN_RANGE = (65, 65_535)
"""Bytes of the shortest frame that a NIC is sent from guest memory; its first 64 are always copied."""
BOND_MODES: tuple[BondMode, ...] = get_args(BondMode)
"""How a bond uses its links (``ovs-vswitchd.conf.db(5)``: bond_mode)."""
BOND_DELAY_MAX_MS = 3_600_000
"""Longest ``bond_updelay`` and ``bond_downdelay``, and time between two rebalancings."""
LACP_MAX = 65_535
"""Largest priority, number and key of LACP (``ovs-vswitchd.conf.db(5)``: lacp-system-priority, lacp-port-id …)."""
LACP_SYSTEM_PRIORITY_DEFAULT = 65_534
"""Of a bond that says nothing: a little better than what a single port would have."""
REBALANCE_DEFAULT_MS = 10_000
"""Between two rebalancings of a bond (``ovs-vswitchd.conf.db(5)``: bond-rebalance-interval)."""
TX_STEERINGS: tuple[TxSteering, ...] = get_args(TxSteering)
"""How one of several receiveqs is chosen: by the frame's flow, or by the thread that delivers."""
NO_MAC = "00:00:00:00:00:00"
"""What OVS shows where there is no address, and for a vhost-user port: that one's is the guest's business."""
AGING_S_DEFAULT = 300
AGING_S_RANGE = (15, 3600)
FDB_SIZE_DEFAULT = 8192
FDB_SIZE_RANGE = (10, 1_000_000)


@dataclass(frozen=True, slots=True, kw_only=True)
class Port:
    """One vhost-user port.

    Attributes:
        key: identity; another key under the same name is another port.
        name: unique in the switch.
        type: who creates the socket: the VMM (``dpdkvhostuserclient``) or we (``dpdkvhostuser``).
        socket: absolute path, at most 107 bytes.
        ofport: 1..65279, unique on its bridge.
        mtu: bytes of IP payload, 68..9702; None leaves what the port has (1500 for a new one).
        tx_retries_max: 0..32.
        backpressure_us: 0..100000 µs that frames wait for the guest's buffers before they are dropped.
        tx_steering: how one of several receiveqs is chosen.
        socket_mode: permission bits of a socket that we create.
        socket_owner: uid of it, -1 leaves it.
        socket_group: gid of it, -1 leaves it.
        allow_file_memory: accept guest memory that lies in a disk file.
        dq_zero_copy: send what the guest sends to NICs from its memory; client ports only.
        rxq_affinity: queues that are pinned, each with its core; None leaves what the port has.
    """

    key: str
    name: str
    type: PortType
    socket: str
    ofport: int
    mtu: int | None = MTU_DEFAULT
    tx_retries_max: int = TX_RETRIES_DEFAULT
    backpressure_us: int = 0
    tx_steering: TxSteering = "hash"
    socket_mode: int = 0o600
    socket_owner: int = -1
    socket_group: int = -1
    allow_file_memory: bool = False
    dq_zero_copy: bool = False
    rxq_affinity: tuple[tuple[int, int], ...] | None = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class NicSettings:
    """How a NIC port's device is used; another value attaches it anew.

    Attributes:
        n_rxq: receive queues, 1..128, from `xdp_start_queue` on.
        n_rxq_desc: descriptors of each receive ring, a power of two in 64..4096.
        n_txq_desc: descriptors of each transmit ring, and of its completion ring; likewise.
        xdp_mode: how the XDP program is attached.
        use_need_wakeup: the kernel says when it wants to be called.
        xdp_start_queue: the device's first queue that is used.
        xdp_busy_budget: frames that one call of a busy poll may bring, 0..65535; 0 leaves polling to interrupts.
        xdp_zc_queues: how many queues above `n_rxq` guests may have to send on without a copy, 0..128; no more than
            the device has.
        xdp_zc_min: bytes of the shortest frame that is sent from guest memory, 65..65535; 0: what is worth it where the
            driver reads that by itself, and none where the kernel copies.
    """

    n_rxq: int = 1
    n_rxq_desc: int = 2048
    n_txq_desc: int = 2048
    xdp_mode: XdpMode = "best-effort"
    use_need_wakeup: bool = True
    xdp_start_queue: int = 0
    xdp_busy_budget: int = 0
    xdp_zc_queues: int = NIC_QUEUES_MAX
    xdp_zc_min: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class NicPort:
    """A network device of this machine as a port.

    Attributes:
        key: identity, as of a vhost-user port.
        name: unique in the switch.
        driver: the way to it: AF_XDP, or AF_PACKET (``packet``).
        device: the kernel's name of it, unique in the switch.
        ofport: 1..65279, unique on its bridge.
        mtu: bytes of IP payload, 68..9702, of the device and the port; None leaves what the device has.
        tx_retries_max: 0..32, as of a vhost-user port: how often a full transmit ring is tried again while it drains.
        brings_up: the device is set up when it comes, as DPDK starts its devices.
        settings: see there.
        keeps: names of settings for which something impossible was asked: what the port has stays.
        rxq_affinity: as of a vhost-user port.
        bond: name of the bond on the same bridge that it is a link of.
    """

    key: str
    name: str
    driver: NicDriver
    device: str
    ofport: int
    mtu: int | None = None
    tx_retries_max: int = TX_RETRIES_DEFAULT
    brings_up: bool = False
    settings: NicSettings = NicSettings()
    keeps: frozenset[str] = frozenset()
    rxq_affinity: tuple[tuple[int, int], ...] | None = ()
    bond: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LacpPort:
    """What a link of a bond is to LACP.

    Attributes:
        name: the link.
        port_id: its number, 1..65535.
        priority: 1..65535, the lower, the more it decides.
        key: links of the same key can be one, 0..65535; 0 is the bond's.
    """

    name: str
    port_id: int
    priority: int = LACP_MAX
    key: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Lacp:
    """What a bond is to LACP.

    Attributes:
        active: it speaks first; else it only answers.
        fast: it wants to hear every second, else every thirty.
        system: its system's Ethernet address.
        system_priority: 1..65535, the lower, the more it decides.
        fallback_ab: without a partner one link carries alone.
        key: of links that have none of their own.
        ports: its links, by name.
    """

    active: bool
    fast: bool = False
    system: str
    system_priority: int = LACP_SYSTEM_PRIORITY_DEFAULT
    fallback_ab: bool = False
    key: int = 0
    ports: tuple[LacpPort, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Bond:
    """Several network devices that are one port of their bridge.

    Attributes:
        key: identity, as of a port.
        name: unique among the switch's bonds.
        mode: how it uses its links.
        updelay_ms: how long a link's carrier must be there until it is used, 0..3600000.
        downdelay_ms: how long it must be gone until another link is used, likewise.
        primary: name of the link that is active whenever it can be.
        rebalance_ms: how often links' loads are evened out, 0..3600000; 0 is never, less than 1000 is 1000.
        lacp: who it is to LACP; None does not speak it.
        last_active: name of the link that was active in an earlier run; means nothing once the bond is there.
    """

    key: str
    name: str
    mode: BondMode = "active-backup"
    updelay_ms: int = 0
    downdelay_ms: int = 0
    primary: str | None = None
    rebalance_ms: int = REBALANCE_DEFAULT_MS
    lacp: Lacp | None = None
    last_active: str | None = field(default=None, compare=False)


AnyPort: TypeAlias = Port | NicPort


@dataclass(frozen=True, slots=True, kw_only=True)
class Bridge:
    """One learning bridge and its ports.

    Attributes:
        key: identity, as of a port.
        name: unique in the switch.
        mac_aging_time_s: 15..3600, how long a silent address is remembered.
        mac_table_size: 10..1000000 addresses.
        forward_bpdu: forward reserved multicast (01:80:c2:00:00:0x) too.
        ports: in any order; their names are unique over all bridges.
        bonds: in any order; the links are among ``ports``.
    """

    key: str
    name: str
    mac_aging_time_s: int = AGING_S_DEFAULT
    mac_table_size: int = FDB_SIZE_DEFAULT
    forward_bpdu: bool = False
    ports: tuple[AnyPort, ...] = ()
    bonds: tuple[Bond, ...] = ()


@dataclass(frozen=True, slots=True)
class AutoBalance:
    """``pmd-auto-lb``: sharing queues out anew when that helps enough (``ovs-vswitchd.conf.db(5)``).

    Attributes:
        every_min: minutes between two looks, 1..20000.
        load_pct: a poll thread is overloaded from here on, 0..100.
        improvement_pct: by how much the variance of the threads' loads must shrink, 0..100.
    """

    every_min: int = 1
    load_pct: int = 95
    improvement_pct: int = 25


@dataclass(frozen=True, slots=True, kw_only=True)
class PollThreads:
    """The poll threads and how queues are shared out among them.

    Attributes:
        cpus: one thread each; empty means one on the first core this process may use.
        max_sleep_us: longest sleep of an idle one, 0..10000; None is adaptive, 0 never sleeps.
        max_sleep_us_of: the same for those of some cores: ``(core, µs)``.
        assign: ``cycles``, ``group`` or ``roundrobin``.
        isolate: a core with pinned queues takes no others.
        auto_balance: None is off.
    """

    cpus: frozenset[int] = frozenset()
    max_sleep_us: int | None = None
    max_sleep_us_of: tuple[tuple[int, int], ...] = ()
    assign: str = "cycles"
    isolate: bool = True
    auto_balance: AutoBalance | None = None


@dataclass(frozen=True, slots=True)
class Desired:
    """The whole switch as it shall be.

    Raises:
        ConfigError: a name, socket, device or port number is there twice, or a link is of no bond on its bridge.
    """

    bridges: tuple[Bridge, ...] = ()
    pmds: PollThreads = PollThreads()
    feature_limit: FeatureLimit = "all"

    def __post_init__(self) -> None:  # noqa: D105 - the class says what is checked
        ports = [port for bridge in self.bridges for port in bridge.ports]
        _once("bridge", (bridge.name for bridge in self.bridges))
        _once("port", (port.name for port in ports))
        _once("socket", (port.socket for port in ports if isinstance(port, Port)))
        _once("device", (port.device for port in ports if isinstance(port, NicPort)))
        _once("bond", (bond.name for bridge in self.bridges for bond in bridge.bonds))
        for bridge in self.bridges:
            bonds = {None, *(bond.name for bond in bridge.bonds)}
            for port in bridge.ports:
                if isinstance(port, NicPort) and port.bond not in bonds:
                    raise ConfigError(f"port {port.name!r} is a link of {port.bond!r}: bridge {bridge.name!r} has none")
            _once(f"port number on bridge {bridge.name!r},", (port.ofport for port in bridge.ports))


def free_ofport(taken: Iterable[int]) -> int:
    """The lowest port number from 1 that is not taken.

    Raises:
        ConfigError: all 65279 are taken.
    """
    used = set(taken)
    for number in range(1, OFPORT_MAX + 1):
        if number not in used:
            return number
    raise ConfigError(f"all {OFPORT_MAX} port numbers of the bridge are in use: delete a port first")


def _once(what: str, values: Iterable[object]) -> None:
    for value, times in Counter(values).items():
        if times > 1:
            raise ConfigError(f"{what} {value!r} is already there: choose another")
