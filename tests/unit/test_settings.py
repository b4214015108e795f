from __future__ import annotations

import pytest

from ovsvhost.daemon.settings import not_served, pending, startup, stats_interval_ms


@pytest.mark.rows("A14")
def test_an_iommu_is_not_served_unless_it_is_asked_for() -> None:
    assert startup({"vhost-iommu-support": "true"}).iommu
    assert startup({"vhost-iommu-support": "true"}).notices == ()
    assert not startup({"vhost-iommu-support": "false"}).iommu
    odd = startup({"vhost-iommu-support": "yes"})
    assert not odd.iommu
    assert odd.notices == ("other_config:vhost-iommu-support='yes' is not in force: give true or false",)
    assert not startup({}).iommu


@pytest.mark.rows("A14", "L4")
def test_an_iommu_asked_for_at_run_time_waits_for_a_restart() -> None:
    assert pending(startup({}), {"vhost-iommu-support": "true"}) == ("vhost-iommu-support",)


@pytest.mark.rows("A15")
def test_post_copy_is_off_unless_it_is_asked_for() -> None:
    assert startup({"vhost-postcopy-support": "true"}).postcopy
    assert not startup({"vhost-postcopy-support": "false"}).postcopy
    odd = startup({"vhost-postcopy-support": "1"})
    assert not odd.postcopy
    assert odd.notices == ("other_config:vhost-postcopy-support='1' is not in force: give true or false",)
    assert not startup({}).postcopy


def test_dpdk_options_are_accepted_with_a_notice() -> None:
    assert "dpdk-init, dpdk-socket-mem" in startup({"dpdk-socket-mem": "1", "dpdk-init": "true"}).notices[0]


def test_an_option_that_was_removed_is_pending_too() -> None:
    assert pending(startup({"vhost-sock-dir": "a"}), {}) == ("vhost-sock-dir",)
    assert pending(startup({}), {"stats-update-interval": "1"}) == ()


@pytest.mark.parametrize(("text", "ms"), [("", 5000), ("10000", 10000), ("250", 250), ("1", 100), ("soon", 5000)])
def test_the_statistics_interval(text: str, ms: int) -> None:
    assert stats_interval_ms({"stats-update-interval": text} if text else {}) == ms


@pytest.mark.rows("L5")
@pytest.mark.parametrize(("text", "in_force_ms"), [("abc", 5000), ("", 5000), ("-1", 5000), ("99", 100)])
def test_an_interval_that_cannot_be_is_said_with_the_one_in_force(text: str, in_force_ms: int) -> None:
    (sentence,) = not_served({"stats-update-interval": text}).values()
    assert sentence == (
        f"other_config:stats-update-interval={text!r} is not in force ({in_force_ms} is): give milliseconds, "
        "100 or more"
    )


@pytest.mark.rows("L5")
def test_an_option_of_the_switch_that_nobody_reads_is_said_by_name() -> None:
    assert not_served({"vhost-iommu-suport": "true", "hw-offload": "true", "flow-limit": "1"}) == {
        key: f"other_config:{key} of Open_vSwitch is not in force: it is unknown or not served, clear it"
        for key in ("flow-limit", "hw-offload", "vhost-iommu-suport")
    }
    served = {"stats-update-interval": "250", "vhost-sock-dir": "a", "pmd-cpu-mask": "6", "vhost-features": "all"}
    assert not_served({**served, "userspace-tso-enable": "true", "dpdk-init": "true", "hw-offload": "false"}) == {}


def test_the_hold_after_a_crash_is_a_second_unless_told() -> None:
    assert startup({}).restart_hold_ms == 1000
    assert startup({"restart-hold-ms": "0"}).restart_hold_ms == 0


@pytest.mark.parametrize("text", ["-1", "60001", "soon", "", "9" * 5000])
def test_a_hold_out_of_range_gives_a_notice_and_stays_a_second(text: str) -> None:
    at_start = startup({"restart-hold-ms": text})
    assert at_start.restart_hold_ms == 1000
    assert "0..60000" in at_start.notices[0]
