from __future__ import annotations

import os
import resource
import select
import time

import pytest

from ovsvhost.poll import Poller


def test_a_ready_descriptor_is_told() -> None:
    read, write = os.pipe()
    os.write(write, b"x")
    poller = Poller()
    poller.fd_wait(read, select.POLLIN)
    assert poller.block() == {read}
    os.close(read)
    os.close(write)


def test_the_nearest_deadline_counts_and_is_never_early() -> None:
    poller = Poller()
    start = time.monotonic()
    poller.timer_wait(60_000)
    poller.timer_wait(20.5)
    assert poller.block() == set()
    assert 0.0205 <= time.monotonic() - start < 30


def test_an_immediate_wake_does_not_wait() -> None:
    poller = Poller()
    poller.timer_wait(60_000)
    poller.immediate_wake()
    assert poller.block() == set()


def test_nothing_is_kept_from_one_block_to_the_next() -> None:
    read, write = os.pipe()
    os.write(write, b"x")
    poller = Poller()
    poller.fd_wait(read, select.POLLIN)
    poller.block()
    poller.immediate_wake()
    assert poller.block() == set()
    os.close(read)
    os.close(write)


def test_descriptors_past_1023_are_waited_for() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 1100:
        pytest.skip("RLIMIT_NOFILE's hard limit is below 1100")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 1100), hard))
    read, write = os.pipe()
    high = os.dup2(read, 1050)
    os.write(write, b"x")
    poller = Poller()
    poller.fd_wait(high, select.POLLIN)
    assert poller.block() == {high}
    for number in (read, write, high):
        os.close(number)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
