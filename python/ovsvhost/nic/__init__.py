"""Network devices of this machine as ports: what a row asks for, which device that is, and how its link is.

::

    options ──▶ settings ─┐
    dpdk-devargs ─▶ devargs (sysfs) ─▶ device ─┤
    rtnetlink ─▶ links ─▶ ifindex, MTU, link ──┴─▶ port ─▶ NicPort (`ovsvhost.model`)

`device` and `ethtool` ask and set what the kernel knows of one device. Frames never pass here.
"""
