"""Settings of all tests."""

import os

from tests.support.binaries import cache_directory

# the forwarder's package takes HOME away from its process, and tests import it
os.environ.setdefault("DBTUNNEL_CACHE", str(cache_directory()))
