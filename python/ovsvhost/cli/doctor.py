"""``ovsvhost doctor``: what this machine offers, and the cure for what it does not."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

import click

from ovsvhost.rundir import run_directory, state_directory

_DIRECTORY = click.Path(file_okay=False, path_type=Path)
_MARKS = {"ok": "ok  ", "warn": "warn", "fail": "FAIL"}


@click.command()
@click.option("--rundir", type=_DIRECTORY, help="Judge this run directory.")
@click.option("--state-dir", type=_DIRECTORY, help="Judge this directory for the database.")
@click.option("--json", "as_json", is_flag=True, help="A JSON list instead of lines.")
def command(rundir: Path | None, state_dir: Path | None, as_json: bool) -> None:
    """Check this machine for what the switch needs; exit 1 if something must be cured first."""
    from ovsvhost import doctor  # noqa: PLC0415 - not needed for --help

    findings = doctor.examine(run_directory(rundir), state_directory(state_dir))
    if as_json:
        click.echo(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        for finding in findings:
            click.echo(f"{_MARKS[finding.level]}  {finding.text}" + (f": {finding.cure}" if finding.cure else ""))
    sys.exit(any(finding.level == "fail" for finding in findings))
