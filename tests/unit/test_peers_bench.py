"""What the comparison with other switches makes of its windows; the windows themselves need a machine of their own."""

from __future__ import annotations

import json
import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree as ET

import pytest

from ovsvhost.testing.errors import RigError

if TYPE_CHECKING:
    from collections.abc import Callable

sys.path.insert(0, str(Path(__file__).parents[2] / "benches" / "peers"))
cases, generators, picture, report, results, rounds = (
    import_module(name) for name in ("cases", "generators", "picture", "report", "results", "rounds")
)
sys.path.pop(0)

ROW = next(row for row in cases.ROWS if row.name == "64")


def window(pps: float, *, cycles: float = 100, full: float = 1.0) -> dict[str, float]:
    return {
        "pps": pps,
        "ring_full_share": full,
        "lost_share": 0.0,
        "busy_share": 1.0,
        "cycles_per_packet": cycles,
        "wait_share": 0.0,
    }


def measured(give: Callable[[str, int], dict[str, float]], *, count: int = 5, attempts: int = 3) -> Any:
    """The row of 64 B frames, each window given by contestant and how often that one had its turn."""
    series = rounds.Series(ROW.name, "abcdef, today")
    turns = dict.fromkeys((contestant.name for contestant in ROW.contestants), 0)

    def one(contestant: Any) -> dict[str, float]:
        turns[contestant.name] += 1
        return give(contestant.name, turns[contestant.name])

    timing = rounds.Timing(count, 0, 0, 0.02, attempts)
    rounds.measure(ROW, list(ROW.contestants), timing, one, series=series, say=lambda _: None)
    return series


def put(*series: Any) -> Any:
    found = results.Results({"commit": "abcdef"})
    for one in series:
        found.put(one)
    return found


def test_a_window_that_fails_leaves_a_gap_and_one_that_always_fails_is_given_up() -> None:
    asked: list[str] = []

    def give(name: str, turn: int) -> dict[str, float]:
        asked.append(name)
        if name == cases.TESTPMD or (name == cases.OURS and turn == 2):
            raise RigError(f"{name} is gone")
        return window(10e6 if name == cases.OURS else 4e6)

    series = measured(give)
    assert [found is None for found in series.windows[cases.OURS]] == [False, True, False, False, False]
    assert series.ratios("pps", cases.OURS, cases.OVS) == [2.5] * 4
    assert series.windows[cases.TESTPMD] == [None] * 5
    assert asked.count(cases.TESTPMD) == 2
    assert series.failures[cases.TESTPMD] == "testpmd is gone"


def test_a_disturbed_window_is_repeated_and_the_best_one_kept() -> None:
    waits = {1: 0.5, 2: 0.1, 3: 0.3}

    def give(name: str, turn: int) -> dict[str, float]:
        return window(turn * 1e6) | ({"wait_share": waits[turn]} if name == cases.OVS else {})

    series = measured(give, count=1)
    assert series.values(cases.OVS, "pps") == [2e6]
    assert (series.repeated, series.disturbed) == (2, 1)


@pytest.mark.parametrize(
    ("ours", "cycles", "full", "outcome"),
    [(15e6, 100, 1.0, "aim"), (11e6, 100, 1.0, "must"), (9e6, 100, 1.0, "missed"), (9e6, 100, 0.05, "aim")],
)
def test_a_rate_is_judged_by_cycles_where_the_sender_is_the_limit(
    ours: float, cycles: float, full: float, outcome: str
) -> None:
    series = measured(
        lambda name, _: window(ours, cycles=cycles, full=full) if name == cases.OURS else window(4e6, cycles=400)
    )
    judged = {verdict.title: verdict for verdict in report.verdicts(put(series))}
    assert judged[f"{ROW.title}, {ROW.load}: rate by that of {cases.OVS}"].outcome == outcome


def test_rows_measured_again_replace_the_old_ones_and_the_others_stay(tmp_path: Path) -> None:
    old = measured(lambda _name, _turn: window(1e6))
    other = rounds.Series("9000", "123456, yesterday", windows={cases.OURS: [window(2e6), None]})
    put(old, other).write(tmp_path / "old.json")
    merged = results.Results()
    merged.merge(tmp_path / "old.json")
    merged.put(measured(lambda _name, _turn: window(3e6)))
    assert list(merged.series) == ["64", "9000"]
    assert merged.series["64"].median(cases.OURS, "pps") == 3e6
    assert merged.series["9000"] == other


def test_the_document_keeps_what_people_wrote_and_shows_failures(tmp_path: Path) -> None:
    def give(name: str, _: int) -> dict[str, float]:
        if name == cases.OVS:
            raise RigError("no hugepages [/tmp]\nand more")
        return window(5e6)

    document = tmp_path / "performance.md"
    document.write_text("before\n<!-- measured: begin -->\nold\n<!-- measured: end -->\nafter\n")
    found = put(measured(give))
    assert picture.write(found, tmp_path / "rates.svg")
    report.write_document(found, document, "rates.svg")
    text = document.read_text()
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert "\nold\n" not in text
    assert "failed: no hugepages [/tmp] |" in text
    assert "](rates.svg)" in text
    drawn = ET.parse(tmp_path / "rates.svg").getroot()  # noqa: S314 - our own file
    bars = drawn.findall("{http://www.w3.org/2000/svg}rect")
    assert len(bars) == 1 + len(ROW.contestants) - 1, "the page, and a bar for each that was measured"


