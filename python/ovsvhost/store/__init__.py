"""The store: where the desired state lives, and the only way it gets in.

The daemon is always a client of an OVSDB server (RFC 7047). By default it brings its own:

::

    ovs-vsctl · ovsvhost vsctl · os-vif · libvirt
            │  RFC 7047 on <rundir>/db.sock
            ▼
    store.server.EmbeddedServer ── store.log ──▶ <state-dir>/conf.db   (the format of the real ovsdb-server)
            │  the same socket
            ▼
    store.idl: the daemon's replica of the rows; its own thread, neither waits for the other

With ``--db`` the daemon talks to a real ovsdb-server in the same way, and this server is not started.

- ``store.server`` knows databases, tables and rows; it does not know what a bridge is.
- ``store.log`` knows records in a file; it does not know what they mean.
- ``store.operations`` is what a client writes with.
- ``vswitch.ovsschema`` is Open vSwitch's own schema, unchanged.

What the file guarantees: a transaction is in it whole or not at all; one that asked for ``durable`` is on the disk
before its answer; a full disk fails the transaction that met it and nothing else. What survives a crash of the
process without ``durable`` is everything (the kernel has it), a power cut may take the last moments.
"""
