"""The switch as a service: an OVSDB client that keeps a datapath like the database says.

::

    process     run directory, pid files, signals           settings   switch-wide options
    rows        the database's rows as frozen values        configure  rows ─▶ Desired, pure
    verdict     what becomes of a row                       claims     who has what there is one of, pure
    bonds       a port of several devices, pure             writeback  state ─▶ columns, pure
    control     rows in, plan applied, state written back   answers    what ovs-appctl asks for
    unixctl     the control socket                          loop       what turns all of it
    commands · bond_commands · nic_commands · pmd_commands  the answers' layout, pure

It never stops over what a row holds: a row is refused in its own ``error`` column.
"""
