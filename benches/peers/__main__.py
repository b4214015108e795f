"""ovsvhost beside OVS-DPDK and testpmd, in one run: ``python benches/peers``.

Prints tables and verdicts and keeps one JSON (``bench-results/peers.json``), written after every row, so that a run
that is broken off loses nothing. Needs root, hugepages, what ``scripts/setup bench`` installs, two cores with nothing
else to do, and about 20 minutes. Parts can be measured again and put together::

    python benches/peers --rows '64*' --json a.json
    python benches/peers --rows 1518,9000 --merge a.json --json b.json
    python benches/peers --rows none --merge b.json --write docs/performance.md --picture docs/performance.svg

Modules::

    cases · rounds            what is measured and what is to be reached; how windows are interleaved and judged
    stand                     starts what a window needs, and measures it
    switches · generators     who is measured, and who sends; generator.c is the one on DPDK
    quiet                     frames in flight alone, and silence
    moves                     guests that move, and who is beside one
    kernel                    TCP between guests that boot Linux
    machine                   cores, scheduler, versions
    results · report · picture  JSON; tables and document; bars
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click
import machine
import picture
import report
from cases import ROWS, SWITCHES
from results import Results
from rich.console import Console
from rounds import Series, Timing, measure
from stand import Stand

from ovsvhost.errors import OvsvhostError

if TYPE_CHECKING:
    from cases import Row

_TOP = Path(__file__).parents[2]
_WIDTH = 180
"""Of tables that go into a file, characters."""
_QUICK_ROWS = "64,1518"


@click.command()
@click.option("--quick", is_flag=True, help=f"One short round of {_QUICK_ROWS}, unless --rows says otherwise.")
@click.option("--rows", "wanted", help="Comma-separated names or patterns, or none; all by default. --list names them.")
@click.option("--list", "lists", is_flag=True, help="Names the rows and their contestants, and ends.")
@click.option("--switches", help=f"Comma-separated: {'; '.join(SWITCHES)}. Others of these sit out.")
@click.option("--rounds", default=5, show_default=True, help="Windows of each contestant.")
@click.option("--duration", default=1.0, show_default=True, help="Length of a window, seconds.")
@click.option("--warmup", default=0.4, show_default=True, help="Traffic before a window, seconds.")
@click.option("--switch-cpu", default=1, show_default=True, help="Core of the switch's poll thread.")
@click.option("--generator-cpu", default=0, show_default=True, help="Core of the generator.")
@click.option("--wait-limit", default=0.02, show_default=True, help="Largest share a thread may wait for its core.")
@click.option("--attempts", default=4, show_default=True, help="Windows tried before a disturbed one is kept.")
@click.option("--frontend", type=click.Path(path_type=Path), help="The vhost-frontend program, release build.")
@click.option(
    "--merge", "older", type=click.Path(path_type=Path, exists=True), multiple=True, help="JSON of a run before."
)
@click.option("--json", "json_path", type=click.Path(path_type=Path), default=_TOP / "bench-results/peers.json")
@click.option("--write", "document", type=click.Path(path_type=Path), help="A document to put the tables into.")
@click.option("--picture", "drawing", type=click.Path(path_type=Path), help="An SVG to draw the rates into.")
def main(
    *,
    quick: bool,
    wanted: str | None,
    lists: bool,
    switches: str | None,
    rounds: int,
    duration: float,
    warmup: float,
    switch_cpu: int,
    generator_cpu: int,
    wait_limit: float,
    attempts: int,
    frontend: Path | None,
    older: tuple[Path, ...],
    json_path: Path,
    document: Path | None,
    drawing: Path | None,
) -> None:
    """Measures ovsvhost, OVS-DPDK (NORMAL, and with two flows) and testpmd (io) side by side, each on one core."""
    if lists:
        for row in ROWS:
            click.echo(f"{row.name:30} {row.title}, {row.load}: {'; '.join(c.name for c in row.contestants)}")
        return
    console = Console(stderr=True, log_path=False)
    # What a failed program said may look like rich's own marks.
    say = partial(console.log, markup=False, highlight=False)
    chosen = _chosen(wanted or (_QUICK_ROWS if quick else "*"))
    sitting_out = set(SWITCHES) - set(switches.split(",")) if switches else set()
    timing = Timing(1 if quick else rounds, warmup, duration, wait_limit, 2 if quick else attempts)
    results = Results()
    for path in older:
        results.merge(path)
    if chosen:
        priority = machine.go_first()
        conditions = machine.conditions()
        results.conditions = conditions | {
            "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
            "cores used": f"switch {switch_cpu}, generator {generator_cpu}",
            "priority": priority,
            "rings": "1024 entries, mergeable receive buffers",
            "windows": f"{timing.rounds} rounds of {duration:g} s each after {warmup:g} s",
        }
        program = frontend or _frontend()
        with (
            machine.alone(),
            tempfile.TemporaryDirectory(prefix="bench-") as folder,
            Stand(Path(folder), program, cpu=switch_cpu, generator_cpu=generator_cpu, timing=timing) as stand,
        ):
            for row in chosen:
                series = Series(row.name, f"{conditions['commit']}, {results.conditions['date']}")
                results.put(series)
                contestants = [c for c in row.contestants if c.switch not in sitting_out]
                try:
                    with stand.row(row):
                        measure(row, contestants, timing, partial(stand.window, row), series=series, say=say)
                finally:
                    results.write(json_path)
        console.log(f"all numbers: {json_path}")
    elif json_path.resolve() not in {path.resolve() for path in older}:
        results.write(json_path)
    report.show(results, Console(width=None if sys.stdout.isatty() else _WIDTH))
    if drawing is not None and picture.write(results, drawing):
        console.log(f"picture: {drawing}")
    if document is not None:
        link = os.path.relpath(drawing, document.parent) if drawing is not None else None
        report.write_document(results, document, link)
        console.log(f"tables: {document}")


def _chosen(names: str) -> list[Row]:
    if names == "none":
        return []
    patterns = names.split(",")
    for pattern in patterns:
        if not any(fnmatch(row.name, pattern) for row in ROWS):
            known = ", ".join(row.name for row in ROWS)
            raise click.BadParameter(f"there is no row '{pattern}': {known}", param_hint="--rows")
    return [row for row in ROWS if any(fnmatch(row.name, pattern) for pattern in patterns)]


def _frontend() -> Path:
    program = _TOP / "target/release/vhost-frontend"
    if not program.exists():
        raise click.UsageError(
            f"no {program}: cargo build --release --features testing --bin vhost-frontend, or give --frontend"
        )
    return program


if __name__ == "__main__":
    try:
        main()
    except OvsvhostError as error:
        sys.exit(f"peers: {error}")
