from __future__ import annotations

import pytest

from ovsvhost.daemon.settings import cpu_mask, pending, startup, stats_interval_ms


@pytest.mark.parametrize(
    ("mask", "cores"), [("", set()), ("2", {1}), ("0x6", {1, 2}), ("0xFF00000000", set(range(32, 40))), ("0", set())]
)
def test_a_cpu_mask_is_hexadecimal(mask: str, cores: set[int]) -> None:
    assert cpu_mask(mask) == cores


def test_more_cores_than_one_are_accepted_with_a_notice() -> None:
    at_start = startup({"pmd-cpu-mask": "0x6"})
    assert at_start.pmd_cpus == {1, 2}
    assert "one poll thread runs, on core 1" in at_start.notices[0]


@pytest.mark.parametrize("mask", ["xyz", "-2", "0x"])
def test_a_mask_that_is_none_gives_a_notice_and_the_default(mask: str) -> None:
    at_start = startup({"pmd-cpu-mask": mask})
    assert at_start.pmd_cpus == frozenset()
    assert "is not in force" in at_start.notices[0]


@pytest.mark.parametrize(("text", "sleep"), [("0", 0), ("100", 100), ("10000", 10000), ("50,1:70", 50)])
def test_the_longest_sleep_is_read(text: str, sleep: int) -> None:
    assert startup({"pmd-sleep-max": text}).max_sleep_us == sleep
    assert startup({"pmd-maxsleep": text}).max_sleep_us == sleep


@pytest.mark.parametrize("text", ["10001", "-1", "soon", ""])
def test_a_sleep_out_of_range_gives_a_notice_and_stays_adaptive(text: str) -> None:
    at_start = startup({"pmd-sleep-max": text})
    assert at_start.max_sleep_us is None
    assert "0..10000" in at_start.notices[0]


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


def test_the_hold_after_a_crash_is_a_second_unless_told() -> None:
    assert startup({}).restart_hold_ms == 1000
    assert startup({"restart-hold-ms": "0"}).restart_hold_ms == 0


@pytest.mark.parametrize("text", ["-1", "60001", "soon", ""])
def test_a_hold_out_of_range_gives_a_notice_and_stays_a_second(text: str) -> None:
    at_start = startup({"restart-hold-ms": text})
    assert at_start.restart_hold_ms == 1000
    assert "0..60000" in at_start.notices[0]
