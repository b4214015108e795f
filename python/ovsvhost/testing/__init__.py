"""The rig: real QEMU guests, DPDK front-ends and a peer switch, for tests against real things.

A pytest plug-in: ``pytest_plugins = ["ovsvhost.testing"]`` gives the fixtures of ``ovsvhost.testing.fixtures``. Without
pytest the modules serve scripts just as well; ``scripts/demo`` is one::

    pair                    two guests on a switch       traffic                         pings and copies between them
    guest · qmp             a virtual machine            qemu · image · debian · cpio    what it runs on
    libvirt                 another, run by libvirt      machine · agent                 its shell, whoever runs it
    forwarder               testpmd inside a guest       tsc                             the clock that it is told
    migration               guests that move             offer                           what a port offers a front-end
    daemon                  the switch under test        ovs_dpdk                        the switch it is compared with
    frontend                the project's front-end      testpmd                         DPDK's front-ends, and a switch
    kernel_host             Linux behind a veth pair     namespace                       where it lives
    bonded_host             hosts behind two cables      hugepages                       memory for those that want it
    stock                   Open vSwitch's own tools
    ovsdb                   database servers             ovsdb_twins · vsctl_twins       ours beside the real ones
    process · lasting       programs with logs; ends     wait · errors                   deadlines; what is raised
"""

pytest_plugins = ["ovsvhost.testing.fixtures"]
