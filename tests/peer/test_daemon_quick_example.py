"""The guide's quick example and what follows from it, driven by stock ovs-vsctl and ovs-appctl."""

from __future__ import annotations

import re
import stat
from typing import TYPE_CHECKING

import pytest

from ovsvhost.testing.stock import ovs_appctl, ovs_vsctl, row, run
from ovsvhost.testing.wait import wait_for

if TYPE_CHECKING:
    from pathlib import Path

    from ovsvhost.testing.daemon import SwitchDaemon

pytestmark = pytest.mark.peer


def add_bridge(switch: SwitchDaemon, name: str = "br0") -> None:
    ovs_vsctl(switch, "add-br", name, "--", "set", "bridge", name, "datapath_type=netdev")


def add_client(switch: SwitchDaemon, name: str, path: Path | str, *more: str) -> None:
    kind = "type=dpdkvhostuserclient"
    ovs_vsctl(
        switch,
        "add-port",
        "br0",
        name,
        "--",
        "set",
        "Interface",
        name,
        kind,
        f"options:vhost-server-path={path}",
        *more,
    )


def logged(switch: SwitchDaemon, text: str) -> None:
    wait_for(lambda: text in switch.log.read_text(), timeout_s=10, what=f"{text!r} in the log", interval_s=0.05)


def test_A1_A2_the_quick_example_gives_two_ports_that_wait_for_their_guests(
    switch: SwitchDaemon, short_folder: Path
) -> None:
    add_bridge(switch)
    for number in (0, 1):
        add_client(switch, f"dpdkvhostclient{number}", short_folder / f"dpdkvhostclient{number}")
    for number in (0, 1):
        path = short_folder / f"dpdkvhostclient{number}"
        interface = row(switch, "Interface", f"dpdkvhostclient{number}")
        assert interface["ofport"] == number + 1
        assert interface["error"] is None
        assert (interface["admin_state"], interface["link_state"], interface["mtu"]) == ("up", "down", 1500)
        assert interface["mac_in_use"] == "00:00:00:00:00:00"
        assert interface["status"]["mode"] == "client"
        assert not path.exists(), "the VMM creates the socket"
        logged(
            switch,
            f"vHost User device 'dpdkvhostclient{number}' created in 'client' mode, using client socket '{path}'",
        )


def test_A1_the_bridges_own_port_is_65534_and_without_error(switch: SwitchDaemon) -> None:
    add_bridge(switch)
    local = row(switch, "Interface", "br0")
    assert (local["ofport"], local["error"]) == (65534, None)
    assert re.fullmatch(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}", local["mac_in_use"])


def test_A4_a_server_port_makes_its_socket_warns_once_and_takes_it_away(switch: SwitchDaemon) -> None:
    add_bridge(switch)
    ovs_vsctl(switch, "add-port", "br0", "vu0", "--", "set", "Interface", "vu0", "type=dpdkvhostuser")
    socket = switch.rundir / "vu0"
    assert stat.S_ISSOCK(socket.stat().st_mode)
    assert stat.S_IMODE(socket.stat().st_mode) == 0o600
    logged(switch, f"Socket {socket} created for vhost-user port vu0")
    warnings = [line for line in switch.log.read_text().splitlines() if "deprecated" in line]
    assert len(warnings) == 1
    ovs_vsctl(switch, "del-port", "vu0")
    assert not socket.exists()


def test_A4_a_server_socket_is_replaced_after_a_kill(switch: SwitchDaemon) -> None:
    add_bridge(switch)
    ovs_vsctl(switch, "add-port", "br0", "vu0", "--", "set", "Interface", "vu0", "type=dpdkvhostuser")
    socket = switch.rundir / "vu0"
    before = socket.stat().st_ino
    switch.kill()
    assert socket.exists()
    switch.start()
    wait_for(lambda: socket.stat().st_ino != before, timeout_s=10, what="a new socket in the old one's place")
    assert row(switch, "Interface", "vu0")["error"] is None


def test_A6_the_socket_directory_is_made_and_named_in_the_log(switch: SwitchDaemon) -> None:
    add_bridge(switch)
    ovs_vsctl(switch, "set", "Open_vSwitch", ".", "other_config:vhost-sock-dir=sub")
    switch.stop()
    switch.start()
    ovs_vsctl(switch, "add-port", "br0", "vu0", "--", "set", "Interface", "vu0", "type=dpdkvhostuser")
    directory = switch.rundir / "sub"
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert (directory / "vu0").is_socket()
    logged(switch, f"User-provided vhost-sock-dir in use: {directory}")


