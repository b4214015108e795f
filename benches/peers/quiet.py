"""What a switch costs when nothing happens, and what a frame in flight alone takes.

Both are measured with the project's own front-end: guests that are connected and say nothing; one frame there and back,
at once after the one before, or one per millisecond, so that a poll thread that sleeps has to be woken each time.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import machine

if TYPE_CHECKING:
    from cases import Case
    from generators import Frontend
    from rounds import Window
    from switches import Switch

_SETTLE_S = 1.0
"""After the guests fell silent: announcements and the switch's own start-up are over."""


def idle(switch: Switch, frontend: Frontend, case: Case, duration_s: float) -> Window:
    """Processor time of the whole switch process with every guest of the case silent, in cores."""
    with switch.turn():
        with frontend.crowd(switch.all_sockets(case)):
            time.sleep(_SETTLE_S)
            before, begin = machine.process_clock(switch.pid), time.monotonic()
            time.sleep(duration_s)
            used = machine.process_clock(switch.pid) - before
            cores = used.ran_ns / 1e9 / (time.monotonic() - begin)
        time.sleep(0.2)
    # Threads that ended meanwhile took their accounts with them.
    return {"cores": cores, "wait_share": max(0.0, used.wait_share)}


def round_trips(switch: Switch, frontend: Frontend, case: Case, *, warmup_s: float, duration_s: float) -> Window:
    """One frame there and back at a time."""
    words = frontend.round_trips(case, switch.sockets, warmup_s, duration_s)
    with switch.turn():
        clock = switch.clock()
        with frontend.start(switch.sockets, words) as run:
            found = run.report()["measured"]
        clock = switch.clock() - clock
        time.sleep(0.2)
    count = found["round_trips"]
    return {
        **{name: found[name] for name in ("p50_us", "p99_us", "p999_us")},
        "lost_share": found["lost"] / max(1, found["lost"] + count),
        "wait_share": clock.wait_share,
    }
