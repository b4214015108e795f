"""What ``vhost-features`` may be, and that a refusal leaves what was."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ovsvhost.vhost_features import feature_limit


@pytest.mark.parametrize(
    ("other_config", "limit"),
    [
        ({}, "all"),
        ({"vhost-features": "all"}, "all"),
        ({"vhost-features": "ovs-3.1"}, "ovs-3.1"),
        ({"vhost-features": "ovs-3.1", "userspace-tso-enable": "false"}, "ovs-3.1"),
        ({"vhost-features": "ovs-3.1", "userspace-tso-enable": "true"}, "ovs-3.1-tso"),
        ({"vhost-features": "0x130208020"}, 0x1_3020_8020),
        ({"vhost-features": "0XffffFFFFffffFFFF"}, 2**64 - 1),
    ],
)
@pytest.mark.rows("L5")
def test_what_guests_are_offered_is_a_name_or_a_mask(other_config: dict[str, str], limit: str | int) -> None:
    assert feature_limit(other_config, 0x8000) == (limit, {})


@pytest.mark.parametrize("text", ["", "ovs", "ovs-3.1-tso", "130208020", "0x", "0x10000000000000000", "-0x1", "All"])
@pytest.mark.rows("L5")
def test_anything_else_is_refused_and_leaves_what_was(text: str) -> None:
    limit, refused = feature_limit({"vhost-features": text}, 0x8000)
    assert limit == 0x8000
    assert refused["vhost-features"].startswith(
        f"other_config:vhost-features={text!r} is refused (0x8000 stays in force): give all, ovs-3.1"
    )


@given(st.text())
def test_no_text_stops_the_switch(text: str) -> None:
    limit, refused = feature_limit({"vhost-features": text}, "all")
    assert (limit == "all") or not refused
