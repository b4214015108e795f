"""Options of NIC ports: what is in force, what is refused aloud, what stays."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ovsvhost.model import NIC_QUEUES_MAX, NicSettings
from ovsvhost.nic.settings import NicOptions, parse

ROOT = Path(__file__).parents[2]


def afxdp(**options: str) -> NicOptions:
    return parse("afxdp", "afxdp", {key.replace("__", "-"): value for key, value in options.items()})


def test_without_options_the_defaults_are_in_force() -> None:
    assert afxdp() == NicOptions(NicSettings(), frozenset(), ())


@pytest.mark.rows("A20", "A22")
def test_every_option_in_range_is_in_force() -> None:
    meant = afxdp(
        n_rxq="2",
        n_rxq_desc="1024",
        n_txq_desc="128",
        xdp__mode="native",
        use__need__wakeup="false",
        xdp__start__queue="1",
        xdp__busy__budget="64",
        xdp__zc__queues="2",
        xdp__zc__min="65",
    )
    assert meant.complaints == ()
    assert meant.settings == NicSettings(
        n_rxq=2,
        n_rxq_desc=1024,
        n_txq_desc=128,
        xdp_mode="native",
        use_need_wakeup=False,
        xdp_start_queue=1,
        xdp_busy_budget=64,
        xdp_zc_queues=2,
        xdp_zc_min=65,
    )


@pytest.mark.rows("A20")
@pytest.mark.parametrize("size", ["64", "128", "256", "512", "2048", "4096"])
def test_the_ring_sizes_of_the_guide_are_served(size: str) -> None:
    assert (afxdp(n_txq_desc=size).settings.n_txq_desc, afxdp(n_txq_desc=size).complaints) == (int(size), ())


@pytest.mark.rows("A10", "A22")
def test_as_many_queues_are_served_as_the_core_has_and_documents() -> None:
    (core,) = re.findall(r"^const QUEUES_MAX: u32 = (\d+);$", (ROOT / "rust/datapath/nic.rs").read_text(), re.MULTILINE)
    stub = (ROOT / "python/ovsvhost/_core.pyi").read_text()
    documented = re.findall(r"(?:n_rxq: 1|zc_queues: 0)\.\.(\d+) queues", stub)
    assert [int(core), *map(int, documented)] == [NIC_QUEUES_MAX] * 3
    most = str(NIC_QUEUES_MAX)
    assert (afxdp(n_rxq=most).complaints, afxdp(xdp__zc__queues=most).complaints) == ((), ())


@pytest.mark.rows("A20", "L5")
@pytest.mark.parametrize(
    ("option", "setting", "value", "cure"),
    [
        ("n_txq_desc", "n_txq_desc", "100", "a power of two in 64..4096"),
        ("n_txq_desc", "n_txq_desc", "32", "a power of two in 64..4096"),
        ("n_rxq_desc", "n_rxq_desc", "8192", "a power of two in 64..4096"),
        ("n_rxq_desc", "n_rxq_desc", "-64", "a power of two in 64..4096"),
        ("n_rxq", "n_rxq", "0", "a number 1..128"),
        ("n_rxq", "n_rxq", "many", "a number 1..128"),
        ("xdp-mode", "xdp_mode", "fast", "best-effort, native-with-zerocopy, native, generic"),
        ("use-need-wakeup", "use_need_wakeup", "1", "true or false"),
        ("xdp-start-queue", "xdp_start_queue", "128", "a number 0..127"),
        ("xdp-busy-budget", "xdp_busy_budget", "65536", "a number 0..65535"),
        ("xdp-zc-queues", "xdp_zc_queues", "129", "a number 0..128"),
        ("xdp-zc-min", "xdp_zc_min", "64", "a number of bytes in 65..65535"),
    ],
)
def test_a_value_that_cannot_be_is_said_with_the_cure_and_what_the_port_has_stays(
    option: str, setting: str, value: str, cure: str
) -> None:
    meant = parse("afxdp", "afxdp", {option: value})
    assert meant.keeps == {setting}
    assert meant.complaints == (f"options:{option}='{value}' is not in force, what the port has stays: give {cure}",)


@given(
    st.dictionaries(
        st.sampled_from(
            ["n_rxq", "n_rxq_desc", "n_txq_desc", "xdp-mode", "xdp-busy-budget", "xdp-zc-queues", "xdp-zc-min"]
        ),
        st.text(),
    )
)
def test_every_text_is_a_setting_or_kept_and_said(options: dict[str, str]) -> None:
    meant = parse("afxdp", "afxdp", options)
    assert len(meant.keeps) == len(meant.complaints)
    assert meant.keeps <= {field.name for field in fields(NicSettings)}
    assert meant.settings.n_txq_desc.bit_count() == 1


@pytest.mark.parametrize(
    ("option", "why"),
    [
        ("dpdk-devargs", "set type=dpdk for another"),
        ("vhost-server-path", "it belongs to ports of guests"),
        ("dq-zero-copy", "it belongs to the guest's port"),
        ("rx-flow-ctrl", "ethtool -A"),
    ],
)
def test_an_option_of_another_place_names_that_place(option: str, why: str) -> None:
    (complaint,) = parse("afxdp", "afxdp", {option: "true"}).complaints
    assert complaint.startswith(f"options:{option} is not in force, remove it: ")
    assert why in complaint


@pytest.mark.rows("A22", "B4", "L5")
def test_how_often_a_full_ring_is_tried_again_is_an_option_as_of_a_guest() -> None:
    assert (afxdp().tx_retries_max, afxdp(tx__retries__max="0").tx_retries_max) == (8, 0)
    packet = parse("system", "packet", {"tx-retries-max": "32"})
    assert (packet.tx_retries_max, packet.complaints) == (32, ())
    odd = afxdp(tx__retries__max="33")
    assert odd.tx_retries_max == 8
    assert odd.complaints == ("options:tx-retries-max='33' is not in force (8 is): give a number 0..32",)


def test_an_unknown_option_is_named() -> None:
    assert afxdp(n_rxqs="2").complaints == ("options:n_rxqs is unknown: remove it or correct its name",)


def test_devargs_are_a_dpdk_ports_own() -> None:
    assert parse("dpdk", "afxdp", {"dpdk-devargs": "0000:01:00.0", "n_rxq": "2"}).complaints == ()


def test_a_port_over_af_packet_has_rings_and_no_xdp() -> None:
    meant = parse("system", "packet", {"n_rxq_desc": "256", "xdp-mode": "native"})
    assert meant.settings.n_rxq_desc == 256
    assert meant.complaints == ("options:xdp-mode is not in force, remove it: it belongs to ports over AF_XDP",)
