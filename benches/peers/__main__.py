"""ovsvhost beside OVS-DPDK and testpmd, in one run: ``python benches/peers``.

Prints one table and writes one JSON (``bench-results/peers.json``). Needs root, hugepages, the packages of
``scripts/setup bench`` and two cores with nothing else to do.

    cases · rounds            what is measured, and how windows are interleaved and judged
    switches · generators     who is measured, and who sends; generator.c is the one on DPDK
    quiet                     idle cost, and what waking costs
    machine · report          conditions; table, JSON, document
"""

from __future__ import annotations

import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import click
import machine
import quiet
import report
from cases import CASES, Case
from generators import Frontend, Generator, VirtioUser
from report import NEVER_SLEEPS, Results
from rich.console import Console
from rounds import Timing, measure
from switches import Ours, Ovs, Switch, TestpmdIo

from ovsvhost.errors import OvsvhostError

_TOP = Path(__file__).parents[2]
_OWN, _VIRTIO_USER, _VIRTIO_USER_POLLING = "own", "virtio-user", "virtio-user-polling"
_PARTS = ("throughput", "idle", "latency")


@click.command()
@click.option("--quick", is_flag=True, help="One short round of two cases with the project's own front-end.")
@click.option("--cases", default="all", show_default=True, help=f"Comma-separated: {', '.join(c.name for c in CASES)}.")
@click.option("--rounds", default=5, show_default=True, help="Windows of each switch, case and generator.")
@click.option("--duration", default=1.5, show_default=True, help="Length of a window, seconds.")
@click.option("--warmup", default=0.5, show_default=True, help="Traffic before a window, seconds.")
@click.option(
    "--generators",
    default=f"{_OWN},{_VIRTIO_USER},{_VIRTIO_USER_POLLING}",
    show_default=True,
    help="Comma-separated; virtio-user pauses 2 µs when its ring is full, virtio-user-polling does not.",
)
@click.option("--parts", default=",".join(_PARTS), show_default=True, help="Comma-separated.")
@click.option("--switch-cpu", default=1, show_default=True, help="Core of the switch's poll thread.")
@click.option("--generator-cpu", default=0, show_default=True, help="Core of the generator.")
@click.option("--wait-limit", default=0.02, show_default=True, help="Largest share a thread may wait for its core.")
@click.option("--attempts", default=6, show_default=True, help="Windows tried before a disturbed one is kept.")
@click.option("--frontend", type=click.Path(path_type=Path), help="The vhost-frontend program, release build.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), default=_TOP / "bench-results/peers.json")
@click.option("--write", "document", type=click.Path(path_type=Path), help="A document to put the tables into.")
def main(
    *,
    quick: bool,
    cases: str,
    rounds: int,
    duration: float,
    warmup: float,
    generators: str,
    parts: str,
    switch_cpu: int,
    generator_cpu: int,
    wait_limit: float,
    attempts: int,
    frontend: Path | None,
    json_path: Path,
    document: Path | None,
) -> None:
    """Measures ovsvhost, OVS-DPDK (NORMAL) and testpmd (io) side by side, each on one core."""
    console = Console(stderr=True)
    chosen = _chosen("64,1518" if quick and cases == "all" else cases)
    wanted = [_OWN] if quick else generators.split(",")
    timing = Timing(1 if quick else rounds, warmup, duration, wait_limit, 2 if quick else attempts)
    priority = machine.go_first()
    with machine.alone(), ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        own = Frontend(generator_cpu, folder, frontend or _frontend())
        loads = [_generator(name, own, generator_cpu, folder) for name in wanted]
        switches = _start(stack, folder, switch_cpu, generator_cpu)
        results = Results(
            machine.conditions()
            | {
                "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
                "cores used": f"switch {switch_cpu}, generator {generator_cpu}",
                "priority": priority,
                "rings": "split, 1024 entries, mergeable receive buffers",
                "windows": f"{timing.rounds} rounds of {duration:g} s each after {warmup:g} s",
            }
        )
        if "throughput" in parts:
            for case in chosen:
                _plug(switches, case)
                results.series += [measure(case, load, switches, timing, console.log) for load in loads]
        seconds = 2.0 if quick else 10.0
        if "idle" in parts or "latency" in parts:
            _plug(switches, CASES[0])
        if "idle" in parts:
            for switch in switches:
                results.idle_cores[switch.name] = quiet.idle_cores(switch, own, seconds)
                console.log(f"idle: {switch.name} {results.idle_cores[switch.name]:.3f} cores")
        if "latency" in parts:
            _latency(stack, results, switches, own, seconds / 2)
    report.show(results, Console())
    json_path.parent.mkdir(parents=True, exist_ok=True)
    json_path.write_text(report.to_json(results))
    console.log(f"all numbers: {json_path}")
    if document is not None:
        report.write_document(results, document)
        console.log(f"tables: {document}")


def _latency(stack: ExitStack, results: Results, switches: list[Switch], own: Frontend, duration_s: float) -> None:
    cpu, folder = switches[0].cpu, switches[0].folder.with_name("awake")
    awake = _held(stack, Ours(folder, cpu, sleeps=False))
    _plug([awake], CASES[0])
    for switch, name in [*((switch, switch.name) for switch in switches), (awake, NEVER_SLEEPS)]:
        for found, interval_us in ((results.back_to_back, 0), (results.every_ms, 1000)):
            found[name] = quiet.round_trips(switch, own, CASES[0], interval_us=interval_us, duration_s=duration_s)


def _start(stack: ExitStack, folder: Path, cpu: int, main_cpu: int) -> list[Switch]:
    switches: list[Switch] = []
    for name in ("ours", "ovs", "testpmd"):
        (folder / name).mkdir()
    switches.append(_held(stack, Ours(folder / "ours", cpu)))
    switches.append(_held(stack, Ovs(folder / "ovs", cpu)))
    switches.append(_held(stack, TestpmdIo(folder / "testpmd", cpu, main_cpu=main_cpu)))
    return switches


def _held(stack: ExitStack, switch: Switch) -> Switch:
    stack.callback(switch.stop)
    switch.hold()
    return switch


def _plug(switches: list[Switch], case: Case) -> None:
    for switch in switches:
        with switch.turn():
            switch.plug(case)


def _chosen(names: str) -> list[Case]:
    known = {case.name: case for case in CASES}
    if names == "all":
        return list(CASES)
    unknown = [name for name in names.split(",") if name not in known]
    if unknown:
        raise click.BadParameter(f"there is no case '{unknown[0]}': {', '.join(known)}", param_hint="--cases")
    return [known[name] for name in names.split(",")]


def _generator(name: str, own: Frontend, cpu: int, folder: Path) -> Generator:
    match name:
        case "own":
            return own
        case "virtio-user":
            return VirtioUser(cpu, folder, backoff_us=2)
        case "virtio-user-polling":
            return VirtioUser(cpu, folder, backoff_us=0)
    raise click.BadParameter(f"there is no generator '{name}'", param_hint="--generators")


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
