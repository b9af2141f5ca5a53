"""Settings of all tests."""

import tests.support  # noqa: F401 - says where the cache is before anything that takes HOME away is imported
