"""The Rust core: the datapath and its ports. Python configures it and reads it; packets never pass here.

Every call is thread-safe, releases the interpreter lock while it waits, and is made by ``apply`` and
``observed`` only (and by nobody else: a test checks it).
"""

import os
from collections.abc import Mapping, Sequence
from typing import Literal, Self, TypedDict, final, type_check_only

__all__ = [
    "BondLink",
    "BondState",
    "Datapath",
    "Event",
    "FdbEntry",
    "LacpInfo",
    "LacpLink",
    "LacpState",
    "NicQueue",
    "PmdState",
    "PortState",
    "RxqState",
    "__version__",
]

__version__: str

@final
class Event:
    """One thing that happened in the datapath and that a user cares about; becomes one log line."""

    @property
    def level(self) -> Literal["info", "warning", "error"]: ...
    @property
    def kind(self) -> str:
        """A stable word.

        ``created``, ``listening``, ``connected``, ``disconnected``, ``added``, ``removed``, ``queue_state``,
        ``migration``, ``peer_error``, ``kernel_error``, ``device_error``, ``notice``.
        """
    @property
    def port(self) -> str | None:
        """Name of the port, or None when the event is about the datapath."""
    @property
    def text(self) -> str:
        """The message; OVS's words where OVS has the message."""

@final
class PortState:
    """What one port is, read at one moment. Frozen."""

    @property
    def name(self) -> str: ...
    @property
    def bridge(self) -> str: ...
    @property
    def ofport(self) -> int: ...
    @property
    def admin_up(self) -> bool: ...
    @property
    def link_up(self) -> bool:
        """A guest: session established, memory mapped, receiveq 0 and transmitq 0 started and enabled.

        A NIC: taken over, up, with a carrier.
        """
    @property
    def link_resets(self) -> int:
        """How often ``link_up`` changed since the port was added."""
    @property
    def mtu(self) -> int:
        """Bytes of IP payload, 68..9702."""
    @property
    def error(self) -> str | None:
        """Why the link is down or degraded, with the cure; None when nothing is wrong.

        Waiting for a VMM is not an error while the socket does not exist yet; it is stated in ``status``.
        """
    @property
    def status(self) -> dict[str, str]:
        """Interface ``status``.

        OVS's keys: ``mode``, ``status``, ``socket``, ``features``, ``num_of_vrings``,
        ``vring_N_size``, ``n_rxq``, ``n_txq``, ``mtu``, ``numa``, and ours: ``peer-pid``, ``peer-uid``,
        ``peer-program``, ``waiting-for``, ``mtu-mismatch``, ``migration`` (``logging`` while a dirty log is kept),
        ``stops-move-to-ovs-3.1`` (what the guest accepted and Open vSwitch 3.1 does not offer),
        ``iommu`` (``on``), ``postcopy`` (``on``, ``over``), ``postcopy-pages-missing``, ``postcopy-faults-served``,
        ``postcopy-stall-ms``, ``zero-copy`` (where ``dq-zero-copy`` asks for it: ``Active: …`` with the devices'
        queues, or ``Waiting(…): …`` and ``Suspended(…): …`` with what is in the way).

        Of a NIC, OVS's: ``if_name``, ``n_rxq``, ``n_txq``, ``n_rxq_desc``, ``n_txq_desc``, ``xdp-mode``,
        ``use-need-wakeup``, and once it was taken over ``xdp-mode-in-use``, ``if_index``, ``numa_id``, ``driver_name``,
        ``link_speed``; and ours: ``xdp-busy-budget``, where the kernel took it.
        """
    @property
    def statistics(self) -> dict[str, int]:
        """Interface ``statistics`` with OVS's names; cumulative over reconnects; rx is what came from guest or device.

        A frame taken from there is in exactly one of ``rx_packets`` and ``rx_dropped``; one meant for it in exactly
        one of ``tx_packets`` and ``tx_dropped``. ``rx_drop_*`` and ``tx_drop_*`` say why, and per queue ``rx_qN_*`` and
        ``tx_qN_*`` sum up to the port's; what is dropped before a queue is chosen counts at queue 0.
        """

