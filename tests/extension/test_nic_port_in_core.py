"""A network device's settings, from what is desired to the core: what the options allow it takes, live."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ovsvhost import apply, observed
from ovsvhost.model import NIC_QUEUES_MAX, TX_RETRIES_MAX, Bridge, Desired, NicPort, NicSettings
from ovsvhost.plan import plan

MOST = NicSettings(
    n_rxq=NIC_QUEUES_MAX,
    n_rxq_desc=4096,
    n_txq_desc=64,
    xdp_start_queue=NIC_QUEUES_MAX - 1,
    xdp_busy_budget=65_535,
    xdp_zc_queues=NIC_QUEUES_MAX,
    xdp_zc_min=65_535,
)
PORT = NicPort(key="n", name="no-dev0", driver="afxdp", device="no-dev0", ofport=1)


@pytest.mark.rows("A20", "A22", "B4", "L5")
def test_the_ends_of_every_range_are_taken_live_and_nothing_is_left_to_do() -> None:
    datapath, ledger = apply.open_datapath(), observed.Ledger()
    steps = (
        PORT,
        replace(PORT, tx_retries_max=0),
        replace(PORT, tx_retries_max=TX_RETRIES_MAX, settings=MOST),
        PORT,
    )
    for port in steps:
        desired = Desired((Bridge(key="b", name="br0", ports=(port,)),))
        actions = plan(desired, observed.read(datapath, ledger))
        assert apply.apply(datapath, ledger, actions) == []
        assert plan(desired, observed.read(datapath, ledger)) == ()
        assert ledger.ports["no-dev0"] == replace(port, mtu=ledger.ports["no-dev0"].mtu)
    apply.close(datapath)
