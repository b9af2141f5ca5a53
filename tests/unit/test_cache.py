"""The cache of programs and images."""

import os
from pathlib import Path

import dbtunnel.forwarder
from tests.support.binaries import cache_directory


def test_the_cache_stays_where_it_is_though_the_forwarder_takes_home_away() -> None:
    assert dbtunnel.forwarder
    assert os.environ["HOME"] == "/nonexistent"
    assert not cache_directory().is_relative_to(Path.home())
