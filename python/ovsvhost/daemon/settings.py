"""``Open_vSwitch:other_config``: the switch-wide options.

Some are read once, at start (``ovs-vswitchd.conf.db(5)`` says so of ``vhost-sock-dir``, ``vhost-iommu-support`` and
``vhost-postcopy-support``); ``pending`` names those that were changed since. Those of the poll threads are live
(`ovsvhost.pmd_settings`). What is not in force is said in the log: there is no row with an ``error`` for it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ovsvhost.model import BOOLEANS, RESTART_HOLD_MAX_MS, RESTART_HOLD_MS
from ovsvhost.numeral import is_whole
from ovsvhost.other_config import READ_AT_START, not_in_force, unserved

if TYPE_CHECKING:
    from collections.abc import Mapping

STATS_INTERVAL_MS = 5000
STATS_INTERVAL_MIN_MS = 100


@dataclass(frozen=True, slots=True)
class Startup:
    """What was in force when the datapath started.

    Attributes:
        read: the options of `READ_AT_START` that were set.
        sock_dir: ``vhost-sock-dir``, unchecked.
        restart_hold_ms: how long frames wait after a crash for the ports that were up.
        postcopy: ``vhost-postcopy-support``.
        iommu: ``vhost-iommu-support``.
        notices: what is not in force, one sentence each.
    """

    read: Mapping[str, str]
    sock_dir: str | None = None
    restart_hold_ms: int = RESTART_HOLD_MS
    postcopy: bool = False
    iommu: bool = False
    notices: tuple[str, ...] = ()


def startup(other_config: Mapping[str, str]) -> Startup:
    """Reads the options that count at start."""
    read = {key: other_config[key] for key in READ_AT_START if key in other_config}
    notices = []
    hold_ms = RESTART_HOLD_MS
    if "restart-hold-ms" in read:
        text = read["restart-hold-ms"]
        if is_whole(text) and int(text) <= RESTART_HOLD_MAX_MS:
            hold_ms = int(text)
        else:
            notices.append(
                f"other_config:restart-hold-ms={text!r} is not in force: give milliseconds 0..{RESTART_HOLD_MAX_MS}"
            )
    notices += [
        f"other_config:{key}={read[key]!r} is not in force: give {' or '.join(BOOLEANS)}"
        for key in ("vhost-iommu-support", "vhost-postcopy-support")
        if read.get(key, "false") not in BOOLEANS
    ]
    dpdk = sorted(key for key in other_config if key.startswith("dpdk-"))
    if dpdk:
        notices.append(f"other_config:{', '.join(dpdk)}: accepted without effect: there is no DPDK in this switch")
    postcopy, iommu = (read.get(key) == "true" for key in ("vhost-postcopy-support", "vhost-iommu-support"))
    return Startup(read, read.get("vhost-sock-dir"), hold_ms, postcopy, iommu, tuple(notices))


def pending(at_start: Startup, other_config: Mapping[str, str]) -> tuple[str, ...]:
    """The options that differ from what was read at start and wait for a restart."""
    return tuple(key for key in READ_AT_START if at_start.read.get(key) != other_config.get(key))


def stats_interval_ms(other_config: Mapping[str, str]) -> int:
    """How often statistics are written; OVS's default, and down to 100 ms where OVS stops at 5 s."""
    text = other_config.get("stats-update-interval", "")
    if is_whole(text):
        return max(int(text), STATS_INTERVAL_MIN_MS)
    return STATS_INTERVAL_MS


def not_served(other_config: Mapping[str, str]) -> dict[str, str]:
    """By key, a sentence about each that is not in force as it stands and that no other module reads."""
    said = {key: not_in_force(key, "Open_vSwitch") for key in unserved("Open_vSwitch", other_config)}
    text = other_config.get("stats-update-interval")
    in_force_ms = stats_interval_ms(other_config)
    if text is not None and not (is_whole(text) and int(text) == in_force_ms):
        said["stats-update-interval"] = (
            f"other_config:stats-update-interval={text!r} is not in force ({in_force_ms} is): give milliseconds, "
            f"{STATS_INTERVAL_MIN_MS} or more"
        )
    return said
