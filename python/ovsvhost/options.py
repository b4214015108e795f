"""A vhost-user port's ``options``, as scripts write them, turned into settings.

OVS's names stand at this edge and nowhere further in. A port whose socket cannot be named is *refused*; an option that
is unknown, out of range or not served leaves its default in force and is a *complaint*: the port works, and its row
says aloud which option does not.
"""

from __future__ import annotations

import grp
import os
import pwd
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ovsvhost.errors import ConfigError
from ovsvhost.model import (
    BACKPRESSURE_MAX_US,
    BOOLEANS,
    MTU_MAX,
    MTU_MIN,
    SOCKET_PATH_MAX,
    TX_RETRIES_DEFAULT,
    TX_RETRIES_MAX,
    TX_STEERINGS,
    Port,
    PortType,
)
from ovsvhost.numeral import is_whole

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from ovsvhost.model import TxSteering

CLIENT: PortType = "dpdkvhostuserclient"
SERVER: PortType = "dpdkvhostuser"

_ELSEWHERE = {
    "n_rxq": "the number of queues follows the guest",
    "n_txq": "the number of queues follows the guest",
    "n_rxq_desc": "it belongs to physical ports, a vhost ring's size is the guest's",
    "n_txq_desc": "it belongs to physical ports, a vhost ring's size is the guest's",
    "dpdk-devargs": "it belongs to physical ports",
    "tx-steering": "it belongs to the interface's other_config",
}


@dataclass(frozen=True, slots=True)
class PortOptions:
    """What the options of one port mean.

    Attributes:
        socket: absolute path, or None while a client port has none yet.
        complaints: one sentence per option that is not in force.
        tx_retries_max: as in `ovsvhost.model.Port`, like the rest.
    """

    socket: str | None
    complaints: tuple[str, ...] = ()
    tx_retries_max: int = TX_RETRIES_DEFAULT
    backpressure_us: int = 0
    socket_mode: int = 0o600
    socket_owner: int = -1
    socket_group: int = -1
    allow_file_memory: bool = False
    dq_zero_copy: bool = False

    def port(
        self, *, key: str, name: str, port_type: PortType, ofport: int, mtu: int | None, steering: TxSteering
    ) -> Port | None:
        """The port that they make with what its row says besides; None while it has no socket."""
        if self.socket is None:
            return None
        return Port(
            key=key,
            name=name,
            type=port_type,
            socket=self.socket,
            ofport=ofport,
            mtu=mtu,
            tx_retries_max=self.tx_retries_max,
            backpressure_us=self.backpressure_us,
            tx_steering=steering,
            socket_mode=self.socket_mode,
            socket_owner=self.socket_owner,
            socket_group=self.socket_group,
            allow_file_memory=self.allow_file_memory,
            dq_zero_copy=self.dq_zero_copy,
        )


def parse(name: str, port_type: PortType, options: Mapping[str, str], socket_dir: Path | None) -> PortOptions:
    """Reads the options of port ``name``.

    Args:
        name: the port's name; a server port's socket is called so.
        port_type: who creates the socket.
        options: the row's ``options`` column.
        socket_dir: where server ports' sockets lie; not needed for a client port.

    Raises:
        ConfigError: the port's socket cannot be named so.
    """
    left = dict(options)
    path = left.pop("vhost-server-path", None)
    complaints: list[str] = []

    def take(option: str, default: int, read: Callable[[str], int]) -> int:
        text = left.pop(option, None)
        if text is None:
            return default
        try:
            return read(text)
        except ConfigError as error:
            complaints.append(f"options:{option}={text!r} is not in force{error}")
            return default

    if port_type == SERVER:
        socket: str | None = check_socket_path(server_socket(name, socket_dir))
        if path is not None:
            complaints.append(
                f"options:vhost-server-path is not in force: the socket of a {SERVER} port is {socket!r}, "
                f"set type={CLIENT} for another"
            )
        mode = take("socket-mode", 0o600, _mode)
        owner = take("socket-owner", -1, _owner)
        group = take("socket-group", -1, _group)
    else:
        socket = None if path is None else check_socket_path(path)
        mode, owner, group = 0o600, -1, -1
        complaints += [
            f"options:{option} is not in force: the VMM creates the socket of a {CLIENT} port"
            for option in ("socket-mode", "socket-owner", "socket-group")
            if left.pop(option, None) is not None
        ]
    retries = take("tx-retries-max", TX_RETRIES_DEFAULT, tx_retries)
    backpressure = take("backpressure-us", 0, _backpressure)
    file_memory = bool(take("allow-file-memory", 0, _bool))
    zero_copy = bool(take("dq-zero-copy", 0, _bool))
    if zero_copy and port_type == SERVER:
        zero_copy = False
        complaints.append(
            f"options:dq-zero-copy is not in force: it is for client ports, set type={CLIENT} and "
            "options:vhost-server-path"
        )
    for option in sorted(left):
        if option in _ELSEWHERE:
            complaints.append(f"options:{option} is not in force, remove it: {_ELSEWHERE[option]}")
        else:
            complaints.append(f"options:{option} is unknown: remove it or correct its name")
    return PortOptions(socket, tuple(complaints), retries, backpressure, mode, owner, group, file_memory, zero_copy)


