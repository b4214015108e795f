"""The rig: real QEMU guests, DPDK front-ends and a peer switch, for tests against real things.

A pytest plug-in: ``pytest_plugins = ["ovsvhost.testing"]`` gives the fixtures of ``ovsvhost.testing.fixtures``. Without
pytest the modules serve scripts just as well; ``scripts/demo`` is one::

    guest · qmp · agent     a virtual machine        qemu · image · debian · cpio    what it runs on
    testpmd                 DPDK front-ends          hugepages                       their memory
    daemon                  the switch under test    ovs_dpdk                        the switch it is measured against
    process · wait          programs with logs and ends; waiting with a deadline
"""

pytest_plugins = ["ovsvhost.testing.fixtures"]
