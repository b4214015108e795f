"""Keys that nobody reads are said, and nobody else's."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ovsvhost.errors import ConfigError
from ovsvhost.other_config import SERVED, complaints, interface_settings, unserved

if TYPE_CHECKING:
    from ovsvhost.other_config import Kind

KINDS = sorted(SERVED)


@pytest.mark.rows("L5")
@pytest.mark.parametrize(
    ("kind", "key"),
    [
        ("Open_vSwitch", "smc-enable"),
        ("Open_vSwitch", "max-idle"),
        ("Open_vSwitch", "pmd-foo"),
        ("Bridge", "mcast-snooping-table-size"),
        ("Bridge", "mac-ageing-time"),
        ("Port", "bond-hash-basis"),
        ("Port", "bond-miimon-interval"),
        ("Port", "lb-output-action"),
        ("guest", "emc-enable"),
        ("guest", "tx_steering"),
        ("device", "tx-steering"),
        ("local", "pmd-rxq-affinity"),
    ],
)
def test_a_key_that_nobody_reads_is_named_with_the_cure(kind: Kind, key: str) -> None:
    assert unserved(kind, {key: "true"}) == (key,)
    assert complaints(kind, "row 'r'", {key: "true"}) == (
        f"other_config:{key} of row 'r' is not in force: it is unknown or not served, clear it",
    )


@pytest.mark.parametrize(
    ("kind", "key", "value"),
    [
        ("Open_vSwitch", "hw-offload", "false"),
        ("Open_vSwitch", "dpdk-init", "true"),
        ("Open_vSwitch", "ovn-encap-type", "geneve"),
        ("Bridge", "disable-in-band", "true"),
        ("Bridge", "neutron-foo", "1"),
        ("Port", "net_uuid", "6d0dba0c"),
        ("Port", "segmentation_id", "7"),
        ("device", "emc-enable", "false"),
    ],
)
def test_what_is_so_anyway_or_is_another_programs_is_passed_by(kind: Kind, key: str, value: str) -> None:
    assert unserved(kind, {key: value}) == ()


@given(st.sampled_from(KINDS), st.dictionaries(st.text() | st.sampled_from(["hw-offload", "tag"]), st.text()))
def test_each_key_is_served_passed_by_or_said_once(kind: Kind, other_config: dict[str, str]) -> None:
    said = unserved(kind, other_config)
    assert sorted(set(said)) == list(said)
    assert set(said) <= other_config.keys() - SERVED[kind]
    assert unserved(kind, {key: other_config[key] for key in other_config if key not in said}) == ()


@pytest.mark.rows("L5")
def test_an_interface_has_what_can_be_and_says_the_rest() -> None:
    settings = interface_settings("guest", "v0", {"tx-steering": "thread", "pmd-rxq-affinity": "0:3,1:7"})
    assert settings.checked() == settings
    assert (settings.tx_steering, settings.rxq_affinity) == ("thread", ((0, 3), (1, 7)))
    odd = interface_settings("device", "eth1", {"tx-steering": "thread", "pmd-rxq-affinity": "0"})
    assert (odd.tx_steering, odd.rxq_affinity) == ("hash", None)
    key, affinity = odd.complaints
    assert key.startswith("other_config:tx-steering of interface 'eth1' is not in force")
    assert affinity.startswith("other_config:pmd-rxq-affinity='0' of interface 'eth1' is refused: give queue:core")
    with pytest.raises(ConfigError, match=r"tx-steering of .*; other_config:pmd-rxq-affinity='0'"):
        odd.checked()