def tx_retries(text: str) -> int:
    """What ``tx-retries-max`` asks for; ConfigError with the end of a sentence about it if that cannot be."""
    if is_whole(text) and int(text) <= TX_RETRIES_MAX:
        return int(text)
    raise ConfigError(f" ({TX_RETRIES_DEFAULT} is): give a number 0..{TX_RETRIES_MAX}")


def tx_steering(name: str, other_config: Mapping[str, str]) -> tuple[TxSteering, tuple[str, ...]]:
    """What ``other_config:tx-steering`` of interface ``name`` asks for, and a complaint if that cannot be."""
    text = other_config.get("tx-steering", "hash")
    for steering in TX_STEERINGS:
        if text == steering:
            return steering, ()
    ways = " or ".join(TX_STEERINGS)
    return "hash", (
        f"other_config:tx-steering={text!r} of interface {name!r} is not in force (hash is): give {ways}",
    )  # fmt: skip


def check_mtu(name: str, mtu: int) -> None:
    """ConfigError, in OVS's words, when port ``name`` cannot have this MTU."""
    if not MTU_MIN <= mtu <= MTU_MAX:
        raise ConfigError(f"{name}: unsupported MTU {mtu}: give {MTU_MIN}..{MTU_MAX}")


def server_socket(name: str, socket_dir: Path | None) -> str:
    """Path of a server port's socket. ConfigError when the port's name cannot be a file's name."""
    if "/" in name or "\\" in name or name in {"", ".", ".."}:
        raise ConfigError(
            f"port name {name!r} cannot be the name of its socket: a {SERVER} port's name has no '/' or '\\', rename it"
        )
    return f"{socket_dir}/{name}"


def check_socket_path(path: str) -> str:
    """Gives back ``path`` if a socket can be there by its form; ConfigError says why not."""
    shown = ascii(path)
    try:
        size = len(path.encode())
    except UnicodeEncodeError:
        raise ConfigError(f"socket path {shown} is not UTF-8: choose a path that is") from None
    if "\0" in path:
        raise ConfigError(f"socket path {shown} holds a NUL byte: choose a path without")
    if not os.path.isabs(path):  # noqa: PTH117 - a str stays a str: Path would tidy it up
        raise ConfigError(f"socket path {shown} is relative: give an absolute path")
    if size > SOCKET_PATH_MAX:
        raise ConfigError(
            f"socket path {shown} has {size} bytes and a socket's path at most {SOCKET_PATH_MAX}: choose a shorter one"
        )
    return path


def socket_directory(rundir: Path, vhost_sock_dir: str | None) -> Path:
    """Where server ports' sockets lie: the run directory or a directory under it.

    Raises:
        ConfigError: ``vhost-sock-dir`` leads out of the run directory.
    """
    if not vhost_sock_dir:
        return rundir
    if ".." in vhost_sock_dir:
        raise ConfigError(
            f"other_config:vhost-sock-dir={vhost_sock_dir!r} is refused: it may not hold '..'; "
            f"name a directory under {str(rundir)!r} and restart the switch"
        )
    return rundir / vhost_sock_dir.lstrip("/")


def within(what: str, value: int, least: int, most: int) -> None:
    """ConfigError, with the range, when ``value`` lies outside of it."""
    if not least <= value <= most:
        raise ConfigError(f"{what}={value} is out of range: give {least}..{most}")


def _backpressure(text: str) -> int:
    if is_whole(text) and int(text) <= BACKPRESSURE_MAX_US:
        return int(text)
    raise ConfigError(f" (0 is): give microseconds 0..{BACKPRESSURE_MAX_US}")


def _mode(text: str) -> int:
    try:
        mode = int(text, 8)
    except ValueError:
        mode = -1
    if 0 <= mode <= 0o777:
        return mode
    raise ConfigError(" (0600 is): give permission bits in octal, as 0660")


def _bool(text: str) -> int:
    if text in BOOLEANS:
        return BOOLEANS[text]
    raise ConfigError(" (false is): give true or false")


def _owner(text: str) -> int:
    if is_whole(text):
        return int(text)
    try:
        return pwd.getpwnam(text).pw_uid
    except (KeyError, ValueError):
        raise ConfigError(": there is no such user, create it or name another") from None


def _group(text: str) -> int:
    if is_whole(text):
        return int(text)
    try:
        return grp.getgrnam(text).gr_gid
    except (KeyError, ValueError):
        raise ConfigError(": there is no such group, create it or name another") from None
