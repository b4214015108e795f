"""Every command there is, by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ovsvhost.vsctl import bridge_verbs, controller_verbs, database_verbs, datapath_verbs, port_verbs, switch_verbs

if TYPE_CHECKING:
    from ovsvhost.vsctl.grammar import Verb

VERBS: dict[str, Verb] = {
    verb.name: verb
    for module in (switch_verbs, bridge_verbs, port_verbs, controller_verbs, datapath_verbs, database_verbs)
    for verb in module.VERBS
}
