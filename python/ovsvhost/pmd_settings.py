"""The poll threads' options: ``pmd-*`` of ``Open_vSwitch:other_config``, all of them live.

A value that cannot be is refused by name, and what was in force stays in force: a slip of the pen stops no thread.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING

from ovsvhost.errors import ConfigError
from ovsvhost.model import BOOLEANS, REBALANCE_MIN_MAX, RXQ_POLICIES, SLEEP_MAX_US, AutoBalance, PollThreads
from ovsvhost.numeral import is_whole

if TYPE_CHECKING:
    from collections.abc import Mapping

PREFIX = "pmd-"
"""What the names of all of them begin with."""
LIVE = (
    "pmd-cpu-mask", "pmd-sleep-max", "pmd-maxsleep", "pmd-rxq-assign", "pmd-rxq-isolate", "pmd-auto-lb-rebal-interval",
    "pmd-auto-lb-load-threshold", "pmd-auto-lb-improvement-threshold", "pmd-auto-lb",
)  # fmt: skip
"""The options that may be refused while the switch runs."""


def poll_threads(other_config: Mapping[str, str], before: PollThreads) -> tuple[PollThreads, dict[str, str]]:
    """Reads the options.

    Args:
        other_config: the column.
        before: what is in force; it stays so where a value is refused.

    Returns:
        What shall be in force, and for each refused option a sentence that says why and the cure.
    """
    refused: dict[str, str] = {}
    wanted = PollThreads()
    try:
        wanted = replace(wanted, cpus=cpu_mask(other_config.get("pmd-cpu-mask", "")))
    except ConfigError as error:
        refused["pmd-cpu-mask"] = f"other_config:pmd-cpu-mask={other_config['pmd-cpu-mask']!r} is refused: {error}"
        wanted = replace(wanted, cpus=before.cpus)
    key = "pmd-sleep-max" if "pmd-sleep-max" in other_config else "pmd-maxsleep"
    try:
        default, of = sleep_max(other_config.get(key, ""))
        wanted = replace(wanted, max_sleep_us=default, max_sleep_us_of=of)
    except ConfigError as error:
        refused[key] = f"other_config:{key}={other_config[key]!r} is refused: {error}"
        wanted = replace(wanted, max_sleep_us=before.max_sleep_us, max_sleep_us_of=before.max_sleep_us_of)
    wanted = _sharing(wanted, other_config, before, refused)
    return _auto_balance(wanted, other_config, before, refused), refused


def checked(settings: Mapping[str, str]) -> PollThreads:
    """What ``settings`` ask for.

    Raises:
        ConfigError: one is none of the poll threads' or cannot be; with every sentence there is to say.
    """
    unknown = [f"other_config:{key} is no setting of poll threads: remove it" for key in settings if key not in LIVE]
    wanted, refused = poll_threads(settings, PollThreads())
    if unknown or refused:
        raise ConfigError("; ".join([*unknown, *refused.values()]))
    return wanted


def cpu_mask(text: str) -> frozenset[int]:
    """Cores of a hexadecimal mask with or without ``0x``; none for an empty one. ConfigError if it is no mask."""
    if not text:
        return frozenset()
    if not re.fullmatch(r"(0[xX])?[0-9a-fA-F]{1,1024}", text):
        raise ConfigError("give a hexadecimal mask, as 0x6 for cores 1 and 2")
    bits = int(text, 16)
    return frozenset(core for core in range(bits.bit_length()) if bits >> core & 1)


def sleep_max(text: str) -> tuple[int | None, tuple[tuple[int, int], ...]]:
    """``N``, ``core:N`` and lists of them, in µs: the default (None: adaptive) and the cores' own.

    Raises:
        ConfigError: a part is neither, or out of range.
    """
    default: int | None = None
    of: dict[int, int] = {}
    for part in text.split(",") if text else ():
        core, colon, longest = part.strip().rpartition(":")
        if not _is_number(longest) or int(longest) > SLEEP_MAX_US or (colon and not _is_number(core)):
            raise ConfigError(f"give microseconds 0..{SLEEP_MAX_US}, or core:microseconds for some, as 100,2:0")
        if colon:
            of[int(core)] = int(longest)
        else:
            default = int(longest)
    return default, tuple(sorted(of.items()))


def _sharing(
    wanted: PollThreads, other_config: Mapping[str, str], before: PollThreads, refused: dict[str, str]
) -> PollThreads:
    assign = other_config.get("pmd-rxq-assign", wanted.assign)
    if assign not in RXQ_POLICIES:
        refused["pmd-rxq-assign"] = (
            f"other_config:pmd-rxq-assign={assign!r} is refused: give {', '.join(RXQ_POLICIES[:-1])} or "
            f"{RXQ_POLICIES[-1]}"
        )
        assign = before.assign
    isolate = _boolean("pmd-rxq-isolate", other_config, before.isolate, refused, default=True)
    if not isolate and assign != "group":
        refused["pmd-rxq-isolate"] = "pmd-rxq-isolate can only be set false when using pmd-rxq-assign=group"
        isolate = True
    return replace(wanted, assign=assign, isolate=isolate)


def _auto_balance(
    wanted: PollThreads, other_config: Mapping[str, str], before: PollThreads, refused: dict[str, str]
) -> PollThreads:
    is_on = _boolean("pmd-auto-lb", other_config, before.auto_balance is not None, refused, default=False)
    if "pmd-auto-lb" in refused:
        return replace(wanted, auto_balance=before.auto_balance)
    if not is_on:
        return wanted
    kept = before.auto_balance or AutoBalance()

    def number(key: str, default: int, now: int, least: int, most: int) -> int:
        text = other_config.get(key)
        if text is None:
            return default
        if _is_number(text) and least <= int(text) <= most:
            return int(text)
        refused[key] = f"other_config:{key}={text!r} is refused: give a number {least}..{most}"
        return now

    standard = AutoBalance()
    auto = AutoBalance(
        number("pmd-auto-lb-rebal-interval", standard.every_min, kept.every_min, 0, REBALANCE_MIN_MAX) or 1,
        number("pmd-auto-lb-load-threshold", standard.load_pct, kept.load_pct, 0, 100),
        number("pmd-auto-lb-improvement-threshold", standard.improvement_pct, kept.improvement_pct, 0, 100),
    )
    return replace(wanted, auto_balance=auto)


def _boolean(key: str, other_config: Mapping[str, str], now: bool, refused: dict[str, str], *, default: bool) -> bool:
    text = other_config.get(key)
    if text is None:
        return default
    if text in BOOLEANS:
        return BOOLEANS[text]
    refused[key] = f"other_config:{key}={text!r} is refused: give {' or '.join(BOOLEANS)}"
    return now


def rxq_affinity(text: str) -> tuple[tuple[int, int], ...]:
    """``queue:core`` pairs with commas between (``pmd-rxq-affinity``), by queue.

    Raises:
        ConfigError: a part is no such pair, or a queue stands there twice.
    """
    cpus: dict[int, int] = {}
    for part in text.split(",") if text.strip() else ():
        queue, _, core = part.strip().partition(":")
        if not _is_number(queue) or not _is_number(core):
            raise ConfigError("give queue:core pairs, as 0:3,1:7")
        if int(queue) in cpus:
            raise ConfigError(f"queue {int(queue)} stands there twice: give each one core")
        cpus[int(queue)] = int(core)
    return tuple(sorted(cpus.items()))


def _is_number(text: str) -> bool:
    return is_whole(text) and len(text) <= 5
