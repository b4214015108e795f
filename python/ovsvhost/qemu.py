"""QEMU's arguments for a port of the switch, as data. Pure: it runs nothing and looks at nothing.

A vhost-user NIC is three arguments that must agree with each other and with the port, plus guest memory that the
switch can map. Who creates the socket is turned around between the two sides::

    port type              socket made by    QEMU's chardev
    dpdkvhostuserclient    QEMU              path=…,server=on
    dpdkvhostuser          the switch        path=…,reconnect=1
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from ovsvhost.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

PortType = Literal["dpdkvhostuserclient", "dpdkvhostuser"]

_MAX_QUEUE_PAIRS = 128
# The release in which `reconnect=` (seconds) gave way to `reconnect-ms=`.
_RECONNECT_MS_SINCE = (9, 2)


@dataclass(frozen=True, kw_only=True)
class Nic:
    """One vhost-user NIC of a guest.

    Attributes:
        socket: path of the port's socket.
        type: the port's type; decides which side creates the socket.
        mac: the guest's address, ``aa:bb:cc:dd:ee:ff``.
        queues: queue pairs, 1..128.
        reconnect_s: for ``dpdkvhostuser``: seconds between QEMU's attempts to come back after the switch went away, 0
            never tries.
        vectors: MSI-X vectors; None gives ``2 * queues + 2`` for several queues and QEMU's default for one, 0 gives
            INTx.
        options: further properties of ``virtio-net-pci``, such as ``mrg_rxbuf=off``.
    """

    socket: str
    type: PortType
    mac: str
    queues: int = 1
    reconnect_s: int = 1
    vectors: int | None = None
    options: Mapping[str, str] = field(default_factory=dict)


def nic_arguments(nic: Nic, *, name: str, version: tuple[int, int] = (7, 2)) -> list[str]:
    """The chardev, netdev and device arguments of one NIC.

    Args:
        nic: the NIC.
        name: an identifier that no other argument of this QEMU uses.
        version: QEMU's release, since an option was renamed in 9.2.

    Raises:
        ConfigError: a number of queues that vhost-user cannot carry.
    """
    checked_queues(nic.queues, name)
    vectors = 2 * nic.queues + 2 if nic.vectors is None and nic.queues > 1 else nic.vectors
    device = {"netdev": name, "mac": nic.mac}
    if nic.queues > 1:
        device["mq"] = "on"
    if vectors is not None:
        device["vectors"] = str(vectors)
    netdev = {"id": name, "chardev": f"{name}-socket", "vhostforce": "on"}
    if nic.queues > 1:
        netdev["queues"] = str(nic.queues)
    return [
        "-chardev",
        _option("socket", {"id": f"{name}-socket", "path": nic.socket, **_connection(nic, version)}),
        "-netdev",
        _option("vhost-user", netdev),
        "-device",
        _option("virtio-net-pci", {**device, **nic.options}),
    ]


def checked_queues(queues: int, of: str) -> int:
    """Gives back ``queues`` if a vhost-user NIC can have as many pairs; ConfigError, naming ``of``, says how many."""
    if not 1 <= queues <= _MAX_QUEUE_PAIRS:
        raise ConfigError(f"queues={queues} of {of}: a vhost-user NIC has 1..{_MAX_QUEUE_PAIRS} queue pairs")
    return queues


def memory_arguments(
    size_mib: int, *, hugepages: str | None = None, shared: bool = True, prealloc: bool = False
) -> list[str]:
    """Guest memory that the switch can map.

    Args:
        size_mib: memory of the guest in MiB.
        hugepages: a hugetlbfs mount point, such as ``/dev/hugepages``; None takes a memfd, which needs no setup.
        shared: False makes the memory private, which no vhost-user back-end can serve (a test of the error).
        prealloc: have all of it from the beginning, as a port with ``dq-zero-copy`` needs it. Hugepages always are.
    """
    share = {"share": "on" if shared else "off"}
    size = {"id": "mem", "size": f"{size_mib}M"}
    whole = {"prealloc": "on"} if prealloc else {}
    backend = (
        _option("memory-backend-memfd", {**size, **whole, **share})
        if hugepages is None
        else _option("memory-backend-file", {**size, "mem-path": hugepages, "prealloc": "on", **share})
    )
    return ["-m", f"{size_mib}M", "-object", backend, "-numa", "node,memdev=mem"]


def command_line(arguments: Sequence[str]) -> str:
    """The arguments as a person types them: quoted for the shell, one option a line."""
    lines: list[list[str]] = []
    for argument in arguments:
        if argument.startswith("-") or not lines:
            lines.append([])
        lines[-1].append(shlex.quote(argument))
    return " \\\n  ".join(" ".join(words) for words in lines)


def _connection(nic: Nic, version: tuple[int, int]) -> dict[str, str]:
    if nic.type == "dpdkvhostuserclient":
        return {"server": "on"}
    if nic.reconnect_s == 0:
        return {}
    if version >= _RECONNECT_MS_SINCE:
        return {"reconnect-ms": str(nic.reconnect_s * 1000)}
    return {"reconnect": str(nic.reconnect_s)}


def _option(kind: str, values: Mapping[str, str]) -> str:
    # A comma ends a value in QEMU's syntax; a doubled one is a comma.
    return ",".join([kind, *(f"{key}={value.replace(',', ',,')}" for key, value in values.items())])
