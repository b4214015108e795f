"""Every bad input that a database can hold: the row says what, why and the cure; nobody else's port notices."""

from __future__ import annotations

import os
import socket
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ovsvhost.testing.daemon import SwitchDaemon
from ovsvhost.testing.stock import ovs_vsctl, row, run
from ovsvhost.testing.wait import wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.peer


@pytest.fixture(scope="module")
def shared_switch() -> Iterator[SwitchDaemon]:
    """One daemon for the whole file: it has to outlive every bad input."""
    with tempfile.TemporaryDirectory(prefix="ov-") as name, SwitchDaemon(Path(name) / "sw") as daemon:
        yield daemon


@pytest.fixture
def bad(shared_switch: SwitchDaemon, short_folder: Path) -> Iterator[BadPort]:
    """A bridge with a good port; whatever is done to the bad one, the good one is the same afterwards."""
    yield from good_neighbour(shared_switch, short_folder)


@pytest.fixture
def bad_alone(switch: SwitchDaemon, short_folder: Path) -> Iterator[BadPort]:
    """The same on a daemon of its own, which may be stopped."""
    yield from good_neighbour(switch, short_folder)


def good_neighbour(switch: SwitchDaemon, folder: Path) -> Iterator[BadPort]:
    ovs_vsctl(switch, "add-br", "br0", "--", "set", "bridge", "br0", "datapath_type=netdev")
    path = f"options:vhost-server-path={folder}/good"
    ovs_vsctl(switch, "add-port", "br0", "good", "--", "set", "Interface", "good", "type=dpdkvhostuserclient", path)
    before = row(switch, "Interface", "good")
    yield BadPort(switch, folder)
    after = row(switch, "Interface", "good")
    watched = ("_uuid", "ofport", "error", "link_state", "link_resets", "mtu", "admin_state")
    assert {name: after[name] for name in watched} == {name: before[name] for name in watched}
    assert switch.running
    ovs_vsctl(switch, "del-br", "br0", "--", "--if-exists", "del-br", "br1")


class BadPort:
    """Adds ports that cannot be."""

    def __init__(self, switch: SwitchDaemon, folder: Path) -> None:
        self.switch = switch
        self.folder = folder

    def add(self, *settings: str, name: str = "bad", port: tuple[str, ...] = ()) -> None:
        """Adds one; ovs-vsctl waits for the switch's answer, which is a warning and no failure."""
        ovs_vsctl(self.switch, "add-port", "br0", name, *port, "--", "set", "Interface", name, *settings)

    def client(self, path: str, *settings: str, name: str = "bad", port: tuple[str, ...] = ()) -> None:
        """Adds a client port with a path, as ovs-vsctl takes strings."""
        self.add("type=dpdkvhostuserclient", f'options:vhost-server-path="{path}"', *settings, name=name, port=port)

    def error(self, name: str = "bad", *, containing: str = "") -> str:
        """Its row's error, when it contains what is waited for; and the log has it too."""

        def text() -> str:
            said = row(self.switch, "Interface", name)["error"] or ""
            return said if containing in said else ""

        found = wait_for(text, timeout_s=10, what=f"an error of {name} with {containing!r}", interval_s=0.05)
        wait_for(
            lambda: containing in self.switch.log.read_text(), timeout_s=10, what=f"a log line with {containing!r}"
        )
        return found

    def refused(self, containing: str, name: str = "bad") -> str:
        """Its error; and it is out of the bridge."""
        found = self.error(name, containing=containing)
        assert row(self.switch, "Interface", name)["ofport"] == -1
        return found


def test_A1_a_port_on_a_bridge_that_is_not_netdev_says_what_to_set(bad: BadPort) -> None:
    ovs_vsctl(bad.switch, "add-br", "br1", "--", "add-port", "br1", "bad")
    bad.refused("ovs-vsctl set bridge br1 datapath_type=netdev")
    ovs_vsctl(bad.switch, "set", "bridge", "br1", "datapath_type=netdev", "--", "del-port", "bad")
    assert row(bad.switch, "Interface", "br1")["error"] is None