def test_times_and_transfers_have_tables_and_bars_of_their_own(tmp_path: Path) -> None:
    half = rounds.Series("half-load", "abcdef, today")
    times = {"p50_us": 2.0, "p99_us": 9.0, "p999_us": 40.0, "arrived_pps": 3e6}
    half.windows = {
        cases.OURS: [window(0) | times],
        cases.TESTPMD: [window(0) | times | {"p50_us": 4.0, "p99_us": 8.0}],
    }
    tcp = rounds.Series("tcp", "abcdef, today")
    tcp.windows = {
        name: [{"bits_per_s": rate, "busy_share": 0.1, "cycles_per_packet": 9000.0, "wait_share": 0.0}]
        for name, rate in ((cases.OURS, 8e8), (cases.OVS, 4e8), (cases.OVS_TSO, 9e8))
    }
    for series in (half, tcp):
        for windows in series.windows.values():
            windows[0].pop("pps", None)
    found = put(half, tcp)
    outcomes = [(verdict.title.rpartition(": ")[2], verdict.outcome) for verdict in report.verdicts(found)]
    assert outcomes == [
        ("median by that of testpmd", "aim"),
        ("p99 by that of testpmd", "missed"),
        ("p99.9 by that of testpmd", "aim"),
        ("rate by that of ovs-dpdk with TSO", "missed"),
        ("rate by that of ovs-dpdk", "aim"),
    ]
    assert picture.write(found, tmp_path / "all.svg")
    drawn = ET.parse(tmp_path / "all.svg").getroot()  # noqa: S314 - our own file
    bars = drawn.findall("{http://www.w3.org/2000/svg}rect")
    assert len(bars) == 1 + 3 + 2 * 2, "the page, three rates, and two contestants with two times"
    document = tmp_path / "performance.md"
    report.write_document(found, document, None)
    text = document.read_text()
    assert f"| {cases.OVS_TSO} | 900 / 900 / 900 | 0.89 | 0.10 | 9000 |" in text
    assert "| 2.0 (2.0 to 2.0) | 9.0 (9.0 to 9.0) | 40.0 (40.0 to 40.0) | 0.0% | 3.00 | 1.00 | 1.00 | 100 |" in text


def frontend_said(folder: Path, *, sent: int, received: int, times: dict[str, float | None]) -> Any:
    """A front-end's run that ends with this report of a second in which nothing arrived for 0.9 s."""
    silence = {"longest_silence_s": 0.9, "ring_full_share": 1.0}
    ends = [{"sent_pps": sent, "received_pps": 0} | silence, {"sent_pps": 0, "received_pps": received} | silence]
    said = json.dumps({"event": "result", "measured": {"ends": ends, "wait_share": 0.0, "transit": times}})
    frontend = generators.Frontend(0, folder, Path("unused"))
    return frontend.start([], ["echo", said])


def test_a_stall_is_a_result_where_it_may_be_one_and_else_a_failure(tmp_path: Path) -> None:
    no_times = dict.fromkeys(("p50_us", "p99_us", "p999_us"))
    with (
        frontend_said(tmp_path, sent=0, received=0, times=no_times) as run,
        pytest.raises(RigError, match="sent nothing"),
    ):
        run.result()
    with frontend_said(tmp_path, sent=0, received=32, times=no_times) as run:
        counts = run.result(may_stall=True)
    assert (counts.pps, counts.lost_share, counts.ring_full_share, counts.gap_s) == (32, 0.0, 1.0, 0.9)
    assert counts.transit == {}, "a frame that was never sent has no time, and not a time of nothing"


def test_a_peer_that_stalled_is_shown_as_stalled_and_ours_are_judged_all_the_same(tmp_path: Path) -> None:
    row = next(row for row in cases.ROWS if row.name == "postcopy-times")
    ours, beside, _, stalled = (contestant.name for contestant in row.contestants)
    flows = window(0) | {"p50_us": 1.0, "p99_us": 2.0, "p999_us": 9.0, "arrived_pps": 2e5, "gap_ms": 0.1}
    stands = window(0) | {"arrived_pps": 0.0, "gap_ms": 1000.0}
    series = rounds.Series(row.name, "abcdef, today")
    series.windows = {ours: [flows] * 2, beside: [flows] * 2, stalled: [stands, stands | {"p50_us": 640e3}]}
    (judged,) = report.verdicts(put(series))
    assert (judged.outcome, judged.note) == ("aim", "")
    document = tmp_path / "performance.md"
    report.write_document(put(series), document, None)
    text = document.read_text()
    assert "| 640000.0 (640000.0 to 640000.0), stalled in 1 of 2 windows |" in text
    assert "| 1000.0 (1000.0 to 1000.0) |" in text
    assert "0 failed" in text


def test_nothing_is_drawn_without_rates(tmp_path: Path) -> None:
    assert not picture.write(results.Results(), tmp_path / "rates.svg")
    assert not (tmp_path / "rates.svg").exists()
