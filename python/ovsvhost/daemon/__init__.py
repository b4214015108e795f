"""The switch as a service: an OVSDB client that keeps a datapath like the database says.

::

    process     run directory, pid files, signals           settings   switch-wide options
    rows        the database's rows as frozen values        configure  rows ─▶ Desired, pure
    control     rows in, plan applied, state written back   writeback  state ─▶ columns, pure
    unixctl     the control socket                          commands   its answers' layout, pure
    loop        what turns all of it

It never stops over what a row holds: a row is refused in its own ``error`` column.
"""
