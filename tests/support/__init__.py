"""Starts the real parts that tests and the demo use: Kubernetes, sshd, databases, images."""

import os

from tests.support.binaries import cache_directory

# the forwarder's package takes HOME away from its process, and much here imports it
os.environ.setdefault("DBTUNNEL_CACHE", str(cache_directory()))

# the tests' Go programs live for a moment or have little in memory: of kubectl's time a quarter is the collector's
os.environ.setdefault("GOGC", "400")