def test_A3_client_port_without_a_path_waits_and_says_so(bad: BadPort) -> None:
    bad.add("type=dpdkvhostuserclient")
    bad.error(containing="set options:vhost-server-path")
    number = row(bad.switch, "Interface", "bad")["ofport"]
    assert number == 2
    ovs_vsctl(bad.switch, "set", "Interface", "bad", f"options:vhost-server-path={bad.folder}/late")
    interface = row(bad.switch, "Interface", "bad")
    assert (interface["error"], interface["ofport"]) == (None, number)


def test_A5_a_server_port_with_a_slash_in_its_name_is_refused(bad: BadPort) -> None:
    bad.add("type=dpdkvhostuser", name="a/b")
    bad.refused("a dpdkvhostuser port's name has no '/' or '\\'", "a/b")


def test_A5_a_server_port_with_a_backslash_in_its_name_is_refused(bad: BadPort) -> None:
    bad.add("type=dpdkvhostuser", name="a\\b")
    bad.refused("a dpdkvhostuser port's name has no '/' or '\\'", "a\\b")


def test_A6_a_socket_directory_that_leads_out_of_the_run_directory_is_refused(bad_alone: BadPort) -> None:
    bad = bad_alone
    ovs_vsctl(bad.switch, "set", "Open_vSwitch", ".", "other_config:vhost-sock-dir=../out")
    bad.switch.stop()
    bad.switch.start()
    bad.add("type=dpdkvhostuser")
    bad.refused("it may not hold '..'")
    assert not (bad.switch.rundir.parent / "out").exists()


@pytest.mark.parametrize("kind", ["internal", "gre", "nonsense"])
def test_a_type_that_is_not_served_names_the_types_that_are(bad: BadPort, kind: str) -> None:
    bad.add(f'type="{kind}"')
    assert "dpdkvhostuser " in bad.refused("set type=dpdkvhostuserclient")


@pytest.mark.rows("A22", "C1")
def test_A22_a_dpdk_port_without_a_device_says_how_to_name_one(bad: BadPort) -> None:
    bad.add("type=dpdk")
    bad.refused("bad has no options:dpdk-devargs, so no device: give a PCI address (0000:3b:00.0)")
    ovs_vsctl(bad.switch, "set", "Interface", "bad", "options:dpdk-devargs=0000:ff:1f.7")
    bad.refused("there is no PCI device 0000:ff:1f.7: lspci -D lists those there are")


@pytest.mark.rows("A22", "C1")
@pytest.mark.parametrize("kind", ["", "afxdp"])
def test_A22_a_device_that_is_not_there_is_named(bad: BadPort, kind: str) -> None:
    added = ("add-port", "br0", "bad", "--", "set", "Interface", "bad", f'type="{kind}"')
    done = run("ovs-vsctl", bad.switch, "--timeout=10", f"--db={bad.switch.remote}", *added)
    said = "there is no network device bad: create it, or name another"
    assert f"Error detected while setting up 'bad': {said}" in done.stderr
    interface = row(bad.switch, "Interface", "bad")
    assert (interface["ofport"], interface["error"], interface["link_state"]) == (-1, said, "down")


def test_L5_an_unknown_option_is_named_and_the_port_works(bad: BadPort) -> None:
    bad.client(f"{bad.folder}/bad", "options:vhost-server-pth=1")
    bad.error(containing="options:vhost-server-pth is unknown: remove it or correct its name")
    assert row(bad.switch, "Interface", "bad")["ofport"] == 2


