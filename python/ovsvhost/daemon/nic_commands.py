"""What ``ovs-appctl`` asks about network devices: ``ovsvhost/nic-show``, which Open vSwitch has not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ovsvhost.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from ovsvhost._core import NicQueue, PortState

_SHARES = (("p50", 0.5), ("p99", 0.99))


@dataclass(frozen=True, slots=True)
class Asked:
    """The arguments of one command.

    Attributes:
        port: show this one only.
        histograms: show how many frames took how long.
    """

    port: str | None = None
    histograms: bool = False


def asked(arguments: Sequence[str]) -> Asked:
    """Reads ``[-hist] [PORT]``.

    Raises:
        ConfigError: another option, or two ports.
    """
    ports = [word for word in arguments if not word.startswith("-")]
    options = [word for word in arguments if word.startswith("-")]
    if unknown := [option for option in options if option != "-hist"]:
        raise ConfigError(f"{unknown[0]} is not an option here: -hist is")
    if len(ports) > 1:
        raise ConfigError(f"{ports[1]!r}: give one port, or none for all")
    return Asked(ports[0] if ports else None, bool(options))


def nic_show(ports: Mapping[str, tuple[PortState, Sequence[NicQueue]]], *, histograms: bool = False) -> str:
    """``ovsvhost/nic-show``: of each queue, where its descriptors are, and how long the device has them.

    Times are from handing a frame to the kernel until it is found completed. They are counted in powers of two, so a
    share is given as the bound that it is below.
    """
    lines: list[str] = []
    for name, (state, queues) in sorted(ports.items()):
        status = state.status
        mode = f", {status['xdp-mode-in-use']}" if "xdp-mode-in-use" in status else ""
        lines.append(f"{name}: {status.get('if_name', '')}{mode}, link {'up' if state.link_up else 'down'}")
        if state.error:
            lines.append(f"  error: {state.error}")
        for number, queue in enumerate(queues):
            lines += _queue(number, queue, status.get("n_txq_desc", "?"))
            if histograms:
                lines += _histogram(queue)
    return "".join(f"{line}\n" for line in lines)


def _queue(number: int, queue: NicQueue, ring: str) -> Iterator[str]:
    yield f"  queue {number}:"
    yield (
        f"    tx in flight: {queue.inflight} of {ring}, at most {queue.inflight_max}; completed: {queue.completed}; "
        f"abandoned: {queue.abandoned}"
    )
    counted = sum(queue.latency_us)
    if counted:
        shares = ", ".join(f"{name} < {_below(queue, counted * share)}" for name, share in _SHARES)
        yield f"    post to completion (us): {shares}, max {queue.latency_max_us}; untimed: {queue.untimed}"
    yield f"    rx missed: {queue.rx_missed}"


def _below(queue: NicQueue, rank: float) -> int:
    """The bound, µs, that so many frames are below; the last bucket has none but the longest time of all."""
    passed = 0
    for bits, count in enumerate(queue.latency_us[:-1]):
        passed += count
        if passed >= rank:
            return int(2**bits)
    return queue.latency_max_us + 1


def _histogram(queue: NicQueue) -> Iterator[str]:
    used = [bits for bits, count in enumerate(queue.latency_us) if count]
    for bits in range(used[0], used[-1] + 1) if used else ():
        last = bits == len(queue.latency_us) - 1
        yield f"      {'>=' if last else '<'} {2 ** (bits - 1) if last else 2**bits:>8} us  {queue.latency_us[bits]}"