@final
class BondLink:
    """One link of a bond, read at one moment."""

    @property
    def name(self) -> str: ...
    @property
    def enabled(self) -> bool:
        """It may carry frames."""
    @property
    def may_enable(self) -> bool:
        """It has a carrier, and LACP if that is spoken: nothing but a delay, or somebody's word, keeps it from that."""
    @property
    def due_ms(self) -> int | None:
        """How long until its delay is over; None without one."""
    @property
    def shares(self) -> list[tuple[int, int]]:
        """Of 256 shares those that it carries and that carried something of late: number and bytes."""
    @property
    def lacp(self) -> LacpLink | None:
        """What LACP has of it; None where that is not spoken."""

@final
class LacpInfo:
    """One end of a link, as LACP tells of it."""

    @property
    def system(self) -> str: ...
    @property
    def system_priority(self) -> int: ...
    @property
    def port(self) -> int: ...
    @property
    def port_priority(self) -> int: ...
    @property
    def key(self) -> int: ...
    @property
    def state(self) -> list[str]:
        """Names of its bits that are set, lowest first, as Open vSwitch has them."""

@final
class LacpLink:
    """What LACP has of one link of a bond."""

    @property
    def status(self) -> Literal["current", "expired", "defaulted"]:
        """Whether its partner spoke of late, did not, or nothing is known of one."""
    @property
    def attached(self) -> bool:
        """It may be one with the others."""
    @property
    def may_enable(self) -> bool:
        """It may carry frames, as far as LACP goes."""
    @property
    def actor(self) -> LacpInfo: ...
    @property
    def partner(self) -> LacpInfo: ...

@final
class LacpState:
    """Who a bond is to LACP."""

    @property
    def active(self) -> bool: ...
    @property
    def fast(self) -> bool: ...
    @property
    def fallback_ab(self) -> bool: ...
    @property
    def negotiated(self) -> bool:
        """Somebody at another end wants to be one with us."""
    @property
    def system(self) -> str: ...
    @property
    def system_priority(self) -> int: ...
    @property
    def key(self) -> int:
        """Of links that have none of their own."""

@type_check_only
class LacpArguments(TypedDict):
    """Who a bond is to LACP, for ``add_bond``: a dict, and a name for type checkers only.

    ``system`` is an Ethernet address, priorities are 1..65535, keys 0..65535; ``ports`` has of each link its number,
    its priority and its key, 0 for the bond's.
    """

    active: bool
    fast: bool
    system: str
    system_priority: int
    key: int
    fallback_ab: bool
    ports: dict[str, tuple[int, int, int]]

@final
class BondState:
    """One bond, read at one moment. Frozen."""

    @property
    def name(self) -> str: ...
    @property
    def bridge(self) -> str: ...
    @property
    def mode(self) -> Literal["active-backup", "balance-slb", "balance-tcp"]: ...
    @property
    def updelay_ms(self) -> int: ...
    @property
    def downdelay_ms(self) -> int: ...
    @property
    def primary(self) -> str | None:
        """The link that is active whenever it can be."""
    @property
    def active(self) -> str | None:
        """The link that is active; None while none can be."""
    @property
    def rebalance_ms(self) -> int | None:
        """How long until loads are evened out; None where they are not."""
    @property
    def lacp(self) -> LacpState | None:
        """None where LACP is not spoken."""
    @property
    def links(self) -> list[BondLink]:
        """By name."""

@final
class FdbEntry:
    """One learned address."""

    @property
    def ofport(self) -> int: ...
    @property
    def vlan(self) -> int:
        """0 when untagged."""
    @property
    def mac(self) -> str:
        """``aa:bb:cc:dd:ee:ff``."""
    @property
    def age_s(self) -> int: ...

@final
class NicQueue:
    """One queue of a NIC port, cumulative over every time that its device was taken over."""

    @property
    def inflight(self) -> int:
        """Descriptors that the kernel has now."""
    @property
    def completed(self) -> int:
        """Descriptors that it gave back, sent."""
    @property
    def inflight_max(self) -> int:
        """Most that it had at once."""
    @property
    def abandoned(self) -> int:
        """Descriptors that it had when the device was let go or went: sent or not, nobody says."""
    @property
    def rx_missed(self) -> int:
        """Received frames that found no room."""
    @property
    def latency_us(self) -> list[int]:
        """Sent frames by the time from post to completion: number n is of times of n bits in µs (below 2**n µs).

        The last is of all above too. Empty over AF_PACKET, which tells nothing of completions.
        """
    @property
    def latency_max_us(self) -> int:
        """The longest of those, µs."""
    @property
    def untimed(self) -> int:
        """Sent frames of which nobody can tell: when they completed, nobody looked."""