@pytest.mark.rows("L5")
def test_L5_keys_of_other_config_that_nobody_reads_are_said_and_nothing_stops(bad: BadPort) -> None:
    key = "other_config:vhost-iommu-suport"
    ovs_vsctl(bad.switch, "set", "Open_vSwitch", ".", f"{key}=true", "--", "set", "Bridge", "br0", "other_config:x=1")
    bad.client(f"{bad.folder}/bad", "other_config:y=1", port=("other_config:bond-hash-basis=1",))
    bad.error(containing="other_config:y of interface 'bad' is not in force: it is unknown or not served, clear it")
    bad.error(containing="other_config:bond-hash-basis of port 'bad' is not in force")
    bad.error("br0", containing="other_config:x of bridge 'br0' is not in force")
    assert row(bad.switch, "Interface", "bad")["ofport"] == 2
    said = f"{key} of Open_vSwitch is not in force: it is unknown or not served, clear it"
    assert bad.switch.log.read_text().count(said) == 1
    ovs_vsctl(bad.switch, "remove", "Open_vSwitch", ".", "other_config", "vhost-iommu-suport")
    assert f"no longer: {said}" in bad.switch.log.read_text()


def test_a_relative_path_is_refused(bad: BadPort) -> None:
    bad.client("tmp/bad")
    bad.refused("'tmp/bad' is relative: give an absolute path")


def test_a_path_of_108_bytes_is_refused_by_its_length_and_107_are_served(bad: BadPort) -> None:
    path = f"{bad.folder}/" + "x" * (107 - len(str(bad.folder)))
    bad.client(path)
    bad.refused("has 108 bytes and a socket's path at most 107")
    ovs_vsctl(bad.switch, "set", "Interface", "bad", f"options:vhost-server-path={path[:-1]}")
    assert row(bad.switch, "Interface", "bad")["error"] is None


def test_a_path_that_is_not_utf_8_never_reaches_the_database(bad: BadPort) -> None:
    path = os.fsdecode(b"/tmp/\xff\xfe")
    before = ovs_vsctl(bad.switch, "show")
    done = run(
        "ovs-vsctl", bad.switch, f"--db={bad.switch.remote}", "--timeout=10", "add-port", "br0", "bad", "--", "set",
        "Interface", "bad", "type=dpdkvhostuserclient", f"options:vhost-server-path={path}",
    )  # fmt: skip
    assert done.returncode != 0
    assert "UTF-8" in done.stderr
    assert ovs_vsctl(bad.switch, "show") == before


def test_a_directory_at_the_path_is_named(bad: BadPort) -> None:
    (bad.folder / "bad").mkdir()
    bad.client(f"{bad.folder}/bad")
    assert "directory" in bad.error(containing=f"{bad.folder}/bad")


def test_a_regular_file_at_the_path_is_named(bad: BadPort) -> None:
    (bad.folder / "bad").write_text("precious")
    bad.client(f"{bad.folder}/bad")
    assert "socket" in bad.error(containing=f"{bad.folder}/bad")
    assert (bad.folder / "bad").read_text() == "precious"


def test_a_dead_socket_at_a_client_ports_path_says_that_nobody_listens(bad: BadPort) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(f"{bad.folder}/bad")
    bad.client(f"{bad.folder}/bad")
    assert "listen" in bad.error(containing=f"{bad.folder}/bad")


def test_a_file_in_the_place_of_a_server_ports_socket_is_kept_and_named(bad: BadPort) -> None:
    path = bad.switch.rundir / "bad"
    path.write_text("precious")
    bad.add("type=dpdkvhostuser")
    bad.refused(str(path))
    assert path.read_text() == "precious"
    path.unlink()


def test_a_socket_that_someone_else_serves_is_not_taken_and_had_when_it_is_free(bad: BadPort) -> None:
    path = bad.switch.rundir / "bad"
    with socket.socket(socket.AF_UNIX) as foreign:
        foreign.bind(str(path))
        foreign.listen()
        inode = path.stat().st_ino
        bad.add("type=dpdkvhostuser")
        bad.refused(str(path))
        assert path.stat().st_ino == inode
    wait_for(
        lambda: row(bad.switch, "Interface", "bad")["ofport"] == 2,
        timeout_s=10,
        what="the port to come up when its socket is free",
        interval_s=0.1,
    )
    assert row(bad.switch, "Interface", "bad")["error"] is None


def test_two_ports_with_one_path_the_first_keeps_it(bad: BadPort) -> None:
    bad.client(f"{bad.folder}/good")
    bad.refused("belongs to port 'good' already")


