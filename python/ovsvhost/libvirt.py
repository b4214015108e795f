"""libvirt's XML for a port of the switch, as text. Pure: it runs nothing and looks at nothing.

What ``ovsvhost.qemu`` is for QEMU's command line. Who makes the socket stands in ``mode``, as libvirt sees it::

    port type              socket made by    libvirt's source
    dpdkvhostuserclient    QEMU              mode='server'
    dpdkvhostuser          the switch        mode='client', knocks again when the switch went away
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from xml.sax.saxutils import quoteattr

from ovsvhost.qemu import checked_queues

if TYPE_CHECKING:
    from ovsvhost.qemu import Nic


def interface(nic: Nic) -> str:
    """The ``<interface>`` element of one NIC, as it stands in a domain or goes to ``virsh attach-device``.

    Args:
        nic: the NIC; ``vectors`` and ``options`` have no words of their own in libvirt and are not used.

    Raises:
        ConfigError: a number of queues that vhost-user cannot carry.
    """
    queues = checked_queues(nic.queues, "the interface")
    mode = "server" if nic.type == "dpdkvhostuserclient" else "client"
    source = f"<source type='unix' path={quoteattr(nic.socket)} mode='{mode}'"
    if mode == "client" and nic.reconnect_s:
        source += f">\n    <reconnect enabled='yes' timeout='{nic.reconnect_s}'/>\n  </source>"
    else:
        source += "/>"
    driver = f"<driver queues='{queues}'>" if queues > 1 else "<driver>"
    return (
        "<interface type='vhostuser'>\n"
        f"  <mac address={quoteattr(nic.mac)}/>\n"
        f"  {source}\n"
        "  <model type='virtio'/>\n"
        f"  {driver}\n"
        # A frame of 9000 bytes needs several of a Linux guest's buffers.
        "    <host mrg_rxbuf='on'/>\n"
        "  </driver>\n"
        "</interface>\n"
    )


def memory_backing(*, hugepages: bool = False, prealloc: bool = False) -> str:
    """The ``<memoryBacking>`` element of a domain whose memory the switch can map.

    Args:
        hugepages: take it from hugepages; else from a memfd, which needs no setup.
        prealloc: have all of it from the beginning, as a port with ``dq-zero-copy`` needs it.
    """
    elements = ["<hugepages/>" if hugepages else "<source type='memfd'/>", "<access mode='shared'/>"]
    if prealloc:
        elements.append("<allocation mode='immediate'/>")
    return "".join(f"{line}\n" for line in ["<memoryBacking>", *(f"  {e}" for e in elements), "</memoryBacking>"])


def comment(text: str) -> str:
    """An XML comment that says ``text``, whatever stands in it: two dashes would end it."""
    while "--" in text:
        text = text.replace("--", "- -")
    return f"<!-- {text.strip()} -->\n"