@final
class RxqState:
    """One queue that a poll thread receives from: a guest's transmitq, or a NIC's receive queue."""

    @property
    def port(self) -> str: ...
    @property
    def queue(self) -> int: ...
    @property
    def enabled(self) -> bool:
        """Whether it is polled. A disabled one is shown where it was polled last."""
    @property
    def usage_pct(self) -> float | None:
        """Its share of the thread's time, 0..100; None before the first 5 s are over."""

@final
class PmdState:
    """One poll thread. Counters since the last ``clear_pmd_stats``; cycles are of the time-stamp counter.

    A histogram is a list of 32 counts: number n is of values with n bits (2**(n-1) <= value < 2**n), the last of all
    above too.
    """

    @property
    def cpu(self) -> int: ...
    @property
    def numa(self) -> int: ...
    @property
    def isolated(self) -> bool:
        """Whether the core is its pinned queues' own."""
    @property
    def max_sleep_us(self) -> int | None:
        """Longest sleep in µs; None is adaptive, 0 never sleeps."""
    @property
    def since_clear_s(self) -> float:
        """Seconds since the counters were cleared, or the thread started."""
    @property
    def cycles_per_us(self) -> int: ...
    @property
    def packets(self) -> int:
        """Frames taken from guests and NICs."""
    @property
    def bursts(self) -> int:
        """Bursts they came in."""
    @property
    def busy_cycles(self) -> int:
        """Cycles of iterations that moved at least one packet."""
    @property
    def idle_cycles(self) -> int:
        """Cycles of the others, sleep excluded."""
    @property
    def sleep_cycles(self) -> int: ...
    @property
    def busy_iterations(self) -> int: ...
    @property
    def idle_iterations(self) -> int: ...
    @property
    def sleeps(self) -> int: ...
    @property
    def cycles_per_iteration(self) -> list[int]:
        """Histogram over iterations that moved a packet."""
    @property
    def packets_per_burst(self) -> list[int]:
        """Histogram over bursts."""
    @property
    def cycles_per_packet(self) -> list[int]:
        """Histogram over bursts."""
    @property
    def cycles_per_burst(self) -> list[int]:
        """Histogram over bursts: from gathering to giving the buffers back, waiting for a receiver included."""
    @property
    def overhead_pct(self) -> float | None:
        """Busy time that belongs to no queue, 0..100; None before the first 5 s are over."""
    @property
    def rxqs(self) -> list[RxqState]:
        """Every queue that this thread polls, by port and number."""