def test_an_ofport_that_is_in_use_names_its_holder(bad: BadPort) -> None:
    bad.client(f"{bad.folder}/bad", "ofport_request=1")
    bad.refused("port 'good' has it")
    ovs_vsctl(bad.switch, "set", "Interface", "bad", "ofport_request=7")
    interface = row(bad.switch, "Interface", "bad")
    assert (interface["ofport"], interface["error"]) == (7, None)


@pytest.mark.parametrize(
    ("setting", "undo"),
    [
        ("tag=5", ("clear", "Port", "bad", "tag")),
        ("trunks=1,2", ("clear", "Port", "bad", "trunks")),
        ("vlan_mode=access", ("clear", "Port", "bad", "vlan_mode")),
        ("protected=true", ("set", "Port", "bad", "protected=false")),
    ],
)
def test_a_port_column_that_is_not_served_keeps_the_port_out(bad: BadPort, setting: str, undo: tuple[str, ...]) -> None:
    bad.client(f"{bad.folder}/bad", port=(setting,))
    bad.refused(setting)
    ovs_vsctl(bad.switch, *undo)
    assert row(bad.switch, "Interface", "bad")["error"] is None


def test_qos_that_is_not_served_keeps_the_port_out(bad: BadPort) -> None:
    bad.client(f"{bad.folder}/bad")
    qos = ("--", "--id=@q", "create", "QoS", "type=egress-policer")
    ovs_vsctl(bad.switch, "set", "Port", "bad", "qos=@q", *qos)
    bad.refused("qos")


def test_policing_that_is_not_served_keeps_the_port_out(bad: BadPort) -> None:
    bad.client(f"{bad.folder}/bad", "ingress_policing_rate=1000")
    bad.refused("ingress_policing_rate=1000")


def test_a_bond_of_guests_keeps_both_of_its_ends_out(bad: BadPort) -> None:
    settings = ("type=dpdkvhostuserclient",)
    ends = [("--", "set", "Interface", end, *settings, f"options:vhost-server-path=/tmp/{end}") for end in ("b1", "b2")]
    ovs_vsctl(bad.switch, "add-bond", "br0", "bond0", "b1", "b2", *ends[0], *ends[1])
    bad.refused("'bond0' bonds b1, b2", "b1")
    bad.refused("'bond0' bonds b1, b2", "b2")


def test_a_mirror_keeps_the_ports_it_names_out(bad: BadPort) -> None:
    bad.client(f"{bad.folder}/bad")
    select = ("--", "--id=@p", "get", "Port", "bad", "--", "--id=@m", "create", "Mirror", "name=m0")
    ovs_vsctl(bad.switch, "set", "Bridge", "br0", "mirrors=@m", *select, "select_dst_port=@p", "output_port=@p")
    bad.refused("mirror m0")
    ovs_vsctl(bad.switch, "clear", "Bridge", "br0", "mirrors")
    assert row(bad.switch, "Interface", "bad")["error"] is None


@pytest.mark.parametrize(
    ("setting", "undo"),
    [
        ("stp_enable=true", ("set", "Bridge", "br1", "stp_enable=false")),
        ("rstp_enable=true", ("set", "Bridge", "br1", "rstp_enable=false")),
        ("mcast_snooping_enable=true", ("set", "Bridge", "br1", "mcast_snooping_enable=false")),
        ("fail_mode=secure", ("clear", "Bridge", "br1", "fail_mode")),
    ],
)
def test_a_bridge_column_that_is_not_served_keeps_its_ports_out(
    bad: BadPort, setting: str, undo: tuple[str, ...]
) -> None:
    path = f"options:vhost-server-path={bad.folder}/bad"
    ovs_vsctl(
        bad.switch, "add-br", "br1", "--", "set", "bridge", "br1", "datapath_type=netdev", setting, "--", "add-port",
        "br1", "bad", "--", "set", "Interface", "bad", "type=dpdkvhostuserclient", path,
    )  # fmt: skip
    bad.refused(setting)
    ovs_vsctl(bad.switch, *undo)
    assert row(bad.switch, "Interface", "bad")["error"] is None
