"""QEMU's arguments for a port: what each side must agree on, and what a shell makes of the printed lines."""

from __future__ import annotations

import shlex

import pytest

from ovsvhost.cli.qemu import address_of
from ovsvhost.errors import ConfigError
from ovsvhost.qemu import Nic, command_line, memory_arguments, nic_arguments

MAC = "52:54:00:00:00:01"


def chardev(arguments: list[str]) -> str:
    return arguments[arguments.index("-chardev") + 1]


def device(arguments: list[str]) -> str:
    return arguments[arguments.index("-device") + 1]


def test_A8_qemu_connects_to_the_socket_of_a_server_port_and_comes_back() -> None:
    nic = Nic(socket="/run/x/v0", type="dpdkvhostuser", mac=MAC)
    assert chardev(nic_arguments(nic, name="v0")) == "socket,id=v0-socket,path=/run/x/v0,reconnect=1"
    assert "server" not in chardev(nic_arguments(nic, name="v0"))


def test_A12_qemu_makes_the_socket_of_a_client_port() -> None:
    nic = Nic(socket="/tmp/v0", type="dpdkvhostuserclient", mac=MAC)  # noqa: S108 - the guide's own path
    assert chardev(nic_arguments(nic, name="v0")) == "socket,id=v0-socket,path=/tmp/v0,server=on"


def test_reconnect_is_spelt_as_the_release_spells_it() -> None:
    nic = Nic(socket="/run/x/v0", type="dpdkvhostuser", mac=MAC, reconnect_s=2)
    assert chardev(nic_arguments(nic, name="v0", version=(9, 1))).endswith(",reconnect=2")
    assert chardev(nic_arguments(nic, name="v0", version=(9, 2))).endswith(",reconnect-ms=2000")


def test_A8_several_devices_of_one_guest_share_no_name() -> None:
    nics = [Nic(socket=f"/run/x/v{number}", type="dpdkvhostuser", mac=MAC) for number in range(3)]
    lines = [argument for index, nic in enumerate(nics) for argument in nic_arguments(nic, name=f"net{index}")]
    names = [part for line in lines for part in line.split(",") if part.startswith("id=")]
    assert len(names) == len(set(names)) == 6


def test_A10_queues_stand_on_both_ends_with_vectors_for_each() -> None:
    arguments = nic_arguments(Nic(socket="/run/x/v0", type="dpdkvhostuser", mac=MAC, queues=4), name="v0")
    assert arguments[arguments.index("-netdev") + 1].endswith(",queues=4")
    assert device(arguments).endswith(",mq=on,vectors=10")


@pytest.mark.parametrize("queues", [0, -1, 129])
def test_queue_count_that_vhost_user_cannot_carry_is_refused(queues: int) -> None:
    with pytest.raises(ConfigError, match=r"1\.\.128"):
        nic_arguments(Nic(socket="/run/x/v0", type="dpdkvhostuser", mac=MAC, queues=queues), name="v0")


def test_A9_memory_is_shared_whatever_it_lies_on() -> None:
    for hugepages in (None, "/dev/hugepages"):
        (backend,) = (
            argument for argument in memory_arguments(512, hugepages=hugepages) if "memory-backend" in argument
        )
        assert backend.endswith("share=on")
        assert "size=512M" in backend


@pytest.mark.rows("A9", "A19")
def test_memory_that_a_device_is_shown_is_all_there_and_other_is_taken_as_it_is_used() -> None:
    assert ",prealloc=on," in command_line(memory_arguments(512, prealloc=True))
    assert ",prealloc=on," in command_line(memory_arguments(512, hugepages="/dev/hugepages", prealloc=True))
    assert "prealloc" not in command_line(memory_arguments(512))


def test_commas_in_a_path_do_not_end_it() -> None:
    nic = Nic(socket="/tmp/a,b", type="dpdkvhostuserclient", mac=MAC)  # noqa: S108 - never opened
    assert "path=/tmp/a,,b," in chardev(nic_arguments(nic, name="v0"))


def test_printed_lines_are_what_a_shell_reads_back() -> None:
    nic = Nic(socket="/tmp/with space $HOME", type="dpdkvhostuserclient", mac=MAC)  # noqa: S108 - never opened
    arguments = memory_arguments(512) + nic_arguments(nic, name="v0")
    assert shlex.split(command_line(arguments).replace("\\\n", " ")) == arguments


def test_address_made_from_a_name_is_stable_and_its_own() -> None:
    assert address_of("v0") == address_of("v0")
    assert len({address_of(f"v{number}") for number in range(1000)}) == 1000
