"""``ovsvhost qemu PORT`` and ``ovsvhost libvirt PORT`` print what plugs a guest into a port of the running switch."""

from __future__ import annotations

import os
import shlex
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

import pytest

if TYPE_CHECKING:
    from ovsvhost.testing.daemon import SwitchDaemon


def printed(switch: SwitchDaemon, *arguments: str) -> list[str]:
    done = switch.call("qemu", *arguments)
    assert done.returncode == 0, done.stderr
    return shlex.split(done.stdout.replace("\\\n", " "))


def test_A8_arguments_of_a_server_port_name_the_socket_that_the_switch_made(switch: SwitchDaemon) -> None:
    switch.vsctl("add-br", "br0", "--", "set", "bridge", "br0", "datapath_type=netdev")
    switch.vsctl("add-port", "br0", "s0", "--", "set", "Interface", "s0", "type=dpdkvhostuser")
    words = printed(switch, "s0", "--queues", "2")
    chardev = words[words.index("-chardev") + 1]
    assert f"path={switch.rundir}/s0" in chardev.split(",")
    assert (switch.rundir / "s0").is_socket()
    assert "queues=2" in words[words.index("-netdev") + 1]


def test_A12_arguments_of_a_client_port_let_qemu_listen_on_its_path(switch: SwitchDaemon) -> None:
    path = switch.folder / "v0"
    switch.vsctl("add-br", "br0", "--", "set", "bridge", "br0", "datapath_type=netdev")
    options = ["type=dpdkvhostuserclient", f"options:vhost-server-path={path}"]
    switch.vsctl("add-port", "br0", "v0", "--", "set", "Interface", "v0", *options)
    words = printed(switch, "v0", "--hugepages", "/dev/hugepages")
    assert words[words.index("-chardev") + 1] == f"socket,id=v0-socket,path={path},server=on"
    assert "mem-path=/dev/hugepages" in words[words.index("-object") + 1]


@pytest.mark.rows("A8", "A11", "A19")
def test_guest_of_a_zero_copy_port_is_given_all_of_its_memory_at_once(switch: SwitchDaemon) -> None:
    switch.vsctl("add-br", "br0", "--", "set", "bridge", "br0", "datapath_type=netdev")
    options = ["type=dpdkvhostuserclient", f"options:vhost-server-path={switch.folder / 'v0'}"]
    switch.vsctl("add-port", "br0", "v0", "--", "set", "Interface", "v0", *options)
    for wants_zero_copy in (False, True):
        switch.vsctl("set", "Interface", "v0", f"options:dq-zero-copy={str(wants_zero_copy).lower()}")
        words = printed(switch, "v0")
        assert ("prealloc=on" in words[words.index("-object") + 1].split(",")) is wants_zero_copy
        assert ("<allocation mode='immediate'/>" in switch.call("libvirt", "v0").stdout) is wants_zero_copy


def test_port_that_takes_no_guest_is_refused_by_name(switch: SwitchDaemon) -> None:
    switch.vsctl("add-br", "br0", "--", "set", "bridge", "br0", "datapath_type=netdev")
    for port, reason in (("br0", "only dpdkvhostuserclient and dpdkvhostuser"), ("nobody", "no port named 'nobody'")):
        for command in ("qemu", "libvirt"):
            done = switch.call(command, port)
            assert done.returncode == 1
            assert reason in done.stderr


@pytest.mark.rows("A11")
def test_xml_of_a_server_port_names_its_socket_and_who_may_open_it(switch: SwitchDaemon) -> None:
    switch.vsctl("add-br", "br0", "--", "set", "bridge", "br0", "datapath_type=netdev")
    owner = str(os.geteuid())
    options = [f"options:socket-owner={owner}", "options:socket-mode=0660"]
    switch.vsctl("add-port", "br0", "s0", "--", "set", "Interface", "s0", "type=dpdkvhostuser", *options)
    done = switch.call("libvirt", "s0", "--queues", "2")
    assert done.returncode == 0, done.stderr
    assert f"belongs to {owner} and the switch's group, with mode 0660" in done.stdout
    source = ET.fromstring(done.stdout).find("source")  # noqa: S314 - our own words
    assert source is not None
    assert source.attrib == {"type": "unix", "path": str(switch.rundir / "s0"), "mode": "client"}
    assert (switch.rundir / "s0").is_socket()


@pytest.mark.rows("A11")
def test_xml_of_a_client_port_lets_libvirts_qemu_listen_on_its_path(switch: SwitchDaemon) -> None:
    path = switch.folder / "v0"
    switch.vsctl("add-br", "br0", "--", "set", "bridge", "br0", "datapath_type=netdev")
    options = ["type=dpdkvhostuserclient", f"options:vhost-server-path={path}"]
    switch.vsctl("add-port", "br0", "v0", "--", "set", "Interface", "v0", *options)
    done = switch.call("libvirt", "v0")
    source = ET.fromstring(done.stdout).find("source")  # noqa: S314 - our own words
    assert source is not None
    assert source.attrib == {"type": "unix", "path": str(path), "mode": "server"}
