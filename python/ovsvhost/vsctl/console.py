"""What goes to the terminal besides a command's own output, in the words and the form of OVS's tools."""

from __future__ import annotations

import itertools
import sys
import time

_line_numbers = itertools.count(1)


def complain(program: str, text: str) -> None:
    """Says on stderr why the program fails: ``program: text``."""
    print(f"{program}: {text}", file=sys.stderr)  # noqa: T201 - this is what the user reads


def warn(module: str, text: str) -> None:
    """Says something on stderr that is no failure, as OVS's log has it on a console.

    Args:
        module: the part of the program that speaks, by OVS's name for it.
        text: what it says.
    """
    stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    print(f"{stamp}|{next(_line_numbers):05d}|{module}|WARN|{text}", file=sys.stderr)  # noqa: T201
