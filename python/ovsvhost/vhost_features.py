"""``Open_vSwitch:other_config:vhost-features``: what guests are offered at most, so that they can move elsewhere.

::

    all          every feature that is served (the default)
    ovs-3.1      what Open vSwitch 3.1 offers, with or without this row's userspace-tso-enable
    0x…          these virtio feature bits, in hexadecimal; bits that are not served do no harm

Live, for guests that start from then on: one that is connected keeps what its driver accepted. A value that cannot be
is refused by name, and what was in force stays in force.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ovsvhost.model import FeatureLimit

KEY = "vhost-features"


def feature_limit(other_config: Mapping[str, str], before: FeatureLimit) -> tuple[FeatureLimit, dict[str, str]]:
    """Reads the option.

    Args:
        other_config: the column.
        before: what is in force; it stays so when the value is refused.

    Returns:
        What shall be in force, and for a refused value a sentence that says why and the cure.
    """
    text = other_config.get(KEY, "all")
    if text == "all":
        return "all", {}
    if text == "ovs-3.1":
        return ("ovs-3.1-tso" if other_config.get("userspace-tso-enable") == "true" else "ovs-3.1"), {}
    if re.fullmatch(r"0[xX][0-9a-fA-F]{1,16}", text):
        return int(text, 16), {}
    now = before if isinstance(before, str) else hex(before)
    return before, {
        KEY: f"other_config:{KEY}={text!r} is refused ({now} stays in force): give all, ovs-3.1, or virtio feature "
        "bits in hexadecimal, as 0x130208020"
    }
