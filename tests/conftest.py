"""Settings of all tests."""

from collections.abc import Generator

import pytest

import tests.support  # noqa: F401 - says where the cache is before anything that takes HOME away is imported
from tests.support import produced


def pytest_configure(config: pytest.Config) -> None:
    """Declares the marks."""
    config.addinivalue_line("markers", "produces(*reasons): it brings them about and checks how they are told")
    config.addinivalue_line(
        "markers", "checks(*reasons): it has `dbtunnel check` meet them, and looks at its exit code"
    )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """A test that is marked to produce a reason has looked at it."""
    produced.begin()
    result = yield
    produced.end(item)
    return result
