"""Every test may use the rig: guests, peers and the daemon as a process."""

import os

from hypothesis import settings

pytest_plugins = ["ovsvhost.testing"]

# The same examples every time, however long one takes: a run says something about the change, not about the machine or
# its luck. HYPOTHESIS_PROFILE=explore looks for new ones.
settings.register_profile("same", derandomize=True, deadline=None)
settings.register_profile("explore", deadline=None, max_examples=1000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))
