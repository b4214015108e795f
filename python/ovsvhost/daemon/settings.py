"""``Open_vSwitch:other_config``: the switch-wide options.

Most of them are read once, at start (``ovs-vswitchd.conf.db(5)`` says so of ``vhost-sock-dir``,
``vhost-iommu-support`` and ``vhost-postcopy-support``). ``pending`` names those that were changed since.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ovsvhost.model import RESTART_HOLD_MAX_MS, RESTART_HOLD_MS

if TYPE_CHECKING:
    from collections.abc import Mapping

READ_AT_START = (
    "pmd-cpu-mask",
    "pmd-maxsleep",
    "pmd-sleep-max",
    "restart-hold-ms",
    "vhost-iommu-support",
    "vhost-postcopy-support",
    "vhost-sock-dir",
)
SLEEP_MAX_US = 10_000
"""Longest sleep that can be asked for (``ovs-vswitchd.conf.db(5)``: pmd-sleep-max)."""
STATS_INTERVAL_MS = 5000
STATS_INTERVAL_MIN_MS = 100


@dataclass(frozen=True, slots=True)
class Startup:
    """What was in force when the datapath started.

    Attributes:
        read: the options of `READ_AT_START` that were set.
        pmd_cpus: cores of the poll threads; empty means the first one allowed.
        max_sleep_us: longest sleep of an idle poll thread; None is adaptive.
        sock_dir: ``vhost-sock-dir``, unchecked.
        restart_hold_ms: how long frames wait after a crash for the ports that were up.
        notices: what is not in force, one sentence each.
    """

    read: Mapping[str, str]
    pmd_cpus: frozenset[int] = frozenset()
    max_sleep_us: int | None = None
    sock_dir: str | None = None
    restart_hold_ms: int = RESTART_HOLD_MS
    notices: tuple[str, ...] = ()


def startup(other_config: Mapping[str, str]) -> Startup:
    """Reads the options that count at start. A value that cannot be read gives a notice and leaves the default."""
    read = {key: other_config[key] for key in READ_AT_START if key in other_config}
    notices = []
    cpus: frozenset[int] = frozenset()
    mask = read.get("pmd-cpu-mask", "")
    try:
        cpus = cpu_mask(mask)
    except ValueError:
        notices.append(f"other_config:pmd-cpu-mask={mask!r} is not in force: give a hexadecimal mask, as 0x2")
    if len(cpus) > 1:
        first, *rest = sorted(cpus)
        others = ", ".join(map(str, rest))
        notices.append(
            f"other_config:pmd-cpu-mask={mask}: one poll thread runs, on core {first}; {others} are not used yet"
        )
    key = "pmd-sleep-max" if "pmd-sleep-max" in read else "pmd-maxsleep"
    sleep: int | None = None
    if key in read:
        default, *per_core = read[key].split(",")
        if default.isascii() and default.isdecimal() and int(default) <= SLEEP_MAX_US:
            sleep = int(default)
        else:
            notices.append(f"other_config:{key}={read[key]!r} is not in force: give microseconds 0..{SLEEP_MAX_US}")
        if per_core:
            notices.append(
                f"other_config:{key}={read[key]}: its values per core are not in force: one poll thread runs"
            )
    hold_ms = RESTART_HOLD_MS
    if "restart-hold-ms" in read:
        text = read["restart-hold-ms"]
        if text.isascii() and text.isdecimal() and int(text) <= RESTART_HOLD_MAX_MS:
            hold_ms = int(text)
        else:
            notices.append(
                f"other_config:restart-hold-ms={text!r} is not in force: give milliseconds 0..{RESTART_HOLD_MAX_MS}"
            )
    notices += [
        f"other_config:{feature}=true is not in force: it is not served yet; guests get the rest"
        for feature in ("vhost-iommu-support", "vhost-postcopy-support")
        if read.get(feature) == "true"
    ]
    dpdk = sorted(key for key in other_config if key.startswith("dpdk-"))
    if dpdk:
        notices.append(f"other_config:{', '.join(dpdk)}: accepted without effect: there is no DPDK in this switch")
    return Startup(read, cpus, sleep, read.get("vhost-sock-dir"), hold_ms, tuple(notices))


def pending(at_start: Startup, other_config: Mapping[str, str]) -> tuple[str, ...]:
    """The options that differ from what was read at start and wait for a restart."""
    return tuple(key for key in READ_AT_START if at_start.read.get(key) != other_config.get(key))


def cpu_mask(text: str) -> frozenset[int]:
    """Cores of a hexadecimal mask with or without ``0x``; ValueError if it is none."""
    if not text:
        return frozenset()
    bits = int(text, 16)
    if bits < 0:
        raise ValueError(text)
    return frozenset(core for core in range(bits.bit_length()) if bits >> core & 1)


def stats_interval_ms(other_config: Mapping[str, str]) -> int:
    """How often statistics are written; OVS's default, and down to 100 ms where OVS stops at 5 s."""
    text = other_config.get("stats-update-interval", "")
    if text.isascii() and text.isdecimal():
        return max(int(text), STATS_INTERVAL_MIN_MS)
    return STATS_INTERVAL_MS
