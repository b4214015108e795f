"""The command line's frame: help, exit codes, one-line errors, and that it starts fast."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

PROGRAM = [sys.executable, "-c", "from ovsvhost.cli import main; main()"]


def ovsvhost(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OVS_", "XDG_"))}
    return subprocess.run(
        [*PROGRAM, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**kept, "PYTHONPATH": os.pathsep.join(sys.path), **environment},
    )


def test_help_names_every_command() -> None:
    done = ovsvhost("--help")
    assert done.returncode == 0
    for command in ("daemon", "show", "doctor", "vsctl", "appctl"):
        assert f"  {command} " in done.stdout


@pytest.mark.parametrize("arguments", [["bogus"], ["show", "--bogus"], ["daemon", "--log-format", "xml"]])
def test_wrong_usage_ends_with_2(arguments: list[str]) -> None:
    done = ovsvhost(*arguments)
    assert done.returncode == 2
    assert done.stderr.startswith("Usage: ovsvhost")


def test_an_error_is_one_line_with_the_cure_and_ends_with_1(tmp_path: Path) -> None:
    done = ovsvhost("show", "--db", f"unix:{tmp_path}/none.sock", "--timeout", "0.2")
    assert done.returncode == 1
    assert done.stdout == ""
    remote = f"unix:{tmp_path}/none.sock"
    assert done.stderr == (
        f"ovsvhost: database {remote} does not answer (No such file or directory): "
        "start its server, or give its remote with --db\n"
    )


@pytest.mark.parametrize("remote", ["bogus", "unix:", "punix:/x", "unix:/x,bogus"])
def test_a_remote_that_is_none_is_refused_with_the_forms(remote: str) -> None:
    done = ovsvhost("show", "--db", remote)
    assert done.returncode == 1
    assert "give unix:PATH or tcp:HOST:PORT" in done.stderr


def test_importing_the_frame_loads_nothing_heavy() -> None:
    heavy = ["ovs", "structlog", "rich", "asyncio", "ovsvhost._core", "ovsvhost.daemon", "ovsvhost.store"]
    program = f"import sys, ovsvhost.cli; print([name for name in {heavy!r} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.stdout == "[]\n"


def test_doctor_judges_the_directories_it_was_given(tmp_path: Path) -> None:
    done = ovsvhost("doctor", "--json", "--rundir", str(tmp_path / "run"), "--state-dir", str(tmp_path / "state"))
    findings = {finding["name"]: finding for finding in json.loads(done.stdout)}
    assert findings["rundir"]["level"] == findings["state-dir"]["level"] == "ok"
    assert done.returncode == any(finding["level"] == "fail" for finding in findings.values())


def test_doctor_without_json_is_one_line_a_finding(tmp_path: Path) -> None:
    done = ovsvhost("doctor", "--rundir", str(tmp_path), "--state-dir", str(tmp_path))
    assert {line[:4] for line in done.stdout.splitlines()} <= {"ok  ", "warn", "FAIL"}


def test_a_run_directory_too_long_for_sockets_fails_with_its_cure(tmp_path: Path) -> None:
    done = ovsvhost("doctor", "--rundir", str(tmp_path / ("x" * 100)), "--state-dir", str(tmp_path))
    assert done.returncode == 1
    assert "FAIL" in done.stdout
    assert "choose a shorter --rundir" in done.stdout
