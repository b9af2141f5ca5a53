"""Settings of the unit tests."""

from hypothesis import settings

# how long an example takes depends on what else the machine does, and proves nothing
settings.register_profile("dbtunnel", deadline=None)
settings.load_profile("dbtunnel")
