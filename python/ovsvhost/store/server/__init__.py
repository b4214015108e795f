"""A small OVSDB server (RFC 7047, with ovsdb-server(7)'s additions) for one process, one thread, one database file.

::

    socket ─▶ listener ─▶ session ─ jsonrpc          one client: framing, requests, answers
                             │
                          service ─ locks            what clients share; transactions that wait
                             │
              execute ─▶ operation ─ condition, mutation
                             │
                        transaction ─ integrity      all or nothing; references, garbage, indexes
                             │
                          database ─ record ─▶ store.log
                             │
              table ─ schema ─ datum                 rows, types, values
                             └─▶ monitor ─▶ session  who has to hear of it

The real ovsdb-server is the oracle: the tests put the same transactions to both and compare answers, error texts and
what is in the database afterwards. Not here, because a switch's own database has no use for it: clusters, relays,
role-based access, TCP and TLS remotes, ``convert``.
"""

from ovsvhost.store.server.embedded import EmbeddedServer

__all__ = ["EmbeddedServer"]
