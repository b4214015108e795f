from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from ovsvhost.errors import ConfigError
from ovsvhost.rundir import make_private, run_directory, state_directory


@pytest.fixture(params=[0, 1000], ids=["root", "user"])
def uid(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    for name in ("OVS_RUNDIR", "XDG_RUNTIME_DIR", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "geteuid", lambda: request.param)
    return int(request.param)


@pytest.mark.usefixtures("uid")
def test_what_the_caller_says_goes_before_ovs_rundir(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OVS_RUNDIR", "/run/there")
    assert run_directory("/run/here") == Path("/run/here")
    assert run_directory() == Path("/run/there")


@pytest.mark.usefixtures("uid")
def test_a_relative_directory_becomes_absolute() -> None:
    assert run_directory("x") == Path.cwd() / "x"


def test_without_a_word_root_has_the_systems_directories_and_a_user_his_own(
    uid: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/1000")
    monkeypatch.setenv("XDG_STATE_HOME", "/home/u/.state")
    root = (Path("/run/openvswitch"), Path("/var/lib/ovsvhost"))
    user = (Path("/run/user/1000/ovsvhost"), Path("/home/u/.state/ovsvhost"))
    assert (run_directory(), state_directory()) == (user if uid else root)


def test_a_user_without_a_runtime_directory_is_told_what_to_give(uid: int) -> None:
    if uid == 0:
        assert run_directory() == Path("/run/openvswitch")
        return
    with pytest.raises(ConfigError, match="give --rundir, or set OVS_RUNDIR or XDG_RUNTIME_DIR"):
        run_directory()


def test_a_directory_is_made_for_its_owner_alone_and_an_old_one_keeps_its_mode(tmp_path: Path) -> None:
    assert stat.S_IMODE(make_private(tmp_path / "a" / "b").stat().st_mode) == 0o700
    (tmp_path / "old").mkdir(mode=0o755)
    assert stat.S_IMODE(make_private(tmp_path / "old").stat().st_mode) == 0o755


def test_a_file_in_its_place_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="file"):
        make_private(tmp_path / "file")
