from __future__ import annotations

import pytest

from ovsvhost.daemon.settings import pending, startup, stats_interval_ms


@pytest.mark.parametrize("feature", ["vhost-iommu-support", "vhost-postcopy-support"])
def test_a_feature_that_is_not_served_yet_is_said_at_start(feature: str) -> None:
    assert f"other_config:{feature}=true is not in force" in startup({feature: "true"}).notices[0]
    assert startup({feature: "false"}).notices == ()


def test_dpdk_options_are_accepted_with_a_notice() -> None:
    assert "dpdk-init, dpdk-socket-mem" in startup({"dpdk-socket-mem": "1", "dpdk-init": "true"}).notices[0]


def test_an_option_that_was_removed_is_pending_too() -> None:
    assert pending(startup({"vhost-sock-dir": "a"}), {}) == ("vhost-sock-dir",)
    assert pending(startup({}), {"stats-update-interval": "1"}) == ()


@pytest.mark.parametrize(("text", "ms"), [("", 5000), ("10000", 10000), ("250", 250), ("1", 100), ("soon", 5000)])
def test_the_statistics_interval(text: str, ms: int) -> None:
    assert stats_interval_ms({"stats-update-interval": text} if text else {}) == ms
