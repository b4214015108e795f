"""Every test may use the rig: guests, peers and the daemon as a process."""

pytest_plugins = ["ovsvhost.testing"]
