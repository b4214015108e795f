"""A virtual switch for virtual machines: Open vSwitch's vhost-user ports without DPDK.

In process::

    from ovsvhost import Switch

    with Switch(pmd_cpus={1}) as switch:
        bridge = switch.add_bridge("br0")
        port = bridge.add_port("v0", options={"vhost-server-path": "/tmp/v0"})
        port.wait_link(timeout_s=5)
        print(port.statistics)

As a service: ``ovsvhost daemon``, driven by ``ovs-vsctl`` or ``ovsvhost vsctl``. Names are loaded when they are first
used, so that the command line starts fast.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ovsvhost.errors import ConfigError, InternalError, KernelError, OvsvhostError, PeerError

if TYPE_CHECKING:
    from ovsvhost.apply import VERSION as __version__  # noqa: N811 - the name that every package has
    from ovsvhost.switch import Switch as Switch
    from ovsvhost.switch import connect as connect

__all__ = [
    "ConfigError",
    "InternalError",
    "KernelError",
    "OvsvhostError",
    "PeerError",
    "Switch",
    "__version__",
    "connect",
]


def __getattr__(name: str) -> object:
    match name:
        case "Switch" | "connect":
            from ovsvhost import switch  # noqa: PLC0415 - not needed for the command line

            return getattr(switch, name)
        case "__version__":
            from ovsvhost.apply import VERSION  # noqa: PLC0415 - loads the Rust core

            return VERSION
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