def test_A6_L4_a_socket_directory_changed_later_waits_for_a_restart_and_says_so(
    switch: SwitchDaemon, short_folder: Path
) -> None:
    add_bridge(switch)
    add_client(switch, "v0", short_folder / "v0")
    ovs_vsctl(switch, "set", "Open_vSwitch", ".", "other_config:vhost-sock-dir=later")
    assert row(switch, "Interface", "v0")["status"]["pending-restart"] == "vhost-sock-dir"
    logged(switch, "other_config:vhost-sock-dir was changed and waits for a restart of the switch")
    shown = switch.call("show", f"--db={switch.remote}").stdout
    assert "waits for a restart: vhost-sock-dir" in shown
    ovs_vsctl(switch, "remove", "Open_vSwitch", ".", "other_config", "vhost-sock-dir")
    assert "pending-restart" not in row(switch, "Interface", "v0")["status"]


@pytest.mark.rows("A15", "L4")
def test_A15_L4_post_copy_is_in_force_from_the_next_start_on(switch: SwitchDaemon, short_folder: Path) -> None:
    add_bridge(switch)
    add_client(switch, "v0", short_folder / "v0")
    ovs_vsctl(switch, "set", "Open_vSwitch", ".", "other_config:vhost-postcopy-support=true")
    assert row(switch, "Interface", "v0")["status"]["pending-restart"] == "vhost-postcopy-support"
    logged(switch, "other_config:vhost-postcopy-support was changed and waits for a restart of the switch")
    switch.stop()
    switch.start()
    logged(switch, "POSTCOPY support for vhost-user-client enabled.")
    wait_for(
        lambda: "pending-restart" not in row(switch, "Interface", "v0")["status"],
        timeout_s=10,
        what="nothing to wait for a restart",
    )


@pytest.mark.rows("A14", "L4")
def test_A14_L4_an_iommu_is_served_from_the_next_start_on(switch: SwitchDaemon, short_folder: Path) -> None:
    add_bridge(switch)
    add_client(switch, "v0", short_folder / "v0")
    ovs_vsctl(switch, "set", "Open_vSwitch", ".", "other_config:vhost-iommu-support=true")
    assert row(switch, "Interface", "v0")["status"]["pending-restart"] == "vhost-iommu-support"
    logged(switch, "other_config:vhost-iommu-support was changed and waits for a restart of the switch")
    switch.stop()
    switch.start()
    logged(switch, "IOMMU support for vhost-user-client enabled.")
    wait_for(
        lambda: "pending-restart" not in row(switch, "Interface", "v0")["status"],
        timeout_s=10,
        what="nothing to wait for a restart",
    )


def test_A18_the_mtu_changes_live_and_a_wrong_one_is_refused_in_ovs_words(
    switch: SwitchDaemon, short_folder: Path
) -> None:
    add_bridge(switch)
    add_client(switch, "v0", short_folder / "v0", "mtu_request=9000")
    assert row(switch, "Interface", "v0")["mtu"] == 9000
    ovs_vsctl(switch, "set", "Interface", "v0", "mtu_request=9703")
    interface = row(switch, "Interface", "v0")
    assert (interface["mtu"], interface["ofport"]) == (9000, 1)
    assert interface["error"].startswith("v0: unsupported MTU 9703")
    ovs_vsctl(switch, "set", "Interface", "v0", "mtu_request=1400")
    interface = row(switch, "Interface", "v0")
    assert (interface["mtu"], interface["error"]) == (1400, None)


def test_L5_an_option_is_applied_live_or_refused_aloud(switch: SwitchDaemon, short_folder: Path) -> None:
    add_bridge(switch)
    add_client(switch, "v0", short_folder / "v0", "options:tx-retries-max=0")
    assert row(switch, "Interface", "v0")["error"] is None
    ovs_vsctl(switch, "set", "Interface", "v0", "options:tx-retries-max=33")
    assert "0..32" in row(switch, "Interface", "v0")["error"]
    ovs_vsctl(switch, "set", "Interface", "v0", "options:tx-retries-max=32")
    assert row(switch, "Interface", "v0")["error"] is None


def test_the_switch_says_who_it_is(switch: SwitchDaemon) -> None:
    root = row(switch, "Open_vSwitch", ".")
    assert root["ovs_version"] == switch.call("--version").stdout.split()[1]
    assert root["db_version"]
    assert set(root["iface_types"]) == {
        "afxdp", "dpdk", "dpdkvhostuser", "dpdkvhostuserclient", "internal", "system",
    }  # fmt: skip
    assert root["datapath_types"] == "netdev"
    assert re.fullmatch(r"[0-9a-f-]{36}", root["external_ids"]["system-id"])


