"""Settings of the unit tests."""

import asyncio
from collections.abc import Callable, Mapping

import pytest
from hypothesis import settings

from dbtunnel.forwarder.watch import hot_loop

# how long an example takes depends on what else the machine does, and proves nothing
settings.register_profile("dbtunnel", deadline=None)
settings.load_profile("dbtunnel")

_ON_BOTH_LOOPS = ("test_forwarder_client", "test_forwarder_transport", "test_forwarder_watch")
"""Tests of what sockets are served by: the forwarder's own selector, and asyncio's where a system has no epoll."""


def pytest_asyncio_loop_factories(
    config: pytest.Config,
    item: pytest.Item,
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    hot = {"hot": lambda: hot_loop(asyncio.SelectorEventLoop)}
    return {**hot, "plain": asyncio.SelectorEventLoop} if item.path.stem in _ON_BOTH_LOOPS else hot
