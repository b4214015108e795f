"""``ovsvhost appctl``: commands to the running switch, with the grammar of ``ovs-appctl``.

The client is in :mod:`ovsvhost.appctl.client`; what the switch answers is the daemon's business.
"""