def test_the_system_id_and_the_port_numbers_survive_a_restart(switch: SwitchDaemon, short_folder: Path) -> None:
    add_bridge(switch)
    for name in ("v0", "v1", "v2"):
        add_client(switch, name, short_folder / name)
    ovs_vsctl(switch, "del-port", "v1")
    before = row(switch, "Open_vSwitch", ".")["external_ids"]
    switch.kill()
    switch.start()
    assert row(switch, "Open_vSwitch", ".")["external_ids"] == before
    assert [row(switch, "Interface", name)["ofport"] for name in ("v0", "v2")] == [1, 3]


def test_statistics_arrive_at_the_interval_that_was_asked_for(switch: SwitchDaemon, short_folder: Path) -> None:
    add_bridge(switch)
    ovs_vsctl(switch, "set", "Open_vSwitch", ".", "other_config:stats-update-interval=100")
    add_client(switch, "v0", short_folder / "v0")
    counters = wait_for(
        lambda: row(switch, "Interface", "v0")["statistics"], timeout_s=10, what="statistics of v0", interval_s=0.1
    )
    assert {"rx_packets", "tx_packets", "rx_bytes", "tx_bytes", "rx_dropped", "tx_dropped"} <= set(counters)
    assert set(counters.values()) == {0}


def test_a_bridge_deleted_and_added_in_one_transaction_is_a_new_one(switch: SwitchDaemon, short_folder: Path) -> None:
    add_bridge(switch)
    add_client(switch, "v0", short_folder / "v0")
    ovs_vsctl(switch, "del-br", "br0", "--", "add-br", "br0", "--", "set", "bridge", "br0", "datapath_type=netdev")
    assert switch.call("show", "--json", f"--db={switch.remote}").returncode == 0
    assert ovs_vsctl(switch, "list-ports", "br0") == ""
    add_client(switch, "v1", short_folder / "v0")
    interface = row(switch, "Interface", "v1")
    assert (interface["ofport"], interface["error"]) == (1, None), "the path of the deleted port is free again"


def test_every_change_is_answered_also_when_every_port_fails(switch: SwitchDaemon) -> None:
    for name in ("a", "b"):
        ovs_vsctl(switch, "add-br", name, "--", "add-port", name, f"{name}0")
    root = row(switch, "Open_vSwitch", ".")
    assert root["cur_cfg"] == root["next_cfg"] == 2


def test_L6_deleting_a_port_leaves_nothing_of_it(switch: SwitchDaemon, short_folder: Path) -> None:
    add_bridge(switch)
    add_client(switch, "v0", short_folder / "v0")
    ovs_vsctl(switch, "del-port", "br0", "v0")
    assert run("ovs-vsctl", switch, f"--db={switch.remote}", "get", "Interface", "v0", "ofport").returncode == 1
    assert "v0" not in ovs_appctl(switch, "dpif-netdev/pmd-rxq-show")
    assert ovs_vsctl(switch, "list-ports", "br0") == ""


@pytest.mark.rows("B7")
def test_stock_appctl_finds_the_switch_by_its_pid_file(switch: SwitchDaemon) -> None:
    add_bridge(switch)
    assert ovs_appctl(switch, "version") == switch.call("--version").stdout
    control = switch.rundir / f"ovs-vswitchd.{switch.pid}.ctl"
    assert ovs_appctl(switch, "-t", str(control), "fdb/show", "br0") == " port  VLAN  MAC                Age\n"
    assert ovs_appctl(switch, "fdb/flush", "br0") == "table successfully flushed\n"
    assert "table: 0/8192\n" in ovs_appctl(switch, "fdb/stats-show", "br0")
    assert ovs_appctl(switch, "vlog/list")
    commands = ovs_appctl(switch, "list-commands")
    assert "  fdb/show                bridge\n" in commands


def test_stock_appctl_is_told_what_is_wrong(switch: SwitchDaemon) -> None:
    done = run("ovs-appctl", switch, "fdb/show", "br9")
    assert done.returncode == 2
    assert "no such bridge" in done.stderr


@pytest.mark.rows("B5")
def test_pmd_perf_show_counts_from_the_last_clear(switch: SwitchDaemon) -> None:
    shown = ovs_appctl(switch, "dpif-netdev/pmd-perf-show")
    assert re.search(r"^pmd thread numa_id \d+ core_id \d+:$", shown, re.MULTILINE)
    assert re.search(r"Rx packets: +0$", shown, re.MULTILINE)
    assert ovs_appctl(switch, "dpif-netdev/pmd-stats-clear") == ""


def test_exit_over_the_control_socket_ends_the_daemon(switch: SwitchDaemon) -> None:
    ovs_appctl(switch, "exit")
    wait_for(lambda: not switch.running, timeout_s=20, what="the daemon to end")
    assert switch.stop() == 0
    assert list(switch.rundir.iterdir()) == [], "nothing is left in the run directory"
