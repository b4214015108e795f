"""The poll threads' options: what is read, what is refused, and that a refusal leaves what was."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ovsvhost.errors import ConfigError
from ovsvhost.model import AutoBalance, PollThreads
from ovsvhost.pmd_settings import LIVE, cpu_mask, poll_threads, rxq_affinity, sleep_max

BEFORE = PollThreads(
    cpus=frozenset({3}),
    max_sleep_us=50,
    max_sleep_us_of=((3, 7),),
    assign="group",
    isolate=False,
    auto_balance=AutoBalance(5, 80, 40),
)


@pytest.mark.parametrize(
    ("mask", "cores"), [("", set()), ("2", {1}), ("0x6", {1, 2}), ("0xFF00000000", set(range(32, 40))), ("0", set())]
)
def test_a_cpu_mask_is_hexadecimal(mask: str, cores: set[int]) -> None:
    assert cpu_mask(mask) == cores


@pytest.mark.parametrize("mask", ["xyz", "-2", "0x", "1_0", " 2"])
def test_a_mask_that_is_none_is_refused_and_the_threads_stay(mask: str) -> None:
    pmds, refused = poll_threads({"pmd-cpu-mask": mask}, BEFORE)
    assert pmds.cpus == {3}
    assert f"other_config:pmd-cpu-mask={mask!r} is refused: give a hexadecimal mask" in refused["pmd-cpu-mask"]


@pytest.mark.parametrize(
    ("text", "default", "of"),
    [
        ("", None, ()),
        ("0", 0, ()),
        ("10000", 10000, ()),
        ("50,1:70", 50, ((1, 70),)),
        ("2:0, 1:5", None, ((1, 5), (2, 0))),
    ],
)
def test_the_longest_sleep_is_read_for_all_and_for_some(
    text: str, default: int | None, of: tuple[tuple[int, int], ...]
) -> None:
    assert sleep_max(text) == (default, of)
    for key in ("pmd-sleep-max", "pmd-maxsleep"):
        pmds, refused = poll_threads({key: text}, BEFORE)
        assert (pmds.max_sleep_us, pmds.max_sleep_us_of, refused) == (default, of, {})


@pytest.mark.parametrize("text", ["10001", "-1", "soon", "5,", "x:5", "1:", "1:2:3"])
def test_a_sleep_that_cannot_be_is_refused_and_the_old_one_stays(text: str) -> None:
    pmds, refused = poll_threads({"pmd-sleep-max": text}, BEFORE)
    assert (pmds.max_sleep_us, pmds.max_sleep_us_of) == (50, ((3, 7),))
    assert "give microseconds 0..10000" in refused["pmd-sleep-max"]


@pytest.mark.parametrize("policy", ["cycles", "group", "roundrobin"])
def test_queues_are_shared_out_as_asked(policy: str) -> None:
    assert poll_threads({"pmd-rxq-assign": policy}, BEFORE) == (PollThreads(assign=policy), {})


def test_an_unknown_policy_is_refused_and_the_old_one_stays() -> None:
    pmds, refused = poll_threads({"pmd-rxq-assign": "luck"}, BEFORE)
    assert pmds.assign == "group"
    assert "give cycles, group or roundrobin" in refused["pmd-rxq-assign"]


def test_isolation_ends_only_where_loads_are_grouped() -> None:
    group = {"pmd-rxq-assign": "group", "pmd-rxq-isolate": "false"}
    assert poll_threads(group, PollThreads()) == (PollThreads(assign="group", isolate=False), {})
    pmds, refused = poll_threads({"pmd-rxq-isolate": "false"}, PollThreads())
    assert pmds.isolate
    assert refused["pmd-rxq-isolate"] == "pmd-rxq-isolate can only be set false when using pmd-rxq-assign=group"


def test_automatic_balance_has_ovs_defaults_and_limits() -> None:
    assert poll_threads({}, BEFORE)[0].auto_balance is None
    assert poll_threads({"pmd-auto-lb": "true"}, PollThreads())[0].auto_balance == AutoBalance(1, 95, 25)
    given_all = {
        "pmd-auto-lb": "true",
        "pmd-auto-lb-rebal-interval": "0",
        "pmd-auto-lb-load-threshold": "70",
        "pmd-auto-lb-improvement-threshold": "0",
    }
    assert poll_threads(given_all, BEFORE)[0].auto_balance == AutoBalance(1, 70, 0)
    wrong = {**given_all, "pmd-auto-lb-rebal-interval": "20001", "pmd-auto-lb-load-threshold": "101"}
    pmds, refused = poll_threads(wrong, BEFORE)
    assert pmds.auto_balance == AutoBalance(5, 80, 0)
    assert sorted(refused) == ["pmd-auto-lb-load-threshold", "pmd-auto-lb-rebal-interval"]


@pytest.mark.parametrize("option", ["pmd-rxq-isolate", "pmd-auto-lb"])
def test_neither_yes_nor_no_is_refused_and_what_was_in_force_stays(option: str) -> None:
    pmds, refused = poll_threads({"pmd-rxq-assign": "group", option: "perhaps"}, BEFORE)
    assert refused == {option: f"other_config:{option}='perhaps' is refused: give true or false"}
    kept = "isolate" if option == "pmd-rxq-isolate" else "auto_balance"
    assert getattr(pmds, kept) == getattr(BEFORE, kept)


@pytest.mark.parametrize(("text", "cpus"), [("", ()), ("0:3", ((0, 3),)), ("1:7, 0:3", ((0, 3), (1, 7)))])
def test_an_affinity_is_pairs(text: str, cpus: tuple[tuple[int, int], ...]) -> None:
    assert rxq_affinity(text) == cpus


@pytest.mark.parametrize("text", ["0", "0:", ":3", "0:3,", "a:1", "0:1,0:2", "-1:2"])
def test_an_affinity_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        rxq_affinity(text)


VALUES = st.sampled_from(["true", "false", "5", "0x3", "group", "101", "1:5", "", "-1"]) | st.text(max_size=4)


@given(st.dictionaries(st.sampled_from(LIVE), VALUES, max_size=4))
def test_whatever_is_written_is_read_or_refused_by_name(other_config: dict[str, str]) -> None:
    pmds, refused = poll_threads(other_config, BEFORE)
    assert set(refused) <= set(other_config)
    again, _ = poll_threads(other_config, pmds)
    assert again == pmds, "what is in force stays in force"
