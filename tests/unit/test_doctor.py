from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from ovsvhost import doctor
from ovsvhost.daemon.process import Pidfile
from ovsvhost.rundir import PIDFILE

if TYPE_CHECKING:
    from pathlib import Path


def pool(root: Path, size_kib: int, total: int, free: int) -> None:
    directory = root / f"hugepages-{size_kib}kB"
    directory.mkdir()
    (directory / "nr_hugepages").write_text(f"{total}\n")
    (directory / "free_hugepages").write_text(f"{free}\n")


def test_reserved_hugepages_are_counted_by_size(tmp_path: Path) -> None:
    pool(tmp_path, 2048, 512, 100)
    pool(tmp_path, 1048576, 0, 0)
    (finding,) = doctor.hugepages(tmp_path)
    assert (finding.name, finding.level) == ("hugepages-2048k", "ok")
    assert "100 of 512" in finding.text


def test_no_hugepages_is_a_warning_with_the_sysctl(tmp_path: Path) -> None:
    pool(tmp_path, 2048, 0, 0)
    (finding,) = doctor.hugepages(tmp_path)
    assert finding.level == "warn"
    assert "vm.nr_hugepages" in finding.cure


@pytest.mark.rows("A22")
def test_rights_that_a_nic_port_needs_and_the_user_lacks_are_named(tmp_path: Path) -> None:
    status = tmp_path / "status"
    status.write_text("Name:\tx\nCapEff:\t0000000000002000\n")
    (finding,) = doctor.network_devices(status)
    if "no AF_XDP" in finding.text:
        pytest.skip("this kernel has no AF_XDP")
    assert finding.level == "warn"
    assert "lacks CAP_NET_ADMIN, CAP_BPF:" in finding.text
    assert "AmbientCapabilities=CAP_NET_ADMIN CAP_NET_RAW CAP_BPF" in finding.cure


@pytest.mark.rows("A22")
def test_all_rights_of_a_nic_port_are_enough(tmp_path: Path) -> None:
    status = tmp_path / "status"
    status.write_text(f"CapEff:\t{1 << 12 | 1 << 13 | 1 << 39:016x}\n")
    (finding,) = doctor.network_devices(status)
    assert finding.level == "ok" or "no AF_XDP" in finding.text


def test_this_machine_is_examined_and_every_trouble_has_a_text(tmp_path: Path) -> None:
    findings = doctor.examine(tmp_path, tmp_path)
    assert {"cpus", "rundir", "state-dir"} <= {finding.name for finding in findings}
    assert all(finding.text for finding in findings)
    assert all(finding.cure for finding in findings if finding.level == "fail")


def test_a_file_in_the_place_of_a_directory_fails(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    findings = {finding.name: finding for finding in doctor.directories(tmp_path / "file", tmp_path)}
    assert findings["rundir"].level == "fail"
    assert findings["state-dir"].level == "ok"


def test_another_switch_is_named(tmp_path: Path) -> None:
    process = tmp_path / "42"
    process.mkdir()
    (process / "comm").write_text("ovs-vswitchd\n")
    (finding,) = doctor.neighbours(tmp_path / "run", tmp_path)
    assert "ovs-vswitchd (pid 42)" in finding.text


def test_a_pid_file_that_nobody_holds_is_no_daemon(tmp_path: Path) -> None:
    (tmp_path / PIDFILE).write_text("1\n")
    assert list(doctor.neighbours(tmp_path, tmp_path)) == []


def test_a_daemon_that_holds_its_pid_file_is_found(tmp_path: Path) -> None:
    with Pidfile(tmp_path / PIDFILE):
        read, write = os.pipe()
        child = os.fork()  # a lock is no obstacle to the process that holds it, so another one has to look
        if child == 0:
            found = [finding.text for finding in doctor.neighbours(tmp_path, tmp_path)]
            os.write(write, "\n".join(found).encode())
            os._exit(0)
        os.waitpid(child, 0)
        os.close(write)
        with os.fdopen(read) as pipe:
            assert f"(pid {os.getpid()}" in pipe.read()
