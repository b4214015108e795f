"""Who has what there is one of: sockets, devices and port numbers.

Where two rows want the same, the one that has it keeps it; else the first by name. Numbers that are held go first, then
those that are asked for, then the lowest that are free.
"""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING

from ovsvhost.daemon.verdict import Verdict, Wanted, keep_out
from ovsvhost.errors import ConfigError
from ovsvhost.model import NO_MAC, OFPORT_MAX, free_ofport

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ovsvhost.model import AnyPort


def share_out(wanted: Sequence[Wanted], held: Mapping[str, int]) -> tuple[dict[str, list[AnyPort]], list[Verdict]]:
    """Gives every row its socket or device and its number, or the reason why another has it."""
    first = sorted(wanted, key=lambda want: (held.get(want.row.uuid, -1) < 1, want.row.name))
    owners: dict[tuple[str, str], str] = {}
    numbers: dict[str, dict[int, str]] = {}
    given: dict[str, int] = {}
    refusals: dict[str, str] = {}
    for want in first:
        if want.claims is not None:
            what, which = want.claims
            owner = owners.setdefault((what, os.path.normpath(which)), want.row.name)
            if owner != want.row.name:
                other = "path" if what == "socket" else what
                refusals[want.row.uuid] = (
                    f"{what} {which!r} belongs to port {owner!r} already: give {want.row.name!r} another {other}"
                )

    def claim(want: Wanted, number: int | None) -> bool:
        if number is None or not 1 <= number <= OFPORT_MAX:
            return False
        on_bridge = numbers.setdefault(want.bridge, {})
        if on_bridge.setdefault(number, want.row.name) != want.row.name:
            return False
        given[want.row.uuid] = number
        return True

    candidates = [want for want in first if want.row.uuid not in refusals]
    for want in candidates:
        number = held.get(want.row.uuid)
        if want.row.ofport_request in {None, number}:
            claim(want, number)
    for want in candidates:
        request = want.row.ofport_request
        if want.row.uuid not in given and request is not None and not claim(want, request):
            holder = numbers.get(want.bridge, {}).get(request)
            why = f"port {holder!r} has it" if holder else f"a number is 1..{OFPORT_MAX}"
            refusals[want.row.uuid] = f"ofport_request={request} cannot be had, {why}: choose another or clear it"
    for want in candidates:
        if want.row.uuid not in given and want.row.uuid not in refusals:
            try:
                claim(want, free_ofport(numbers.get(want.bridge, ())))
            except ConfigError as error:
                refusals[want.row.uuid] = str(error)

    ports: dict[str, list[AnyPort]] = {}
    verdicts = []
    for want in wanted:
        verdict, port = _decide(want, given.get(want.row.uuid, -1), refusals.get(want.row.uuid))
        verdicts.append(verdict)
        if port is not None:
            ports.setdefault(want.bridge, []).append(port)
    return ports, verdicts


def _decide(want: Wanted, number: int, refusal: str | None) -> tuple[Verdict, AnyPort | None]:
    row = want.row
    device = want.claims[1] if want.claims is not None and want.claims[0] == "device" else None
    verdict = Verdict(
        uuid=row.uuid, name=row.name, bridge=want.bridge, kind="active", ofport=number, errors=want.errors,
        mac=row.mac or NO_MAC, device=device
    )  # fmt: skip
    if refusal is not None:
        return keep_out(verdict, refusal, *want.errors), None
    if want.port is None:
        return replace(verdict, kind="waiting"), None
    return verdict, replace(want.port, ofport=number)
