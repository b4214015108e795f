"""``dpdk-devargs`` against a directory tree laid out as sysfs is."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ovsvhost.errors import ConfigError
from ovsvhost.nic.devargs import Named, resolve

MAC = "3c:fd:fe:00:00:01"


class Sysfs:
    """A tree of PCI devices, their drivers and their network devices."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.pci = root / "bus/pci/devices"
        self.net = root / "class/net"
        for folder in (self.pci, self.net, root / "bus/pci/drivers"):
            folder.mkdir(parents=True)

    def device(self, address: str, driver: str | None = "ice", net: tuple[str, ...] = (), below: str = "") -> Path:
        """A PCI device; its network devices may lie in a folder below, as those of virtio do."""
        home = self.root / "devices/pci0000:00" / address
        home.mkdir(parents=True)
        (self.pci / address).symlink_to(home)
        if driver is not None:
            (self.root / "bus/pci/drivers" / driver).mkdir(exist_ok=True)
            (home / "driver").symlink_to(self.root / "bus/pci/drivers" / driver)
        for name in net:
            (home / below / "net" / name).mkdir(parents=True)
            self.netdev(name, device=home / below)
        return home

    def netdev(self, name: str, mac: str = "02:00:00:00:00:09", device: Path | None = None) -> None:
        (self.net / name).mkdir()
        (self.net / name / "address").write_text(f"{mac}\n")
        if device is not None:
            (self.net / name / "device").symlink_to(device)


@pytest.fixture
def sysfs(tmp_path: Path) -> Sysfs:
    return Sysfs(tmp_path)


def refusal(devargs: str, sysfs: Sysfs) -> str:
    with pytest.raises(ConfigError) as caught:
        resolve(devargs, sysfs.root)
    return str(caught.value)


@pytest.mark.rows("A22")
@pytest.mark.parametrize("devargs", ["0000:3b:00.0", "3b:00.0", "0000:3B:00.0", "pci:0000:3b:00.0", "00000000:3b:00.0"])
def test_a_pci_address_is_its_network_device(sysfs: Sysfs, devargs: str) -> None:
    sysfs.device("0000:3b:00.0", net=("ens1f0",))
    assert resolve(devargs, sysfs.root) == Named("afxdp", "ens1f0")


def test_a_virtio_devices_network_device_lies_one_floor_below(sysfs: Sysfs) -> None:
    sysfs.device("0000:00:03.0", driver="virtio-pci", net=("eth0",), below="virtio0")
    assert resolve("0000:00:03.0", sysfs.root).device == "eth0"


def test_a_pci_device_that_is_not_there_is_named(sysfs: Sysfs) -> None:
    assert refusal("0000:01:00.0", sysfs) == ("there is no PCI device 0000:01:00.0: lspci -D lists those there are")


@pytest.mark.rows("A22")
@pytest.mark.parametrize("driver", ["vfio-pci", "uio_pci_generic", "igb_uio"])
def test_a_device_that_was_taken_from_the_kernel_gets_the_commands_that_give_it_back(sysfs: Sysfs, driver: str) -> None:
    sysfs.device("0000:3b:00.0", driver=driver)
    text = refusal("0000:3b:00.0", sysfs)
    assert f"is bound to {driver}" in text
    device = f"{sysfs.root}/bus/pci/devices/0000:3b:00.0"
    assert f"echo > {device}/driver_override; echo 0000:3b:00.0 > {device}/driver/unbind" in text
    assert f"echo 0000:3b:00.0 > {sysfs.root}/bus/pci/drivers_probe" in text


def test_a_device_without_a_driver_gets_the_command_that_finds_one(sysfs: Sysfs) -> None:
    sysfs.device("0000:3b:00.0", driver=None)
    assert "has no driver" in refusal("0000:3b:00.0", sysfs)


def test_a_device_that_is_no_nic_is_said_with_its_driver(sysfs: Sysfs) -> None:
    sysfs.device("0000:3b:00.0", driver="nvme")
    assert "(driver nvme) has no network device" in refusal("0000:3b:00.0", sysfs)


def test_a_device_of_several_network_devices_asks_for_an_address(sysfs: Sysfs) -> None:
    sysfs.device("0000:3b:00.0", driver="mlx4_core", net=("ens1", "ens1d1"))
    text = refusal("0000:3b:00.0", sysfs)
    assert "(ens1, ens1d1)" in text
    assert "class=eth,mac=" in text


@pytest.mark.rows("A22")
def test_a_mac_address_is_the_device_that_has_it_and_not_the_bond_above(sysfs: Sysfs) -> None:
    home = sysfs.device("0000:3b:00.0")
    sysfs.netdev("bond0", MAC)
    sysfs.netdev("ens1f0", MAC, home)
    assert resolve(f"class=eth,mac={MAC.upper()}", sysfs.root) == Named("afxdp", "ens1f0")


def test_a_mac_address_of_nobody_or_of_several_is_refused(sysfs: Sysfs) -> None:
    assert "no network device has the address" in refusal(f"class=eth,mac={MAC}", sysfs)
    sysfs.netdev("veth0", MAC)
    assert resolve(f"class=eth,mac={MAC}", sysfs.root).device == "veth0"
    sysfs.netdev("veth1", MAC)
    assert "(veth0, veth1)" in refusal(f"class=eth,mac={MAC}", sysfs)
    assert "give class=eth,mac=" in refusal("class=eth", sysfs)


@pytest.mark.rows("A22")
def test_dpdks_virtual_devices_over_a_kernel_device_are_ours_over_it(sysfs: Sysfs) -> None:
    assert resolve("net_af_xdp0,iface=eth1", sysfs.root) == Named("afxdp", "eth1")
    assert resolve("net_af_packet3,iface=eth1", sysfs.root) == Named("packet", "eth1")
    assert resolve("eth_af_packet0,iface=eth1", sysfs.root) == Named("packet", "eth1")


def test_arguments_of_a_virtual_device_are_options_of_the_port(sysfs: Sysfs) -> None:
    named = resolve("net_af_xdp,iface=eth1,start_queue=2,queue_count=4", sysfs.root)
    assert named == Named("afxdp", "eth1", {"xdp-start-queue": "2", "n_rxq": "4"})


@pytest.mark.parametrize(
    ("devargs", "why"),
    [
        ("net_af_xdp0", "names '', and no network device"),
        ("net_af_xdp0,iface=a-name-of-16-byte", "names 'a-name-of-16-byte'"),
        ("net_af_xdp0,iface=a/b", "names 'a/b'"),
        ("net_af_xdp0,iface=eth1,xdp_prog=/x", "has xdp_prog, which is an argument of a DPDK driver"),
        ("net_af_xdp0,iface", "cannot be read at 'iface'"),
        ("net_af_xdp0,iface=a,iface=b", "cannot be read at 'iface=b'"),
        ("net_tap0,iface=tap0", "a tap device, which is not served yet"),
        ("net_virtio_user0,path=/x", "there is no DPDK here"),
        ("0000:3b:00.0,representor=[0]", "has representor, which is an argument of a DPDK driver"),
        ("eth0", "names no network device: give a PCI address"),
        ("", "names no network device"),
    ],
)
def test_what_cannot_be_says_why_and_what_can(sysfs: Sysfs, devargs: str, why: str) -> None:
    assert why in refusal(devargs, sysfs)


@given(st.text())
def test_every_text_is_a_device_or_a_sentence(devargs: str) -> None:
    try:
        assert resolve(devargs, Path("/nowhere")).device
    except ConfigError as error:
        assert str(error)  # noqa: PT017 - hypothesis gives both kinds
