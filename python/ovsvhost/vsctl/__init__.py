"""``ovsvhost vsctl``: the grammar of ``ovs-vsctl`` 3.1, for hosts without any Open vSwitch installed.

::

    argv ─ options ─▶ grammar ─▶ commands ─┐
                                           ├─ session ─▶ one transaction on the replica ─▶ output
    verbs (bridge, port, controller, …) ───┘                         │
                                                        wait for cur_cfg, unless --no-wait

It takes what ``ovs-vsctl(8)`` takes, prints what that prints and exits with the same status; stock ``ovs-vsctl``
is the oracle of its tests. It talks to whatever serves the ``Open_vSwitch`` database: the daemon's embedded server
or a real ``ovsdb-server``. Only the program's name differs in messages.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from ovsvhost.errors import OvsvhostError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

PROGRAM = "ovsvhost vsctl"

_FAILED = 1
_TIMED_OUT = 142  # 128 + SIGALRM: what a shell says of ovs-vsctl when --timeout is over


def main(argv: Sequence[str], *, rundir: Path) -> int:
    """Runs one command line.

    Args:
        argv: the options and commands, without the program's name.
        rundir: the run directory; ``<rundir>/db.sock`` is the server without ``--db``.

    Returns:
        The exit status: 0 done, 1 refused (the reason is on stderr), 2 no such bridge (``br-exists``),
        142 ``--timeout`` is over. Blocks until then.
    """
    # Imported here, not above, so that a program that merely offers the command does not pay for it.
    from ovsvhost.store import json_shim  # noqa: PLC0415

    json_shim.install()
    from ovsvhost.vsctl import answers, console, context, grammar, options, replica, session, verbs  # noqa: PLC0415

    try:
        chosen, words = options.read(argv, verbs.VERBS.values(), f"unix:{rundir}/db.sock")
        if chosen.answer:
            answers.put(chosen.answer, chosen)
            return 0
        commands = grammar.parse(words, chosen.local, verbs.VERBS)
        session.run(PROGRAM, argv, chosen, commands)
        sys.stdout.flush()
    except OvsvhostError as error:
        sys.stdout.flush()
        console.complain(PROGRAM, str(error))
        return _FAILED
    except context.Exit as answer:
        return answer.status
    except replica.DeadlinePassed:
        console.warn("fatal_signal", "terminating with signal 14 (Alarm clock)")
        return _TIMED_OUT
    except BrokenPipeError:
        # Whoever read the output has gone; nothing is left to be told, not even at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _FAILED
    return 0