@final
class Datapath:
    """The switch itself: poll threads, bridges, ports. ConfigError at every question once it was closed.

    Args:
        pmd_cpus: cores to pin poll threads to, one each; empty means the first core this process may run on.
        max_sleep_us: longest sleep of an idle poll thread in µs; None is adaptive, 0 never sleeps.
        rundir: an existing directory; where each ring stands is kept in files that belong to it (there if it is on
            tmpfs, else below ``/dev/shm``), and the next datapath on it goes on from there, however this one ended. If
            they cannot be had, an event says so. None: sessions may come and go, the end of the process loses it.
        restart_hold_ms: if the datapath before on ``rundir`` died, how long no guest is polled while ports that were up
            are not back; their guests' frames wait in the guests' own rings.

    Raises:
        ConfigError: a core that this process may not use.
        KernelError: no eventfd or thread to be had.
    """

    def __new__(
        cls,
        *,
        pmd_cpus: Sequence[int] = ...,
        max_sleep_us: int | None = None,
        rundir: str | os.PathLike[str] | None = None,
        restart_hold_ms: int = 1000,
    ) -> Self: ...
    def offer_postcopy(self) -> None:
        """Offers post-copy migration on client ports that are added from now on.

        Raises:
            ConfigError: this process's memory is locked (``mlockall(2)``).
            KernelError: this process may not use userfaultfd; the text says what to set. Nothing is offered then.
        """
    def limit_features(self, limit: Literal["all", "ovs-3.1", "ovs-3.1-tso"] | int) -> None:
        """Offers front-ends that come from now on no more than this (``other_config:vhost-features``).

        One that is connected, or the same process when it comes back, is offered what it was offered before.

        Args:
            limit: everything that is served, what Open vSwitch 3.1 offers (``-tso``: with its
                ``userspace-tso-enable``), or a mask of virtio bits; bits 26 and 30, which are between switch and VMM,
                stay on offer.

        Raises:
            ConfigError: another name.
        """
    def offer_iommu(self) -> None:
        """Serves guests that have an IOMMU before the device on client ports that are added from now on."""
    def event_fd(self) -> int:
        """A descriptor, owned by the datapath, that is readable while there is something to look at.

        That is: ``events()`` has something, or a port's state changed. ``events()`` clears it.
        """
    def events(self) -> list[Event]:
        """Takes what happened since the last call, oldest first. Bounded: past 4096 the oldest are dropped."""
    def add_bridge(self, name: str) -> None:
        """Adds a bridge without ports, with the settings that ``set_bridge`` has by default.

        Raises:
            ConfigError: the name is taken.
        """
    def set_bridge(
        self, name: str, *, mac_aging_time_s: int = 300, mac_table_size: int = 8192, forward_bpdu: bool = False
    ) -> None:
        """Changes a bridge live.

        Args:
            name: an existing bridge.
            mac_aging_time_s: 15..3600 for which a silent address is remembered.
            mac_table_size: 10..1000000 addresses.
            forward_bpdu: forward reserved multicast (01:80:c2:00:00:0x) too.

        Raises:
            ConfigError: an unknown bridge, or a value out of range; nothing changed then.
        """
    def del_bridge(self, name: str) -> None:
        """Deletes a bridge and every port and bond on it, each as ``del_port`` does.

        Raises:
            ConfigError: there is none of that name.
        """
    def add_port(
        self,
        bridge: str,
        name: str,
        *,
        type: Literal["dpdkvhostuserclient", "dpdkvhostuser"],
        ofport: int,
        socket: str,
        mtu: int = 1500,
        tx_retries_max: int = 8,
        backpressure_us: int = 0,
        tx_steering: Literal["hash", "thread"] = "hash",
        socket_mode: int = 0o600,
        socket_owner: int = ...,
        socket_group: int = ...,
        allow_file_memory: bool = False,
        dq_zero_copy: bool = False,
    ) -> None:
        """Adds a port; returns at once, the session comes up by itself.

        Args:
            bridge: an existing bridge.
            name: unique in the datapath.
            type: who creates the socket: the VMM (``dpdkvhostuserclient``) or we (``dpdkvhostuser``).
            ofport: 1..65279, unique on the bridge.
            socket: absolute path of the socket, at most 107 bytes.
            mtu: 68..9702.
            tx_retries_max: 0..32.
            backpressure_us: 0..100000 µs that frames wait for the guest's buffers; 0 drops them at once.
            tx_steering: how one of several receiveqs is chosen: by flow or by thread.
            socket_mode: permission bits of a socket we create.
            socket_owner: uid for a socket we create; -1, the default, leaves it.
            socket_group: gid, likewise.
            allow_file_memory: accept guest memory on disk files.
            dq_zero_copy: send what the guest sends to NICs from its memory, where a device has a queue for it; client
                ports only. ``PortState.status["zero-copy"]`` says whether that is so, or why not.

        Raises:
            ConfigError: a value out of range, a path that cannot be a socket, a name or path in use.
            KernelError: the socket could not be created (server type).
        """
    def add_nic(
        self,
        bridge: str,
        name: str,
        *,
        ofport: int,
        netdev: str,
        driver: Literal["afxdp", "packet"] = "afxdp",
        mtu: int | None = None,
        tx_retries_max: int = 8,
        n_rxq: int = 1,
        n_rxq_desc: int = 2048,
        n_txq_desc: int = 2048,
        xdp_mode: Literal["best-effort", "native-with-zerocopy", "native", "generic"] = "best-effort",
        use_need_wakeup: bool = True,
        start_queue: int = 0,
        busy_budget: int = 0,
        zc_queues: int = 128,
        bond: str | None = None,
    ) -> None:
        """Adds a port that is a network device of the host, through AF_XDP or AF_PACKET; returns at once.

        The device need not be there, or be free: the port's own thread takes it over as soon as it can, and
        ``PortState.error`` says what is in the way. It is asked for again every second, and at ``refresh_nic``.

        Args:
            bridge: an existing bridge.
            name: unique in the datapath.
            ofport: 1..65279, unique on the bridge.
            netdev: the device's name in this process's network namespace.
            driver: the way to it. Over AF_PACKET there is one queue, and of what follows only the sizes of rings count:
                as many frames wait in the kernel.
            mtu: 68..9702, given to the device; None leaves the device its own.
            tx_retries_max: 0..32 further attempts when the transmit ring is full.
            n_rxq: 1..128 queues, of which each receives and sends.
            n_rxq_desc: entries of each receive ring, a power of two in 64..4096.
            n_txq_desc: entries of each transmit ring, likewise.
            xdp_mode: the way frames take; ``best-effort`` is the fastest that works.
            use_need_wakeup: the kernel says when it wants to be woken.
            start_queue: the first of the device's queues.
            busy_budget: 0..65535 frames that the kernel takes from the device in one of our calls, its interrupts held
                back meanwhile; 0 leaves it to them.
            zc_queues: 0..128 queues above the port's own that guests may have, one for each of their queues that sends
                without a copy; no more than the device has, and none before a guest wants it.
            bond: the bond on that bridge that it is a link of: then it is no port of the bridge itself.

        Raises:
            ConfigError: a value out of range, a name, number or device in use.
            KernelError: no thread or no socket could be had.
        """
    def set_nic(
        self,
        name: str,
        *,
        netdev: str | None = None,
        n_rxq: int | None = None,
        n_rxq_desc: int | None = None,
        n_txq_desc: int | None = None,
        xdp_mode: Literal["best-effort", "native-with-zerocopy", "native", "generic"] | None = None,
        use_need_wakeup: bool | None = None,
        start_queue: int | None = None,
        busy_budget: int | None = None,
        zc_queues: int | None = None,
    ) -> None:
        """Changes what a NIC port takes of which device; it is taken over anew if something changed. Counters go on.

        Raises:
            ConfigError: an unknown port, one that is a guest's, or a value out of range; nothing changed then.
        """
    def refresh_nic(self, name: str) -> None:
        """Says that a NIC port's device may have come, gone, gone up or down. Its thread looks; this returns at once.

        Raises:
            ConfigError: an unknown port, or one that is a guest's.
        """
    def nic_queues(self, name: str) -> list[NicQueue]:
        """The queues of a NIC port, in order; none before its device was taken over for the first time.

        Raises:
            ConfigError: an unknown port, or one that is a guest's.
        """
    def set_port(
        self,
        name: str,
        *,
        mtu: int | None = None,
        admin_up: bool | None = None,
        tx_retries_max: int | None = None,
        backpressure_us: int | None = None,
        tx_steering: Literal["hash", "thread"] | None = None,
        dq_zero_copy: bool | None = None,
    ) -> None:
        """Changes a port live, with its guest attached. ConfigError out of range; the old value stays.

        The MTU of a NIC is given to its device. Its frames do not wait, and each thread has a transmit queue:
        ``backpressure_us`` and ``tx_steering`` mean nothing to it.
        """
    def del_port(self, name: str) -> None:
        """Ends the session, gives every buffer back to the guest, removes a socket that is still ours.

        A NIC is the host's again. Returns when it is so: a second at most.

        Raises:
            ConfigError: there is none of that name.
        """
    def add_bond(
        self,
        bridge: str,
        name: str,
        *,
        mode: Literal["active-backup", "balance-slb", "balance-tcp"] = "active-backup",
        updelay_ms: int = 0,
        downdelay_ms: int = 0,
        primary: str | None = None,
        rebalance_ms: int = 10_000,
        lacp: LacpArguments | None = None,
        last_active: str | None = None,
    ) -> None:
        """Adds a bond without links: ``add_nic`` with its name adds those.

        Args:
            bridge: an existing bridge.
            name: unique among bonds.
            mode: how it uses its links.
            updelay_ms: 0..3600000 for which a link's carrier must be there until it is used.
            downdelay_ms: 0..3600000 for which it must be gone until another link is used.
            primary: the link that is active whenever it can be.
            rebalance_ms: 0..3600000 between two times that loads are evened out; 0 is never, less than 1000 is 1000.
            lacp: who it is to LACP; None does not speak it.
            last_active: the link that was active before: preferred while nothing else decides.

        Raises:
            ConfigError: a value out of range, or a name in use.
            KernelError: no thread could be had.
        """
    def set_bond(
        self,
        name: str,
        *,
        mode: Literal["active-backup", "balance-slb", "balance-tcp"] = "active-backup",
        updelay_ms: int = 0,
        downdelay_ms: int = 0,
        primary: str | None = None,
        rebalance_ms: int = 10_000,
        lacp: LacpArguments | None = None,
    ) -> None:
        """Changes a bond live; its links stay. All settings are given anew.

        Raises:
            ConfigError: an unknown bond, or a value out of range; nothing changed then.
        """
    def del_bond(self, name: str) -> None:
        """Deletes a bond whose links are gone; ConfigError if it has some, or there is no such bond."""
    def bonds(self) -> list[BondState]:
        """Every bond, by name."""
    def activate_link(self, bond: str, link: str) -> bool:
        """Makes an enabled link the active one until it is disabled; True if that is new.

        Raises:
            ConfigError: an unknown bond or link, or one that is disabled.
        """
    def give_share(self, bond: str, share: int, link: str) -> None:
        """Gives one of 256 shares to an enabled link, until that goes or loads are evened out.

        Raises:
            ConfigError: an unknown bond, link or share, one that is disabled, or a bond that shares nothing out.
        """
    def hold_link(self, bond: str, link: str, enabled: bool) -> None:
        """Enables or disables a link at once, until its carrier changes; ConfigError for an unknown bond or link."""
    def port(self, name: str) -> PortState:
        """One port. ConfigError if there is none of that name."""
    def ports(self) -> list[PortState]: ...
    def fdb(self, bridge: str) -> list[FdbEntry]:
        """The addresses that a bridge has learned; a copy, in no order. ConfigError for an unknown bridge."""
    def fdb_stats(self, bridge: str) -> dict[str, int]:
        """Addresses ``learned`` anew, ``expired``, ``evicted`` for others and ``moved`` to another port, so far.

        Raises:
            ConfigError: an unknown bridge.
        """
    def flush_fdb(self, bridge: str) -> None:
        """Forgets every address that a bridge has learned. ConfigError for an unknown bridge."""
    def pmds(self, seconds: int = 60) -> list[PmdState]:
        """The poll threads by core; queues' shares are of the last ``seconds``, rounded up to 5, at most 60."""
    def clear_pmd_stats(self, cpu: int | None = None) -> None:
        """Counts from zero again: the thread on ``cpu``, or all. A core without a thread is none's: nothing happens."""
    def set_pmds(self, cpus: Sequence[int]) -> None:
        """Changes which cores have poll threads, live: threads start, queues move without losing a frame, threads end.

        Args:
            cpus: as for the constructor, in any order; empty means the first core this process may run on.

        Raises:
            ConfigError: a core that this process may not use; nothing changed.
            KernelError: no thread or descriptor to be had; nothing changed.
        """
    def set_sleep(self, max_sleep_us: int | None = None, by_cpu: Mapping[int, int] = ...) -> None:
        """Changes the longest sleep of idle poll threads, live.

        Args:
            max_sleep_us: µs; None is adaptive, 0 never sleeps. No limit is held here: the database's options allow
                10000 (``ovs-vswitchd.conf.db(5)``: pmd-sleep-max).
            by_cpu: the same for the threads of some cores, by core, those to come included.
        """
    def set_sharing(
        self, policy: str = "cycles", *, isolate: bool = True, auto_lb: tuple[int, int, int] | None = None
    ) -> None:
        """Changes how queues are shared out among the poll threads (``ovs-vswitchd.conf.db(5)``: pmd-rxq-assign).

        Args:
            policy: ``cycles`` (heaviest first, up and down the cores), ``group`` (heaviest first, to the core with the
                least) or ``roundrobin``.
            isolate: a core with pinned queues takes no others.
            auto_lb: minutes between two looks, load and improvement thresholds in percent; None is off.

        Raises:
            ConfigError: no such policy.
        """
    def set_affinity(self, port: str, cpus: Mapping[int, int]) -> None:
        """Pins queues of a port (a guest's transmitqs, a NIC's receive queues) to cores; others are shared out.

        Args:
            port: an existing port.
            cpus: core by queue; a queue or core that is not there now counts when it comes.

        Raises:
            ConfigError: no such port.
        """
    def rebalance(self) -> None:
        """Shares every queue out anew, by the loads of the last minute; returns when each is in its place."""
    def close(self) -> None:
        """Stops everything; idempotent. Rings are drained first."""
