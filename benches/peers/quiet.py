"""What a switch costs when nothing happens, and what the first frame after a silence waits for.

Both are measured with the project's own front-end: two guests that are connected and say nothing; one frame there and
back, at once after the one before, or one per millisecond, so that a poll thread that sleeps has to be woken each time.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import machine

if TYPE_CHECKING:
    from cases import Case
    from generators import Frontend
    from switches import Switch

_SETTLE_S = 1.0
"""After the guests fell silent: announcements and the switch's own start-up are over."""
_RING = "--ring-size=256"


@dataclass(frozen=True)
class RoundTrips:
    """Times of one frame there and back, µs, through the switch twice."""

    count: int
    lost: int
    p50_us: float
    p99_us: float


def idle_cores(switch: Switch, frontend: Frontend, duration_s: float) -> float:
    """Processor time of the whole switch process with two silent guests, in cores."""
    words = frontend.base(switch.sockets, 0, duration_s + 60)
    ends = [f"--end=socket={socket},role=receive" for socket in switch.sockets]
    with switch.turn(), frontend.start(switch.sockets, [*words, _RING, "--control=yes", *ends]) as run:
        run.wait_for_event("measuring")
        time.sleep(_SETTLE_S)
        before, begin = machine.process_clock(switch.pid), time.monotonic()
        time.sleep(duration_s)
        used = machine.process_clock(switch.pid) - before
        share = used.ran_ns / 1e9 / (time.monotonic() - begin)
        run.say("stop")
        run.report()
        time.sleep(0.2)
    return share


def round_trips(switch: Switch, frontend: Frontend, case: Case, *, interval_us: int, duration_s: float) -> RoundTrips:
    """One frame there and back at a time. With ``interval_us`` the next one starts so long after the last."""
    words = frontend.base(switch.sockets, 0.2, duration_s)
    mode = ["--mode=latency", f"--interval-us={interval_us}", f"--sizes={case.size}", "--check=sequence", _RING]
    ends = [f"--end=socket={socket}" for socket in switch.sockets]
    with switch.turn(), frontend.start(switch.sockets, [*words, *mode, *ends]) as run:
        measured = run.report()["measured"]
        time.sleep(0.2)
    return RoundTrips(measured["round_trips"], measured["lost"], measured["p50_us"], measured["p99_us"])
